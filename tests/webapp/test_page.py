"""The page without a browser: its components, and the functions behind them."""

import asyncio
from dataclasses import replace

import gradio as gr
import pytest
from PIL import Image

from contextcrf.webapp.limits import Limits
from contextcrf.webapp.page import build
from contextcrf.webapp.session import DENSE, Picture, Session
from pictures import bomb, encoded


@pytest.fixture
def scene(scenes):
    return encoded(Image.open(sorted((scenes / "images").iterdir())[0]))


def built(session):
    """The page of a session. Without a running loop gradio makes loops for its locks, which nobody closes."""

    async def make():
        return build(session, "tiny")

    return asyncio.run(make())


class Calls:
    """The functions behind a page, by name, and what its components start with."""

    def __init__(self, page):
        self.page = page
        self.functions = {function.name: function.fn for function in page.fns.values()}

    def component(self, elem_id):
        (found,) = [block for block in self.page.blocks.values() if getattr(block, "elem_id", None) == elem_id]
        return found

    def sliders(self):
        return [
            block for block in self.page.blocks.values() if isinstance(block, gr.Slider) and block.elem_id != "opacity"
        ]

    def values(self, **changed):
        """The sliders' values, some of them changed, by elem_id with _ for -."""
        return [changed.get(slider.elem_id.replace("-", "_"), slider.value) for slider in self.sliders()]

    def open(self, data, *values):
        """(the drop zone, the picture, the message, four pictures, words, the picture of why)"""
        _, picture, message, *pictures, words, why = self.functions["opened"](data, 0.5, *(values or self.values()))
        return picture, message, pictures, words, why


@pytest.fixture
def calls(tiny_model):
    return Calls(built(Session(tiny_model, Limits(megabytes=1))))


def test_the_sliders_start_at_the_models_settings(calls, tiny_model):
    start = {slider.elem_id: slider.value for slider in calls.sliders()}
    assert start["mean-field-iterations"] == tiny_model.config.iterations
    assert start["weight-surrounding"] == start["weight-above"] == 0.5
    assert start["dense-bilateral_sxy"] == 80
    assert [name for name in start if name.startswith("dense-")] == [f"dense-{name}" for name in DENSE]
    assert calls.functions["start"]() == list(start.values())


def test_a_value_beyond_the_usual_range_fits_its_slider(tiny_model):
    tiny_model.config.strengths["above"] = 40.0
    weight = Calls(built(Session(tiny_model, Limits()))).component("weight-above")
    assert (weight.value, weight.maximum) == (40, 40)


def test_a_dropped_picture_is_shown_four_times(calls, scene):
    picture, message, pictures, _, _ = calls.open(scene)
    assert isinstance(picture, Picture)
    assert "96 x 64 px. The CRF changes" in message
    assert [image.size for image in pictures] == 4 * [(6 * 96, 6 * 64)]  # a small one is enlarged
    assert len({image.tobytes() for image in pictures}) == 4


def test_opacity_nought_shows_the_picture_itself(calls, scene):
    picture, *_ = calls.open(scene)
    _, image, *labeled = calls.functions["moved"](picture, 0.0, *calls.values())
    assert {found.tobytes() for found in labeled} == {image.tobytes()}


def test_a_slider_changes_what_it_stands_for(calls, scene):
    picture, _, (_, unary, crf, refined), _, _ = calls.open(scene)
    message, *moved = calls.functions["moved"](picture, 0.5, *calls.values(weight_above=16.0))
    assert moved[1].tobytes() == unary.tobytes()
    assert moved[2].tobytes() != crf.tobytes()
    assert "changes" in message
    _, *moved = calls.functions["moved"](picture, 0.5, *calls.values(dense_bilateral_compat=0, dense_spatial_compat=0))
    assert moved[2].tobytes() == crf.tobytes()
    assert moved[3].tobytes() == crf.tobytes() != refined.tobytes()


def test_a_click_is_answered_in_words_and_as_a_picture(calls, scene):
    picture, *_ = calls.open(scene)
    # The browser gives x, y of what it shows, and may give the edge itself.
    event = gr.SelectData(None, {"index": [6 * 96, 6 * 20 + 5], "value": None})
    words, why = calls.functions["clicked"](event, picture, 0.5, *calls.values())
    assert words.startswith("**Row 20, column 95: ")
    assert why["visible"]
    assert why["value"].width > 96
    words, why = calls.functions["clicked"](event, picture, 0.5, *calls.values(weight_above=0, weight_surrounding=0))
    assert "Move a weight up" in words
    assert not why["visible"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (bomb(30_000, 30_000), "was not decoded"),
        (b"MZ\x90 <script>", "no picture that the page can read"),
        (bytes(1_000_001), "The file has 1.0 MB: this page takes at most 1 MB."),
    ],
)
def test_what_is_refused_is_refused_in_a_sentence_and_nothing_is_shown(calls, scene, data, sentence):
    calls.open(scene)
    picture, message, pictures, words, why = calls.open(data)
    assert picture is None
    assert sentence in message
    assert 'class="refused"' in message
    assert pictures == 4 * [None]
    assert words.startswith("Click a pixel")
    assert not why["visible"]


def test_without_a_picture_sliders_and_clicks_say_so(calls):
    assert "drop one first" in calls.functions["moved"](None, 0.5, *calls.values())[0]
    event = gr.SelectData(None, {"index": [1, 1], "value": None})
    assert "drop one first" in calls.functions["clicked"](event, None, 0.5, *calls.values())[0]


def test_what_takes_too_long_says_so_everywhere(calls, scene, tiny_model):
    picture, *_ = calls.open(scene)
    hasty = Calls(built(Session(tiny_model, Limits(seconds=1e-9))))
    assert "was stopped" in hasty.open(scene)[1]
    assert "was stopped" in hasty.functions["moved"](picture, 0.5, *hasty.values())[0]
    event = gr.SelectData(None, {"index": [1, 1], "value": None})
    assert "was stopped" in hasty.functions["clicked"](event, picture, 0.5, *hasty.values())[0]


def test_weights_of_nought_are_explained(calls, tiny_model):
    def text(page):
        return " ".join(block.value for block in page.blocks.values() if isinstance(block, gr.Markdown))

    assert "relations are 0" not in text(calls.page)
    tiny_model.config.strengths.update(above=0.0, surrounding=0.0)
    assert "relations are 0" in text(built(Session(tiny_model, Limits())))


def test_the_plain_sum_is_a_box_to_tick(tiny_model, scene):
    tiny_model.config.strengths["above"] = None
    calls = Calls(built(Session(tiny_model, Limits())))
    names = [slider.elem_id for slider in calls.sliders()]
    at = names.index("weight-above") + 1
    assert calls.component("plain").value is True
    plain, weighed = ([*calls.values()[:at], ticked, *calls.values()[at:]] for ticked in (True, False))
    assert calls.functions["start"]() == plain
    picture, *_ = calls.open(scene, *plain)
    assert picture.crf[0][1] == {"surrounding": 0.5, "above": None}
    calls.functions["moved"](picture, 0.5, *weighed)
    assert picture.crf[0][1] == {"surrounding": 0.5, "above": 0.5}


def test_a_learned_dense_crf_has_no_sliders(tiny_model, scene):
    tiny_model.learn_dense(tiny_model.config.dense)
    calls = Calls(built(Session(tiny_model, Limits())))
    assert not [slider for slider in calls.sliders() if slider.elem_id.startswith("dense-")]
    assert "96 x 64 px" in calls.open(scene)[1]


def test_names_of_classes_are_text(tiny_model):
    names = ("<b>sky</b>", *tiny_model.classes.names[1:])
    tiny_model.classes = replace(tiny_model.classes, names=names)
    page = built(Session(tiny_model, Limits()))
    (legend,) = [block.value for block in page.blocks.values() if "legend" in str(getattr(block, "value", ""))]
    assert "&lt;b&gt;sky&lt;/b&gt;" in legend
    assert "<b>" not in legend
