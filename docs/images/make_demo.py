"""The pictures of docs/demo.md: the page of a model in Chromium, with a synthetic scene.

contextcrf quickstart --out demo
python docs/images/make_demo.py demo/model
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from contextcrf import load
from contextcrf.data.synthetic import ContextScenes
from contextcrf.webapp.limits import Limits
from contextcrf.webapp.server import running
from contextcrf.webapp.session import Session

OUT = Path(__file__).parent
SCENE = 3
# Row and column of the pixel that is clicked. It lies in a white disc, a boat that the unary labels sheep.
PIXEL = (130, 116)
# The image to which a file of some kilobytes may unpack.
BOMB = Image.new("1", (8000, 8000))


def drop(page: Page, image: Image.Image) -> None:
    """Drop an image on the page."""
    file = io.BytesIO()
    image.save(file, "PNG")
    page.locator("#drop input[type=file]").set_input_files(
        {"name": "image.png", "mimeType": "image/png", "buffer": file.getvalue()}
    )


def save(screenshot: bytes, name: str) -> None:
    """Write a screenshot with 256 colors, which takes a third of the bytes."""
    Image.open(io.BytesIO(screenshot)).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(
        OUT / name, optimize=True
    )


def photograph(page: Page, scene: Image.Image) -> None:
    """Take a screenshot after the scene is dropped and the pixel clicked, and one after a decompression bomb."""
    drop(page, scene)
    view = page.locator("#unary-pairwise img")
    view.wait_for()
    page.wait_for_function("[...document.querySelectorAll('[id^=unary] img')].every(image => image.complete)")
    box = view.bounding_box()
    assert box is not None
    (row, column), (width, height) = PIXEL, scene.size
    view.click(position={"x": box["width"] * (column + 0.5) / width, "y": box["height"] * (row + 0.5) / height})
    page.locator("#messages img").wait_for()
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)  # until the progress bars have faded
    save(page.screenshot(full_page=True), "demo.png")
    drop(page, BOMB)
    page.locator("#message [role=alert]").wait_for()
    page.wait_for_timeout(1000)
    save(page.screenshot(clip={"x": 0, "y": 0, "width": 1280, "height": 440}), "demo-refused.png")


def main(model: str) -> None:
    """Serve the page of a model and take the screenshots."""
    image, _ = ContextScenes(SCENE + 1, "val").render(SCENE)
    with running(Session(load(model), Limits()), "demo/model") as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        photograph(page, Image.fromarray(image))
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
