"""The page in a real browser: Chromium without a window, as somebody would use it."""

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

# Milliseconds: machines are slow at times.
PATIENCE = 120_000


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """A tab with the page of a model that has not been trained; the addresses it asks are in `page.asked`."""
    from playwright.sync_api import sync_playwright

    folder = tmp_path_factory.mktemp("browser")
    torch.manual_seed(0)
    config = ModelConfig(backbone="plain", channels=8, hidden=8, scales=(1.0,))
    model = ContextCRF(config, ContextScenes.classes, pretrained=False)
    for head in model.pairwise.values():
        head.last.reset_parameters()  # as if trained
    save(model, folder / "model")
    with served(folder / "model", folder / "home", "--max_mb", "1") as server, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1400, "height": 1000})
        tab.set_default_timeout(PATIENCE)
        asked = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.asked, tab.server = asked, server
        yield tab
        browser.close()


@pytest.fixture
def page(tab):
    """The page, freshly opened."""
    tab.goto(tab.server.address)
    tab.locator("#message", has_text="JPEG, PNG, WebP or BMP").wait_for()
    return tab


@pytest.fixture
def scene():
    image, _ = ContextScenes(2, "val", 64, 96).render(0)
    return Image.fromarray(image)


def drop(page, data, answer):
    """Give the page a file, and wait for its answer; the whole of it."""
    file = {"name": "picture.png", "mimeType": "application/octet-stream", "buffer": data}
    page.locator("#drop input[type=file]").set_input_files(file)
    found = page.locator("#message .done, #message .refused", has_text=answer)
    found.wait_for()
    return found.inner_text()


def shown(page, view):
    """The pixels of a picture on the page, as the browser has them; of the scene, which is enlarged, every sixth."""
    place = page.locator(f"#{view} img")
    place.wait_for()
    page.wait_for_function(f"document.querySelector('#{view} img').complete")
    with Image.open(io.BytesIO(page.request.get(place.get_attribute("src")).body())) as file:
        pixels = np.array(file.convert("RGB"))
    return pixels if view == "why" else pixels[::6, ::6]


def changed(page, view, action):
    """A picture after an action that changes it."""
    before = page.locator(f"#{view} img").get_attribute("src")
    action()
    page.wait_for_function(
        f"before => document.querySelector('#{view} img')?.src !== before", arg=before, timeout=PATIENCE
    )
    return shown(page, view)


def test_from_a_picture_to_the_reason_of_a_label(page, scene):
    message = drop(page, encoded(scene), "96 x 64 px. The CRF changes")
    image, unary, crf, refined = (shown(page, view) for view in ("image", "unary", "crf", "refined"))
    assert np.array_equal(image, np.array(scene))
    assert len({picture.tobytes() for picture in (image, unary, crf, refined)}) == 4

    # A slider moves the CRF, and leaves the unary.
    weight = page.locator("#weight-above input[type=number]")
    moved = changed(page, "crf", lambda: (weight.fill("16"), weight.press("Enter")))
    assert not np.array_equal(moved, crf)
    assert np.array_equal(shown(page, "unary"), unary)
    slider = page.locator("#opacity input[type=range]")
    slider.focus()
    clear = changed(page, "crf", lambda: slider.press("Home"))
    assert np.array_equal(clear, image)

    # A click on a pixel is answered for that pixel.
    box = page.locator("#crf img").bounding_box()
    page.locator("#crf img").click(position={"x": box["width"] * 48.5 / 96, "y": box["height"] * 40.5 / 64})
    page.locator("#words", has_text="Row 40, column 48: ").wait_for()
    words = page.locator("#words").inner_text()
    assert "surrounding" in words
    assert "The strongest single vote comes through" in words
    assert shown(page, "why").shape[1] > 2 * 96

    # Back to what the model has.
    page.locator("#opacity input[type=number]").fill("0.5")
    page.locator("#opacity input[type=number]").press("Enter")
    page.locator("#reset").click()
    page.wait_for_function("document.querySelector('#weight-above input[type=number]').value === '0.5'")
    page.locator("#message .done", has_text=message).wait_for()
    assert np.array_equal(shown(page, "crf"), crf)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (bomb(30_000, 30_000), "The picture declares more pixels than any camera's picture and was not decoded"),
        (bomb(8_000, 8_000), "The picture declares 8000 x 8000 pixels and was not decoded"),
        (b"#!/bin/sh\necho no picture", "This is no picture that the page can read: it takes JPEG, PNG, WebP and BMP."),
        (bytes(2_000_000), "The file has 2.0 MB: this page takes at most 1 MB."),
    ],
)
def test_what_is_refused_is_refused_on_the_page(page, scene, data, sentence):
    drop(page, encoded(scene), "96 x 64 px")
    page.locator("#refined img").wait_for()
    assert drop(page, data, sentence).startswith(sentence)
    assert page.locator("#message [role=alert]").count() == 1
    page.locator("#refined img").wait_for(state="detached")
    drop(page, encoded(scene), "96 x 64 px")


def test_the_page_needs_nothing_from_elsewhere(page):
    assert page.asked
    elsewhere = [url for url in page.asked if not url.startswith((page.server.address, "data:", "blob:"))]
    assert elsewhere == []
    assert set(page.server.noted("ask")) <= {"127.0.0.1"}
