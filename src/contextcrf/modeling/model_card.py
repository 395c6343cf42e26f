"""The card of a model, its README on the hub: what is known of it, and what is not."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contextcrf.modeling.model import ContextCRF
from contextcrf.modeling.serialization import fingerprint
from contextcrf.utils.errors import DataError

_FRONT = """---
library_name: contextcrf
pipeline_tag: image-segmentation
license: other
license_name: see-license-below
tags:
- contextcrf
- semantic-segmentation
- conditional-random-field
- pytorch
---
"""
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


def model_card(model: ContextCRF) -> str:
    """Markdown with the hub's front matter, made from the model's shape, classes and `about` alone."""
    parts = [_FRONT, "# Semantic segmentation with a deep structured model\n", _shape(model), _USE, _classes(model)]
    parts += [_training(model.about), _measured(model.about.get("measured", [])), _license(model)]
    return "\n".join(parts)


def measured(model: ContextCRF, folder: Path) -> dict[str, Any]:
    """What `evaluate` wrote into a folder, for `about["measured"]`.

    Raises:
        DataError: there are no results, or they are those of another model.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected what `contextcrf evaluate` writes")
    results = json.loads(path.read_text())
    if (other := results["about"].get("model")) != (ours := fingerprint(model)):
        raise DataError(f"{path}: measured with the model {other}; expected this one, {ours}")
    kept = ("name", "mean_iou", "pixel_accuracy", "iou")
    return {"data": results["about"]["data"], "rows": [{key: row[key] for key in kept} for row in results["rows"]]}


def _shape(model: ContextCRF) -> str:
    config = model.config
    kind = "" if config.network == "context" else f" in the network {config.network}"
    lines = [f"A unary potential on `{config.backbone}`{kind} labels every place by what is seen there."]
    scales = ", ".join(f"{scale:g}" for scale in config.scales)
    lines.append(f"It sees the image at the scales {scales}; its maps have stride {config.stride}.")
    for name in model.pairwise:
        strength = config.strengths.get(name, 1 / len(model.pairwise))
        votes = "is added as it is" if strength is None else f"has {strength:g} unary votes"
        lines.append(f"The pairwise potential `{name}`, K x K, {'is silent' if strength == 0 else votes}.")
    if config.dense:
        lines.append(f"A dense CRF may refine the labels, with {config.dense}.")
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return " ".join(lines) + f" {size:.1f} million parameters.\n"


def _classes(model: ContextCRF) -> str:
    rows = [
        f"| {number} | {name} | {', '.join(map(str, color))} |"
        for number, (name, color) in enumerate(zip(model.classes.names, model.classes.palette, strict=True))
    ]
    return "\n".join(["## Classes\n", "| label | class | color |", "|---:|---|---|", *rows, ""])


def _training(about: dict[str, Any]) -> str:
    lines = ["## Training\n"]
    for stage, what in _stages(about):
        recipe = what.get("recipe", {})
        details = [f", {key} {recipe[key]}" for key in ("epochs", "potentials", "optimizer", "lr") if recipe.get(key)]
        lines.append(f"- {stage}: {what['data']}, split {what['split']}{''.join(details)}")
    if len(lines) == 1:
        lines.append("What it was trained on was not noted.")
    return "\n".join([*lines, ""])


def _stages(about: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Whatever was done with data, in its order; an assembled model has the stages of its parts."""
    for name, what in about.items():
        if isinstance(what, dict) and {"data", "split"} <= what.keys():
            yield f"{prefix}{name}", what
        elif isinstance(what, dict):
            yield from _stages(what, f"{name}, ")


def _measured(tables: list[dict[str, Any]]) -> str:
    lines = ["## Measured\n"]
    for table in tables:
        lines += [f"On {table['data']}:\n", "| row | mean IoU, % | pixel accuracy, % |", "|---|---:|---:|"]
        for row in table["rows"]:
            lines.append(f"| {row['name']} | {100 * row['mean_iou']:.1f} | {100 * row['pixel_accuracy']:.1f} |")
        lines.append("")
    if not tables:
        lines += ["Nothing was measured, or it was not noted.", ""]
    return "\n".join(lines)


def _license(model: ContextCRF) -> str:
    data = sorted({what["data"] for _, what in _stages(model.about)})
    trained = f"The weights were trained on {', '.join(data)}" if data else "What they were trained on was not noted"
    return (
        "## License\n\nThe library contextcrf is under the Apache License 2.0; that says nothing of these weights. "
        f"{trained}: the terms of that data hold for their use. Where `{model.config.backbone}` began with ImageNet "
        "weights, the terms of those hold too.\n"
    )
