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

_USE = """## Use

```python
from contextcrf import ContextCRF

model = ContextCRF.from_pretrained("OWNER/NAME")  # or a folder
segmentation = model.segment(image)  # PIL image, uint8 array or tensor, of any size
segmentation.labels, segmentation.probabilities
segmentation.overlay().save("overlay.png")
```

On the command line: `contextcrf predict FOLDER photo.jpg --out labels`.
"""


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
    title = "# Semantic segmentation with a deep structured model\n"
    parts = [title, _description(model), _USE, _classes(model), _training(model.metadata)]
    parts += [_measured(model.metadata.get("measured", [])), _license(model)]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(parts))


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


def _description(model: ContextNetwork) -> str:
    config = model.config
    network = "" if config.network == "context" else f" in the network {config.network}"
    scales = ", ".join(f"{scale:g}" for scale in config.scales)
    lines = [
        f"A unary potential on features of `{config.backbone}`{network} scores the classes at every node.",
        f"The image enters the network at the scales {scales}; the feature maps have stride {config.stride}.",
        *(_relation(name, weight) for name, weight in model.inference.weights(model.pairwise).items()),
    ]
    if model.dense is not None:
        lines.append("A dense CRF, whose parameters were learned, can refine the labels.")
    elif model.inference.dense:
        lines.append(f"A dense CRF can refine the labels, with {dict(model.inference.dense)}.")
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return " ".join(lines) + f" The model has {size:.1f} million parameters.\n"


def _relation(name: str, weight: float | None) -> str:
    used = "as a plain sum" if weight is None else f"with the weight {weight:g}"
    return f"The K x K pairwise potential `{name}` {'is switched off' if weight == 0 else f'takes part {used}'}."


def _classes(model: ContextNetwork) -> str:
    rows = [
        [str(number), name, ", ".join(map(str, color))]
        for number, (name, color) in enumerate(zip(model.classes.names, model.classes.palette, strict=True))
    ]
    return f"## Classes\n\n{Table(['label', 'class', 'color'], rows).to_markdown()}"


def _training(metadata: dict[str, Any]) -> str:
    lines = ["## Training\n"]
    for stage, entry in _stages(metadata):
        settings = entry.get("training", {})
        shown = [key for key in ("epochs", "potentials", "optimizer", "lr") if settings.get(key)]
        details = "".join(f", {key} {settings[key]}" for key in shown)
        lines.append(f"- {stage}: {entry['data']}, split {entry['split']}{details}")
    if len(lines) == 1:
        lines.append("The training data were not recorded.")
    return "\n".join([*lines, ""])


def _stages(metadata: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every step that used data, in order; a merged model has the steps of its parts."""
    for name, entry in metadata.items():
        if isinstance(entry, dict) and {"data", "split"} <= entry.keys():
            yield f"{prefix}{name}", entry
        elif isinstance(entry, dict):
            yield from _stages(entry, f"{name}, ")


def _measured(tables: list[dict[str, Any]]) -> str:
    parts = ["## Measured\n"]
    for table in tables:
        rows = [
            [system["name"], f"{100 * system['mean_iou']:.1f}", f"{100 * system['pixel_accuracy']:.1f}"]
            for system in table["systems"]
        ]
        header = ["system", "mean IoU, %", "pixel accuracy, %"]
        parts.append(Table(header, rows, f"On {table['data']}:").to_markdown())
    if not tables:
        parts.append("No measurements were recorded.\n")
    return "\n".join(parts)


def _license(model: ContextNetwork) -> str:
    data = sorted({entry["data"] for _, entry in _stages(model.metadata)})
    trained = f"The weights were trained on {', '.join(data)}" if data else "The training data were not recorded"
    return (
        "## License\n\nThe library contextcrf is under the Apache License 2.0, which does not cover these weights. "
        f"{trained}: the terms of that data hold for their use. Where `{model.config.backbone}` began with ImageNet "
        "weights, the terms of those hold too.\n"
    )
