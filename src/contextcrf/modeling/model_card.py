"""The card of a model: its README on the hub, filled from its configuration and its metadata."""

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
# The settings that are chosen on data; `evaluate` may override the others.
_MEASURED_WITH = ("iterations", "relation_weights", "dense")


def model_card(model: ContextNetwork) -> ModelCard:
    """The card, made from the model's configuration, classes and metadata alone."""
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
    return ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        config=model.config,
        scales=", ".join(f"{scale:g}" for scale in model.config.scales),
        weights=model.inference.weights(model.pairwise),
        dense=dict(model.inference.dense),
        learned_dense=model.dense is not None,
        millions=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        classes=Table(["label", "class", "color"], rows).to_markdown(),
        stages=stages,
        tables=[_table(table) for table in model.metadata.get("measured", [])],
        data=", ".join(sorted({entry["data"] for _, entry in stages})),
    )


def measured(model: ContextNetwork, folder: Path) -> dict[str, Any]:
    """The table that `evaluate` wrote into a folder, for `metadata["measured"]`.

    Raises:
        DataError: there are no results, or they are those of another model or of other inference settings.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected the results of `contextcrf evaluate`")
    kept = ("name", "mean_iou", "pixel_accuracy", "iou")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        metadata, data = dict(results["metadata"]), results["metadata"]["data"]
        systems = [{key: system[key] for key in kept} for system in results["systems"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: {error!r}; expected the results of `contextcrf evaluate`") from error
    if (other := metadata.get("model")) != (ours := fingerprint(model)):
        raise DataError(f"{path}: measured with the model {other}; expected this one, {ours}")
    settings, own = metadata.get("inference", {}), model.inference.changes()
    for name in _MEASURED_WITH:
        if settings.get(name) != own.get(name):
            now, then = (values.get(name, "the default") for values in (own, settings))
            raise DataError(f"{path}: measured with {name} {then}; expected that of the model, {now}")
    return {"data": data, "systems": systems}


def _stages(metadata: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every step that used data, in order; a merged model has the steps of its parts."""
    for name, entry in metadata.items():
        if isinstance(entry, dict) and {"data", "split"} <= entry.keys():
            yield f"{prefix}{name}", entry
        elif isinstance(entry, dict):
            yield from _stages(entry, f"{name}, ")


def _table(measured: dict[str, Any]) -> str:
    rows = [
        [system["name"], f"{100 * system['mean_iou']:.1f}", f"{100 * system['pixel_accuracy']:.1f}"]
        for system in measured["systems"]
    ]
    header = ["system", "mean IoU, %", "pixel accuracy, %"]
    return Table(header, rows, f"On {measured['data']}:").to_markdown()
