"""The layout of the page: which component shows or asks what. What is computed is in `session`."""

import html
from collections.abc import Sequence
from typing import Any

import gradio as gr
from PIL import Image

from contextcrf.data.classes import Classes
from contextcrf.inference.segmentation import Segmentation
from contextcrf.webapp.limits import Limits, Refusal
from contextcrf.webapp.session import DENSE, Picture, Results, Session, Settings

# Small pictures are enlarged by a whole number, up to this longer side.
SIDE = 640

VIEWS = ("image", "unary", "CRF", "refined")

# Largest value and step of the sliders; one that starts higher ends there.
ITERATIONS, STRENGTH = (10, 1), (16.0, 0.25)
DENSE_RANGES = {
    "spatial_sxy": (0.5, 20.0, 0.5),
    "spatial_compat": (0.0, 20.0, 0.5),
    "bilateral_sxy": (1.0, 160.0, 1.0),
    "bilateral_srgb": (1.0, 60.0, 1.0),
    "bilateral_compat": (0.0, 20.0, 0.5),
    "iterations": (0.0, 20.0, 1.0),
}
DENSE_LABELS = {
    "spatial_sxy": "spatial width, px",
    "spatial_compat": "spatial weight",
    "bilateral_sxy": "bilateral width, px",
    "bilateral_srgb": "bilateral width in color",
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

NOTHING = "The page holds no picture: drop one first."

CLICK = "Click a pixel in one of the pictures to see who voted for the label that the CRF gives it, and why."


def build(session: Session, name: str) -> gr.Blocks:
    """The page of one model.

    Args:
        session: the model and the limits.
        name: of the model, for the title.
    """
    start, limits = session.defaults(), session.limits
    page = gr.Blocks(title=f"contextcrf: {name}", analytics_enabled=False, delete_cache=(600, 3600))
    with page:
        gr.Markdown(f"## contextcrf: {name}\n{_introduction(session)}")
        picture = gr.State(None)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                drop = gr.File(label="picture", type="binary", height=170, elem_id="drop")
                message = gr.HTML(_done(_offer(limits)), elem_id="message")
                opacity = gr.Slider(0, 1, 0.5, step=0.05, label="opacity of the colors", elem_id="opacity")
                sliders = _Sliders(session, start)
                reset = gr.Button("The model's own settings", elem_id="reset")
            with gr.Column(scale=3, min_width=480):
                shown = []
                for pair in (VIEWS[:2], VIEWS[2:]):
                    with gr.Row():
                        shown += [_view(view) for view in pair]
                gr.HTML(_legend(session.model.classes))
                words = gr.Markdown(CLICK, elem_id="words")
                why = _view("why", visible=False)

        hidden = gr.update(value=None, visible=False)
        emptied = [None] * len(VIEWS)
        inputs = [picture, opacity, *sliders.all]

        def opened(data: bytes | None, opacity: float, *values: Any) -> list[Any]:
            if data is None:
                return [None, None, _refused(NOTHING), *emptied, CLICK, hidden]
            try:
                found = session.open(data)
                results = session.segment(found, sliders.read(values))
            except Refusal as error:
                return [None, None, _refused(str(error)), *emptied, CLICK, hidden]
            return [None, found, _done(_summary(found, results)), *_pictures(results, opacity), CLICK, hidden]

        def moved(found: Picture | None, opacity: float, *values: Any) -> list[Any]:
            if found is None:
                return [_refused(NOTHING), *([gr.skip()] * len(VIEWS))]
            try:
                results = session.segment(found, sliders.read(values))
            except Refusal as error:
                return [_refused(str(error)), *([gr.skip()] * len(VIEWS))]
            return [_done(_summary(found, results)), *_pictures(results, opacity)]

        def clicked(event: gr.SelectData, found: Picture | None, opacity: float, *values: Any) -> list[Any]:
            if found is None:
                return [NOTHING, hidden]
            height, width = found.size
            column, row = (
                min(max(0, int(at) // _zoom(width, height)), most - 1)
                for at, most in zip(event.index, (width, height), strict=True)
            )
            try:
                answer = session.explain(found, sliders.read(values), (row, column))
            except Refusal as error:
                return [str(error), hidden]
            return [answer.words, gr.update(value=answer.picture, visible=answer.picture is not None)]

        # One computation at a time: they share the processor, and their limits of time count what is theirs.
        one: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        drop.upload(
            opened, [drop, *inputs[1:]], [drop, picture, message, *shown, words, why], trigger_mode="always_last", **one
        )
        moves = [slider.input for slider in (opacity, *sliders.all)]
        gr.on(moves, moved, inputs, [message, *shown], trigger_mode="always_last", show_progress="minimal", **one)
        back = reset.click(sliders.start, None, sliders.all, api_visibility="private")
        back.then(moved, inputs, [message, *shown], **one)
        gr.on([view.select for view in shown], clicked, inputs, [words, why], trigger_mode="always_last", **one)
    return page


class _Sliders:
    """The sliders of mean field and of the dense CRF, in the page that is being built.

    Attributes:
        all: the components, in the order in which their values come.
    """

    def __init__(self, session: Session, start: Settings) -> None:
        self._start = start
        self._names = tuple(start.strengths)
        self._plain = [name for name, strength in start.strengths.items() if strength is None]
        with gr.Accordion("Mean field"):
            self.all: list[Any] = [
                _slider("mean-field iterations", (0, *ITERATIONS), start.iterations, "mean-field-iterations")
            ]
            for name in self._names:
                self.all.append(_slider(f"weight of {name}", (0, *STRENGTH), self._votes(name), f"weight-{name}"))
            if self._plain:
                label = f"plain sum of the paper, without weights: {', '.join(self._plain)}"
                self.all.append(gr.Checkbox(True, label=label, elem_id="plain"))
        if start.dense is None:
            gr.Markdown("The dense CRF of this model is learned: it has no sliders.")
            return
        with gr.Accordion("Dense CRF"):
            for name in DENSE:
                self.all.append(_slider(DENSE_LABELS[name], DENSE_RANGES[name], start.dense[name], f"dense-{name}"))

    def _votes(self, name: str) -> float:
        strength = self._start.strengths[name]
        return 1 / len(self._names) if strength is None else strength

    def start(self) -> list[Any]:
        """The values that the model has."""
        values: list[Any] = [self._start.iterations, *map(self._votes, self._names)]
        values += [True] if self._plain else []
        values += [self._start.dense[name] for name in DENSE] if self._start.dense is not None else []
        return values if len(values) > 1 else values[0]

    def read(self, values: Sequence[Any]) -> Settings:
        """Settings from the values of `all`."""
        rest = list(values)
        iterations = int(rest.pop(0))
        strengths: dict[str, float | None] = {name: rest.pop(0) for name in self._names}
        if self._plain and rest.pop(0):
            strengths.update(dict.fromkeys(self._plain))
        return Settings(iterations, strengths, dict(zip(DENSE, rest, strict=True)) if rest else None)


def _slider(label: str, span: tuple[float, float, float], value: float, key: str) -> gr.Slider:
    low, high, step = span
    return gr.Slider(min(low, value), max(high, value), value, step=step, label=label, elem_id=key)


def _view(name: str, visible: bool = True) -> gr.Image:
    # PNG: the colors are those of the legend.
    return gr.Image(
        label=name,
        format="png",
        type="pil",
        interactive=False,
        buttons=["fullscreen"],
        visible=visible,
        elem_id=name.lower(),
    )


def _pictures(results: Results, opacity: float) -> list[Image.Image]:
    photo = Image.fromarray(results.crf.image.permute(1, 2, 0).numpy())
    labeled: list[Segmentation] = [results.unary, results.crf, results.refined]
    pictures = [photo, *(found.overlay(opacity) for found in labeled)]
    zoom = _zoom(*photo.size)
    return [one.resize((zoom * one.width, zoom * one.height), Image.Resampling.NEAREST) for one in pictures]


def _zoom(width: int, height: int) -> int:
    """How many pixels on the page a pixel of a small picture becomes; gradio enlarges none."""
    return max(1, SIDE // max(width, height))


def _introduction(session: Session) -> str:
    lines = [
        "The **unary** labels every place by itself; in the **CRF** its neighbors vote too (mean field); **refined** "
        "is the dense CRF behind it, which follows the edges of the picture. Everything stays on this machine.",
    ]
    names, strengths = list(session.model.pairwise), session.defaults().strengths
    if not names:
        lines.append("This model has no pairwise potentials: its CRF is its unary.")
    elif all(strength == 0 for strength in strengths.values()):
        lines.append(
            "The weights of this model's relations are 0, so its CRF is its unary: the sliders start there; move them "
            "up to hear what the neighbors say."
        )
    return " ".join(lines)


def _offer(limits: Limits) -> str:
    return (
        f"JPEG, PNG, WebP or BMP, at most {limits.megabytes:g} MB and {limits.pixels / 1e6:g} megapixels; shown with "
        f"at most {limits.side} pixels a side."
    )


def _summary(found: Picture, results: Results) -> str:
    height, width = found.size
    size = f"{width} x {height} px"
    if found.original != (width, height):
        size += f" (shrunk from {found.original[0]} x {found.original[1]})"
    crf, dense = results.changes()
    return f"{size}. The CRF changes {crf:.1%} of the unary's labels, the dense CRF {dense:.1%} of the CRF's."


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
