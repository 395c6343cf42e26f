"""The model card: the README of a model on the hub, which is generated from its configuration and its metadata."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from contextcrf.modeling.network import ContextNetwork
from contextcrf.modeling.serialization import fingerprint
from contextcrf.utils.errors import DataError
from contextcrf.utils.tables import Table

_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
# These settings are tuned on data, so the model and the measurement must agree. `evaluate` can override the others.
_MEASURED_WITH = ("iterations", "relation_weights", "dense")
# The settings of a training run in the card, and the headers of their columns.
_TRAINED_WITH = {
    "objective": "objective",
    "epochs": "epochs",
    "potentials": "potentials",
    "optimizer": "optimizer",
    "lr": "learning rate",
}


def model_card(model: ContextNetwork) -> ModelCard:
    """Build the model card from the configurations, the classes and the metadata of a model.

    Args:
        model: the model.

    Returns:
        The card, with a YAML header for the hub. It contains no information that is not in the model.

    Example:
        >>> from contextcrf import load
        >>> "On CamVid val, 101 images:" in model_card(load("camvid")).content
        True
    """
    data = ModelCardData(
        library_name="contextcrf",
        pipeline_tag="image-segmentation",
        license="other",
        license_name="see-license-below",
        tags=["contextcrf", "semantic-segmentation", "conditional-random-field", "pytorch"],
    )
    classes = zip(model.classes.names, model.classes.palette, strict=True)
    rows = [[str(number), name, ", ".join(map(str, color))] for number, (name, color) in enumerate(classes)]
    stages = list(_stages(model.metadata))
    weights = [[name, _relation_weight(model, name)] for name in model.pairwise]
    dense = [[name, _text(value)] for name, value in model.inference.dense.items()]
    return ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        config=model.config,
        num_classes=len(model.classes),
        scales=_text(model.config.scales),
        weights=Table(["relation", "weight in mean field"], weights).to_markdown() if weights else "",
        dense=Table(["parameter of the dense CRF", "value"], dense).to_markdown() if dense else "",
        learned_dense=model.dense is not None,
        millions=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        classes=Table(["label", "class", "color"], rows).to_markdown(),
        stages=_stage_table(stages),
        tables=[_table(table) for table in model.metadata.get("measured", [])],
        data=", ".join(sorted({entry["data"] for _, entry in stages})),
    )


def measured(model: ContextNetwork, folder: Path) -> dict[str, Any]:
    """Read the results that `evaluate` wrote into a folder.

    Args:
        model: the model that was measured.
        folder: the folder of the results.

    Returns:
        An entry for the list `metadata["measured"]`, from which the card makes a table.

    Raises:
        DataError: If there are no results, or if another model or other inference settings were measured.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise DataError(f"{path} does not exist. Expected the results of `contextcrf evaluate`.")
    kept = ("name", "mean_iou", "pixel_accuracy", "iou")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        metadata, data = dict(results["metadata"]), results["metadata"]["data"]
        systems = [{key: system[key] for key in kept} for system in results["systems"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error!r}. Expected the results of `contextcrf evaluate`.") from error
    if (other := metadata.get("model")) != (ours := fingerprint(model)):
        raise DataError(
            f"{path} contains results of the model {other}, but the model has the fingerprint {ours}. Evaluate "
            "this model."
        )
    settings, own = metadata.get("inference", {}), model.inference.changes()
    for name in _MEASURED_WITH:
        if settings.get(name) != own.get(name):
            now, then = (values.get(name, "(default)") for values in (own, settings))
            raise DataError(
                f"{path} was measured with the {name} {then}, but the model has the {name} {now}. Evaluate the "
                "model with its own settings."
            )
    caveat = {"caveat": metadata["caveat"]} if "caveat" in metadata else {}
    return {"data": data, "systems": systems, **caveat}


def _stages(metadata: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the steps that used data, in order. A merged model has the steps of all its parts."""
    for name, entry in metadata.items():
        if isinstance(entry, dict) and {"data", "split"} <= entry.keys():
            yield f"{prefix}{name}", entry
        elif isinstance(entry, dict):
            yield from _stages(entry, f"{name}, ")


def _stage_table(stages: list[tuple[str, dict[str, Any]]]) -> str:
    """Return a table of the steps with a column for each setting that was recorded, or "" without steps."""
    trainings = [entry.get("training") or {} for _, entry in stages]
    recorded = [key for key in _TRAINED_WITH if any(training.get(key) for training in trainings)]
    rows = [
        [stage, str(entry["data"]), str(entry["split"]), *(_text(training.get(key)) for key in recorded)]
        for (stage, entry), training in zip(stages, trainings, strict=True)
    ]
    header = ["step", "data", "split", *(_TRAINED_WITH[key] for key in recorded)]
    return Table(header, rows).to_markdown() if rows else ""


def _relation_weight(model: ContextNetwork, relation: str) -> str:
    """Return the weight of a relation as text, or the range of its learned weights over the classes."""
    weight, offsets = model.inference.weights(model.pairwise)[relation], model.weight_offsets
    if weight is None:
        return "plain sum of the messages" + ("" if offsets is None else ", plus a learned number for each class")
    if offsets is not None:
        low, high = (weight + value.item() for value in offsets[relation].detach().aminmax())
        return f"{low:.2f} to {high:.2f}, learned for each class"
    return f"{weight:g}" if weight else "0 (switched off)"


def _text(value: Any) -> str:
    """Return a setting as text: numbers and names, joined with commas in a list. None is an empty cell."""
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _table(measured: dict[str, Any]) -> str:
    """Return the table of a measurement, with its data in the caption."""
    rows = [
        [system["name"], f"{100 * system['mean_iou']:.1f}", f"{100 * system['pixel_accuracy']:.1f}"]
        for system in measured["systems"]
    ]
    header = ["system", "mean IoU in %", "pixel accuracy in %"]
    table = Table(header, rows, f"On {measured['data']}:").to_markdown()
    return f"{table}\n{measured['caveat']}\n" if "caveat" in measured else table
