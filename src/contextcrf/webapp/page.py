"""The layout of the page and the functions of its components. The module `session` has the computations."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr
from PIL import Image

from contextcrf.data.classes import Classes
from contextcrf.modeling.config import InferenceConfig
from contextcrf.modeling.system import FULL, UNARY_ONLY, UNARY_PAIRWISE
from contextcrf.webapp.limits import Limits, Refusal
from contextcrf.webapp.session import DENSE_PARAMETERS, Labelings, OpenedImage, Session, with_dense

# Small images are enlarged by a whole factor, at most to this longer side in pixels.
ENLARGED_SIDE = 640

VIEWS = ("image", UNARY_ONLY.name, UNARY_PAIRWISE.name, FULL.name)

# Largest value and step of the sliders. The range of a slider is extended to its start value.
MEAN_FIELD_ITERATIONS, RELATION_WEIGHT = (10, 1), (16.0, 0.25)
DENSE_RANGES = {
    "spatial_sxy": (0.5, 20.0, 0.5),
    "spatial_compat": (0.0, 20.0, 0.5),
    "bilateral_sxy": (1.0, 160.0, 1.0),
    "bilateral_srgb": (1.0, 60.0, 1.0),
    "bilateral_compat": (0.0, 20.0, 0.5),
    "iterations": (0.0, 20.0, 1.0),
}
DENSE_LABELS = {
    "spatial_sxy": "spatial standard deviation, px",
    "spatial_compat": "spatial weight",
    "bilateral_sxy": "bilateral standard deviation, px",
    "bilateral_srgb": "bilateral standard deviation, color",
    "bilateral_compat": "bilateral weight",
    "iterations": "dense CRF iterations",
}

CSS = """
.legend { display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: 0.9em; }
.legend i { display: inline-block; width: 0.9em; height: 0.9em; margin-right: 5px; border: 1px solid #8888; }
#message { font-size: 1.05em; }
#message .refused { border-left: 4px solid #c62828; padding: 6px 12px; background: #c6282818; }
#message .done { border-left: 4px solid #2e7d32; padding: 6px 12px; background: #2e7d3218; }
"""

NO_IMAGE = "The page has no image yet. Drop an image file first."

CLICK = f"Click a pixel in one of the figures for an explanation of its label in {UNARY_PAIRWISE.name}."


def build(sessions: Mapping[str, Session]) -> gr.Blocks:
    """Return the page, with a menu of the models if there are several. Every model has a page of its own.

    Args:
        sessions: the sessions by the names of the models. The page opens with the first of them.
    """
    (first, session), *others = sessions.items()
    title = first if not others else "bundled models"
    page = gr.Blocks(title=f"contextcrf: {title}", analytics_enabled=False, delete_cache=(600, 3600))
    with page:
        if others:
            gr.Navbar(main_page_name=first)
        _add_components(session, first)
    for name, session in others:
        with page.route(name):
            gr.Navbar(main_page_name=first)
            _add_components(session, name)
    return page


def _add_components(session: Session, name: str) -> None:
    """Add the components of one model to the page that is being built.

    Args:
        session: the model and the limits.
        name: name of the model for the heading.
    """
    limits = session.limits
    gr.Markdown(f"## contextcrf: {name}\n{_introduction(session)}")
    opened = gr.State(None)
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            drop = gr.File(label="image file", type="binary", height=170, elem_id="drop")
            message = gr.HTML(_done(_accepted(limits)), elem_id="message")
            opacity = gr.Slider(0, 1, 0.5, step=0.05, label="opacity of the colors", elem_id="opacity")
            sliders = _Sliders(session)
            reset = gr.Button("Reset to the model's settings", elem_id="reset")
        with gr.Column(scale=3, min_width=480):
            views = []
            for pair in (VIEWS[:2], VIEWS[2:]):
                with gr.Row():
                    views += [_view(view) for view in pair]
            gr.HTML(_legend(session.model.classes))
            explanation = gr.Markdown(CLICK, elem_id="explanation")
            messages = _view("messages", visible=False)

    hidden = gr.update(value=None, visible=False)
    inputs = [opened, opacity, *sliders.all]

    def on_upload(data: bytes | None, opacity: float, *values: Any) -> list[Any]:
        def refused(text: str) -> list[Any]:
            return [None, None, _refused(text), *([None] * len(VIEWS)), CLICK, hidden]

        if data is None:
            return refused(NO_IMAGE)
        try:
            image = session.open(data)
            labelings = session.segment(image, sliders.inference(values))
        except Refusal as error:
            return refused(str(error))
        return [None, image, _done(_summary(image, labelings)), *_pictures(labelings, opacity), CLICK, hidden]

    def on_change(image: OpenedImage | None, opacity: float, *values: Any) -> list[Any]:
        if image is None:
            return [_refused(NO_IMAGE), *([gr.skip()] * len(VIEWS))]
        try:
            labelings = session.segment(image, sliders.inference(values))
        except Refusal as error:
            return [_refused(str(error)), *([gr.skip()] * len(VIEWS))]
        return [_done(_summary(image, labelings)), *_pictures(labelings, opacity)]

    def on_click(event: gr.SelectData, image: OpenedImage | None, opacity: float, *values: Any) -> list[Any]:
        if image is None:
            return [NO_IMAGE, hidden]
        height, width = image.size
        column, row = (
            min(max(0, int(place) // _zoom(width, height)), side - 1)
            for place, side in zip(event.index, (width, height), strict=True)
        )
        try:
            found = session.explain(image, sliders.inference(values), (row, column))
        except Refusal as error:
            return [str(error), hidden]
        return [found.text, gr.update(value=found.picture, visible=found.picture is not None)]

    # Parallel computations would share the processor and exceed their time limits.
    one: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
    drop.upload(
        on_upload,
        [drop, *inputs[1:]],
        [drop, opened, message, *views, explanation, messages],
        trigger_mode="always_last",
        **one,
    )
    changes = [slider.input for slider in (opacity, *sliders.all)]
    gr.on(changes, on_change, inputs, [message, *views], trigger_mode="always_last", show_progress="minimal", **one)
    back = reset.click(sliders.start_values, None, sliders.all, api_visibility="private")
    back.then(on_change, inputs, [message, *views], **one)
    clicks = [view.select for view in views]
    gr.on(clicks, on_click, inputs, [explanation, messages], trigger_mode="always_last", **one)


class _Sliders:
    """The sliders of mean field and of the dense CRF, which are added to the page that is being built.

    Attributes:
        all: the components in the order of their values.
    """

    def __init__(self, session: Session) -> None:
        self._own = session.inference
        relations = tuple(session.model.pairwise)
        # A relation with the plain sum has no weight, so its slider starts at the default.
        defaults = InferenceConfig().weights(relations)
        weights = self._own.weights(relations)
        self._weights: dict[str, Any] = {
            name: defaults[name] if weight is None else weight for name, weight in weights.items()
        }
        self._plain = [name for name, weight in weights.items() if weight is None]
        # A parameter with a value for each channel or class has no slider.
        scalars = [name for name in DENSE_PARAMETERS if isinstance(self._own.dense.get(name), int | float)]
        self._dense = [] if session.model.dense is not None else scalars
        with gr.Accordion("Mean field"):
            self.all: list[Any] = [
                _slider(
                    "mean-field iterations", (0, *MEAN_FIELD_ITERATIONS), self._own.iterations, "mean-field-iterations"
                )
            ]
            for name, weight in self._weights.items():
                self.all.append(_slider(f"weight of {name}", (0, *RELATION_WEIGHT), weight, f"weight-{name}"))
            if self._plain:
                label = f"plain sum of the paper instead of the weight of {', '.join(self._plain)}"
                self.all.append(gr.Checkbox(True, label=label, elem_id="plain"))
        if not self._dense:
            gr.Markdown("The parameters of this model's dense CRF are learned, so they have no sliders.")
            return
        with gr.Accordion("Dense CRF"):
            for name in self._dense:
                start = self._own.dense[name]
                assert isinstance(start, int | float)
                self.all.append(_slider(DENSE_LABELS[name], DENSE_RANGES[name], start, f"dense-{name}"))

    def start_values(self) -> list[Any]:
        """Return the values of the sliders for the settings of the model."""
        values: list[Any] = [self._own.iterations, *self._weights.values()]
        values += [True] if self._plain else []
        values += [self._own.dense[name] for name in self._dense]
        return values if len(values) > 1 else values[0]

    def inference(self, values: Sequence[Any]) -> InferenceConfig:
        """Return the inference settings for the values of the sliders, in the order of `all`."""
        rest = list(values)
        iterations = int(rest.pop(0))
        weights: dict[str, float | None] = {name: rest.pop(0) for name in self._weights}
        if self._plain and rest.pop(0):
            weights.update(dict.fromkeys(self._plain))
        inference = replace(self._own, iterations=iterations, relation_weights=weights)
        return with_dense(inference, dict(zip(self._dense, rest, strict=True))) if self._dense else inference


def _slider(label: str, span: tuple[float, float, float], value: float, elem_id: str) -> gr.Slider:
    low, high, step = span
    return gr.Slider(min(low, value), max(high, value), value, step=step, label=label, elem_id=elem_id)


def _view(name: str, visible: bool = True) -> gr.Image:
    # PNG has exactly the colors of the legend.
    return gr.Image(
        label=name,
        format="png",
        type="pil",
        interactive=False,
        buttons=["fullscreen"],
        visible=visible,
        elem_id=name.replace("+", "-"),
    )


def _pictures(labelings: Labelings, opacity: float) -> list[Image.Image]:
    """Return the image and its overlays with the labels of each system."""
    image = labelings.unary.picture
    systems = (labelings.unary, labelings.pairwise, labelings.dense)
    pictures = [image, *(labeling.overlay(opacity) for labeling in systems)]
    zoom = _zoom(*image.size)
    return [one.resize((zoom * one.width, zoom * one.height), Image.Resampling.NEAREST) for one in pictures]


def _zoom(width: int, height: int) -> int:
    """Return the whole factor by which a small image is enlarged, since gradio does not enlarge images."""
    return max(1, ENLARGED_SIDE // max(width, height))


def _introduction(session: Session) -> str:
    unary, pairwise, dense = VIEWS[1:]
    lines = [
        f"**{unary}** labels each place by itself. **{pairwise}** adds the messages of the neighbors by mean field. "
        f"**{dense}** refines the result with a dense CRF, which follows the edges in the image. The images stay on "
        "this machine.",
    ]
    weights = session.inference.relation_weights
    if not weights:
        lines.append(f"This model has no pairwise potentials, so {pairwise} is the same as {unary}.")
    elif session.model.weight_offsets is None and all(weight == 0 for weight in weights.values()):
        lines.append(
            f"The relation weights of this model are 0, so {pairwise} is the same as {unary} until you raise a weight."
        )
    own = session.model.inference
    if (own.scales, own.flip) != (session.inference.scales, session.inference.flip):
        lines.append("The page does not use the test-time augmentation of this model.")
    return " ".join(lines)


def _accepted(limits: Limits) -> str:
    return (
        f"The page accepts JPEG, PNG, WebP and BMP files of at most {limits.megabytes:g} MB and "
        f"{limits.pixels / 1e6:g} megapixels. Larger images are shrunk to a longer side of {limits.side} pixels."
    )


def _summary(image: OpenedImage, labelings: Labelings) -> str:
    height, width = image.size
    size = f"{width} x {height} pixels"
    if image.original != (width, height):
        size += f" (shrunk from {image.original[0]} x {image.original[1]})"
    pairwise, dense = labelings.changes()
    return (
        f"The image has {size}. The pairwise potentials change the labels of {pairwise:.1%} of the pixels. The dense "
        f"CRF then changes the labels of {dense:.1%} of the pixels."
    )


def _done(text: str) -> str:
    return f'<div class="done">{html.escape(text)}</div>'


def _refused(text: str) -> str:
    return f'<div class="refused" role="alert">{html.escape(text)}</div>'


def _legend(classes: Classes) -> str:
    chips = "".join(
        f'<span><i style="background: rgb{tuple(color)}"></i>{html.escape(name)}</span>'
        for name, color in zip(classes.names, classes.palette, strict=True)
    )
    return f'<div class="legend">{chips}</div>'
