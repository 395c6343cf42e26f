"""The command line: `contextcrf COMMAND --help` tells what each command takes; every option may stand in a YAML file."""

from pathlib import Path
from typing import Any

from contextcrf.model import ModelConfig
from contextcrf.recipe import Recipe


def fit(
    data: Path,
    out: Path,
    model: ModelConfig,
    recipe: Recipe,
    train_split: str = "train",
    val_split: str | None = "val",
    pretrained: bool = True,
    init: str | None = None,
    ckpt_path: str | None = None,
) -> None:
    """Train a model; end with `OUT/model`, that `evaluate` and `predict` take.

    Args:
        data: folder of the data set.
        out: folder for logs, checkpoints and the model.
        model: the shape of the model.
        recipe: how to train.
        train_split: split to train on.
        val_split: split to watch; null for none.
        pretrained: start the backbone from ImageNet weights.
        init: a trained model to start from instead; its shape replaces `model`.
        ckpt_path: "last" goes on exactly where the last checkpoint in OUT was written; or a checkpoint's path.
    """
    from contextcrf.data.checks import check_pairs
    from contextcrf.data.dataset import open_dataset
    from contextcrf.data.transforms import training_transform
    from contextcrf.model import ContextCRF
    from contextcrf.storage import load, save
    from contextcrf.training import fit as run

    transform = training_transform(recipe.crop, recipe.scale, recipe.colour)
    train = open_dataset(data, train_split, transform)
    val = open_dataset(data, val_split) if val_split else None
    for part in (train, val) if val else (train,):
        check_pairs(part.pairs, len(part.classes), part.void)
    _seed(recipe.seed)
    if init is None:
        network = ContextCRF(model, train.classes, pretrained, recipe.norm_eval)
    else:
        network = load(init)
    run(network, train, val, recipe, out, ckpt_path)
    save(network, out / "model", {"data": data.name, "train_split": train_split, "recipe": recipe.to_dict()})
    print(f"model written to {out / 'model'}")


def _seed(seed: int) -> None:
    import torch

    torch.manual_seed(seed)


COMMANDS: dict[str, Any] = {"fit": fit}


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `contextcrf`."""
    from jsonargparse import auto_cli

    auto_cli(COMMANDS, args=arguments, as_positional=False, fail_untyped=True)
