"""The page without a browser: its components and the functions behind them."""

import asyncio
from dataclasses import replace

import gradio as gr
import pytest
from PIL import Image

from contextcrf.modeling.merging import with_config
from contextcrf.webapp.limits import Limits
from contextcrf.webapp.page import build
from contextcrf.webapp.session import DENSE_PARAMETERS, OpenedImage, Session
from pictures import bomb, encoded


@pytest.fixture
def scene(scenes):
    return encoded(Image.open(sorted((scenes / "images").iterdir())[0]))


def with_inference(model, **settings):
    """The model with some other inference settings."""
    return with_config(model, model.config, replace(model.inference, **settings))


def built(session):
    """The page of a session. Without a running loop, gradio would make loops for its locks and never close them."""

    async def make():
        return build({"tiny": session})

    return asyncio.run(make())


class Calls:
    """The functions behind a page, by name, and the start values of its components."""

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
        """The opened image, the message, four pictures, the explanation and the picture of its messages."""
        results = self.functions["on_upload"](data, 0.5, *(values or self.values()))
        _, image, message, *pictures, explanation, messages = results
        return image, message, pictures, explanation, messages


@pytest.fixture
def calls(tiny_model):
    return Calls(built(Session(tiny_model, Limits(megabytes=1))))


def test_sliders_start_at_the_models_settings(calls, tiny_model):
    start = {slider.elem_id: slider.value for slider in calls.sliders()}
    assert start["mean-field-iterations"] == tiny_model.inference.iterations
    assert start["weight-surrounding"] == start["weight-above"] == 0.5
    assert start["dense-bilateral_sxy"] == 80
    assert [name for name in start if name.startswith("dense-")] == [f"dense-{name}" for name in DENSE_PARAMETERS]
    assert calls.functions["start_values"]() == list(start.values())


def test_a_value_beyond_the_usual_range_fits_its_slider(tiny_model):
    model = with_inference(tiny_model, relation_weights={"above": 40.0})
    weight = Calls(built(Session(model, Limits()))).component("weight-above")
    assert (weight.value, weight.maximum) == (40, 40)


def test_a_dropped_image_is_shown_four_times(calls, scene):
    image, message, pictures, _, _ = calls.open(scene)
    assert isinstance(image, OpenedImage)
    assert "The image has 96 x 64 pixels. The pairwise potentials change" in message
    assert [picture.size for picture in pictures] == 4 * [(6 * 96, 6 * 64)]  # small images are enlarged
    assert len({picture.tobytes() for picture in pictures}) == 4


def test_opacity_zero_shows_the_image_itself(calls, scene):
    image, *_ = calls.open(scene)
    _, photo, *labeled = calls.functions["on_change"](image, 0.0, *calls.values())
    assert {found.tobytes() for found in labeled} == {photo.tobytes()}


def test_a_slider_changes_only_the_systems_that_use_it(calls, scene):
    image, _, (_, unary, pairwise, dense), _, _ = calls.open(scene)
    on_change = calls.functions["on_change"]
    message, *changed = on_change(image, 0.5, *calls.values(weight_above=16.0))
    assert changed[1].tobytes() == unary.tobytes()
    assert changed[2].tobytes() != pairwise.tobytes()
    assert "change the labels of" in message
    _, *changed = on_change(image, 0.5, *calls.values(dense_bilateral_compat=0, dense_spatial_compat=0))
    assert changed[2].tobytes() == pairwise.tobytes()
    assert changed[3].tobytes() == pairwise.tobytes() != dense.tobytes()


def test_a_click_gives_an_explanation_and_a_picture(calls, scene):
    image, *_ = calls.open(scene)
    on_click = calls.functions["on_click"]
    # The browser sends x, y of the enlarged picture, and x may equal the width.
    event = gr.SelectData(None, {"index": [6 * 96, 6 * 20 + 5], "value": None})
    explanation, messages = on_click(event, image, 0.5, *calls.values())
    assert explanation.startswith("**Row 20, column 95 is labeled ")
    assert messages["visible"]
    assert messages["value"].width > 96
    explanation, messages = on_click(event, image, 0.5, *calls.values(weight_above=0, weight_surrounding=0))
    assert "Raise a weight" in explanation
    assert not messages["visible"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (bomb(30_000, 30_000), "was not decoded"),
        (b"MZ\x90 <script>", "not an image that the page can read"),
        (bytes(1_000_001), "The file has 1.0 MB, but the page accepts at most 1 MB."),
    ],
)
def test_a_refusal_is_a_sentence_and_no_picture_is_shown(calls, scene, data, sentence):
    calls.open(scene)
    image, message, pictures, explanation, messages = calls.open(data)
    assert image is None
    assert sentence in message
    assert 'class="refused"' in message
    assert pictures == 4 * [None]
    assert explanation.startswith("Click a pixel")
    assert not messages["visible"]


def test_without_an_image_sliders_and_clicks_ask_for_one(calls):
    assert "Drop an image file first" in calls.functions["on_change"](None, 0.5, *calls.values())[0]
    event = gr.SelectData(None, {"index": [1, 1], "value": None})
    assert "Drop an image file first" in calls.functions["on_click"](event, None, 0.5, *calls.values())[0]


def test_computations_that_take_too_long_are_reported_everywhere(calls, scene, tiny_model):
    image, *_ = calls.open(scene)
    hasty = Calls(built(Session(tiny_model, Limits(seconds=1e-9))))
    assert "was stopped" in hasty.open(scene)[1]
    assert "was stopped" in hasty.functions["on_change"](image, 0.5, *hasty.values())[0]
    event = gr.SelectData(None, {"index": [1, 1], "value": None})
    assert "was stopped" in hasty.functions["on_click"](event, image, 0.5, *hasty.values())[0]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"relation_weights": {"above": 0.0, "surrounding": 0.0}}, "relation weights of this model are 0"),
        ({"flip": True}, "does not use the test-time augmentation"),
        ({"scales": (0.5, 1.0)}, "does not use the test-time augmentation"),
    ],
)
def test_unusual_settings_are_explained(calls, tiny_model, settings, sentence):
    def text(page):
        return " ".join(block.value for block in page.blocks.values() if isinstance(block, gr.Markdown))

    assert sentence not in text(calls.page)
    assert sentence in text(built(Session(with_inference(tiny_model, **settings), Limits())))


def test_the_plain_sum_is_a_box_to_tick(tiny_model, scene):
    calls = Calls(built(Session(with_inference(tiny_model, relation_weights={"above": None}), Limits())))
    names = [slider.elem_id for slider in calls.sliders()]
    at = names.index("weight-above") + 1
    assert calls.component("plain").value is True
    plain, weighted = ([*calls.values()[:at], ticked, *calls.values()[at:]] for ticked in (True, False))
    assert calls.functions["start_values"]() == plain
    image, *_ = calls.open(scene, *plain)
    assert image.pairwise[0].relation_weights == {"surrounding": 0.5, "above": None}
    calls.functions["on_change"](image, 0.5, *weighted)
    assert image.pairwise[0].relation_weights == {"surrounding": 0.5, "above": 0.5}


def test_a_learned_dense_crf_has_no_sliders(tiny_model, scene):
    model = with_config(tiny_model, replace(tiny_model.config, learned_dense=True))
    calls = Calls(built(Session(model, Limits())))
    assert not [slider for slider in calls.sliders() if slider.elem_id.startswith("dense-")]
    assert "96 x 64 pixels" in calls.open(scene)[1]


def test_class_names_are_shown_as_text(tiny_model):
    names = ("<b>sky</b>", *tiny_model.classes.names[1:])
    tiny_model.classes = replace(tiny_model.classes, names=names)
    page = built(Session(tiny_model, Limits()))
    (legend,) = [block.value for block in page.blocks.values() if "legend" in str(getattr(block, "value", ""))]
    assert "&lt;b&gt;sky&lt;/b&gt;" in legend
    assert "<b>" not in legend


def test_several_models_have_a_menu_and_pages_of_their_own(tiny_model):
    async def make(names):
        return build({name: Session(tiny_model, Limits()) for name in names})

    page = asyncio.run(make(["streets", "objects"]))
    assert [path for path, *_ in page.pages] == ["", "objects"]
    blocks = list(page.blocks.values())
    menus = [block for block in blocks if isinstance(block, gr.Navbar)]
    assert [(menu.page, menu.main_page_name) for menu in menus] == [("", "streets"), ("objects", "streets")]
    assert [block.page for block in blocks if getattr(block, "elem_id", None) == "drop"] == ["", "objects"]
    headings = [block.value for block in blocks if isinstance(block, gr.Markdown)]
    assert all(any(f"contextcrf: {name}\n" in text for text in headings) for name in ("streets", "objects"))
    # One model needs no menu.
    single = asyncio.run(make(["streets"]))
    assert not [block for block in single.blocks.values() if isinstance(block, gr.Navbar)]
