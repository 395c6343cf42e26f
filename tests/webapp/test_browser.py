"""The page in a real browser, Chromium without a window."""

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from contextcrf.data.synthetic import ContextScenes
from contextcrf.modeling.config import ModelConfig
from contextcrf.modeling.model import ContextCRF
from contextcrf.modeling.serialization import save
from pictures import bomb, encoded
from serving import served

CHROMIUM = shutil.which("chromium")

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")]

# In milliseconds; machines can be slow.
TIMEOUT = 120_000


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """A tab for the page of an untrained model; `tab.requested` has the addresses that it requests."""
    from playwright.sync_api import sync_playwright

    folder = tmp_path_factory.mktemp("browser")
    torch.manual_seed(0)
    config = ModelConfig(backbone="plain", channels=8, hidden=8, scales=(1.0,))
    model = ContextCRF(config, ContextScenes.classes, pretrained=False)
    for head in model.pairwise.values():
        head.last.reset_parameters()  # as if trained
    save(model, folder / "model")
    with served(folder / "model", folder / "home", "--max-mb", "1") as server, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1400, "height": 1000})
        tab.set_default_timeout(TIMEOUT)
        requested = []
        tab.on("request", lambda request: requested.append(request.url))
        tab.requested, tab.server = requested, server
        yield tab
        browser.close()


@pytest.fixture
def page(tab):
    """The page, freshly opened."""
    tab.goto(tab.server.address)
    tab.locator("#message", has_text="JPEG, PNG, WebP and BMP").wait_for()
    return tab


@pytest.fixture
def scene():
    image, _ = ContextScenes(2, "val", 64, 96).render(0)
    return Image.fromarray(image)


def drop(page, data, text):
    """Drop a file on the page, wait for a message with some text, and return the whole message."""
    file = {"name": "picture.png", "mimeType": "application/octet-stream", "buffer": data}
    page.locator("#drop input[type=file]").set_input_files(file)
    found = page.locator("#message .done, #message .refused", has_text=text)
    found.wait_for()
    return found.inner_text()


def shown(page, view):
    """The pixels of a picture on the page; every sixth of the scene, which is enlarged by six."""
    place = page.locator(f"#{view} img")
    place.wait_for()
    page.wait_for_function(f"document.querySelector('#{view} img').complete")
    with Image.open(io.BytesIO(page.request.get(place.get_attribute("src")).body())) as file:
        pixels = np.array(file.convert("RGB"))
    return pixels if view == "messages" else pixels[::6, ::6]


def changed(page, view, action):
    """The pixels of a picture after an action that changes it."""
    before = page.locator(f"#{view} img").get_attribute("src")
    action()
    page.wait_for_function(
        f"before => document.querySelector('#{view} img')?.src !== before", arg=before, timeout=TIMEOUT
    )
    return shown(page, view)


def test_from_an_image_to_the_explanation_of_a_label(page, scene):
    message = drop(page, encoded(scene), "The image has 96 x 64 pixels. The pairwise potentials change")
    views = ("image", "unary", "unary-pairwise", "unary-pairwise-dense")
    image, unary, pairwise, dense = (shown(page, view) for view in views)
    assert np.array_equal(image, np.array(scene))
    assert len({picture.tobytes() for picture in (image, unary, pairwise, dense)}) == 4

    # A relation weight changes unary+pairwise and not unary.
    weight = page.locator("#weight-above input[type=number]")
    weighted = changed(page, "unary-pairwise", lambda: (weight.fill("16"), weight.press("Enter")))
    assert not np.array_equal(weighted, pairwise)
    assert np.array_equal(shown(page, "unary"), unary)
    slider = page.locator("#opacity input[type=range]")
    slider.focus()
    clear = changed(page, "unary-pairwise", lambda: slider.press("Home"))
    assert np.array_equal(clear, image)

    # A click on a pixel gives the explanation of that pixel.
    box = page.locator("#unary-pairwise img").bounding_box()
    page.locator("#unary-pairwise img").click(position={"x": box["width"] * 48.5 / 96, "y": box["height"] * 40.5 / 64})
    page.locator("#explanation", has_text="Row 40, column 48 is labeled ").wait_for()
    explanation = page.locator("#explanation").inner_text()
    assert "surrounding" in explanation
    assert "The strongest message adds" in explanation
    assert shown(page, "messages").shape[1] > 2 * 96

    # Back to the model's settings.
    page.locator("#opacity input[type=number]").fill("0.5")
    page.locator("#opacity input[type=number]").press("Enter")
    page.locator("#reset").click()
    page.wait_for_function("document.querySelector('#weight-above input[type=number]').value === '0.5'")
    page.locator("#message .done", has_text=message).wait_for()
    assert np.array_equal(shown(page, "unary-pairwise"), pairwise)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            bomb(30_000, 30_000),
            "According to its header, the image has more pixels than Pillow decodes, but the page accepts at most",
        ),
        (bomb(8_000, 8_000), "According to its header, the image has 8000 x 8000 pixels, but the page accepts"),
        (
            b"#!/bin/sh\necho no picture",
            "The file is not an image that the page can read. It accepts JPEG, PNG, WebP and BMP.",
        ),
        (bytes(2_000_000), "The file has 2.0 MB, but the page accepts at most 1 MB."),
    ],
)
def test_a_refusal_is_shown_on_the_page(page, scene, data, sentence):
    drop(page, encoded(scene), "96 x 64 pixels")
    page.locator("#unary-pairwise-dense img").wait_for()
    assert drop(page, data, sentence).startswith(sentence)
    assert page.locator("#message [role=alert]").count() == 1
    page.locator("#unary-pairwise-dense img").wait_for(state="detached")
    drop(page, encoded(scene), "96 x 64 pixels")


def test_the_page_makes_no_request_to_other_machines(page):
    assert page.requested
    elsewhere = [url for url in page.requested if not url.startswith((page.server.address, "data:", "blob:"))]
    assert elsewhere == []
    assert set(page.server.logged("contact")) <= {"127.0.0.1"}
