"""Results in the format of PASCAL VOC's evaluation server, which alone has the truth of the test images."""

import re
import tarfile
from io import BytesIO
from pathlib import Path

from contextcrf.data.images import read_image
from contextcrf.data.layouts import VOC, VOC_SPLITS, voc_kit
from contextcrf.data.visualization import index_png
from contextcrf.inference.predictor import Predictor
from contextcrf.utils.errors import DataError
from contextcrf.utils.files import atomic_write
from contextcrf.utils.progress import track

# The path in the archive at which the server expects an image's labels.
_MEMBER = "results/VOC2012/Segmentation/{competition}_{split}_cls/{stem}.png"


def write_submission(
    predictor: Predictor, root: Path, out: Path, split: str = "test", competition: str = "comp6"
) -> int:
    """Label a split of VOC into an archive for the evaluation server, which is written whole or not at all.

    Args:
        predictor: with a model of VOC's 21 classes.
        root: folder of, or above, the development kit; of the split, the images are enough.
        out: the archive, .tgz or .tar.gz.
        split: "test", or "val" to try it.
        competition: "comp5" for networks that were trained on VOC's own masks only, "comp6" for all others (with SBD,
            or ImageNet weights).

    Returns:
        The number of images.

    Raises:
        ValueError: the model has other classes, or the server would refuse the name of the archive or competition.
        DataError: there is no such split, or an image is missing or cannot be read.
    """
    classes = predictor.model.classes
    if classes.names != VOC.names:
        raise ValueError(f"the model's classes are {', '.join(classes.names)}; expected VOC's 21")
    if not out.name.endswith((".tgz", ".tar.gz")):
        raise ValueError(f"{out}: expected an archive .tgz or .tar.gz")
    if not re.fullmatch("comp[56]", competition):
        raise ValueError(f"competition {competition!r}: expected comp5 or comp6")
    kit = voc_kit(root)
    if kit is None or not (kit / VOC_SPLITS / f"{split}.txt").is_file():
        raise DataError(f"{root}: no {VOC_SPLITS / f'{split}.txt'} below it; expected VOC's development kit")
    stems = (kit / VOC_SPLITS / f"{split}.txt").read_text(encoding="utf-8").split()
    paths = [kit / "JPEGImages" / f"{stem}.jpg" for stem in stems]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(f"{missing[0]}: no such image; {len(missing)} of {len(paths)} of {split} are missing")
    with atomic_write(out) as partial, tarfile.open(partial, "w:gz") as archive:
        for path in track(paths, split):
            content = BytesIO()
            index_png(predictor.segment(read_image(path)).labels, VOC.palette).save(content, format="PNG")
            member = tarfile.TarInfo(_MEMBER.format(competition=competition, split=split, stem=path.stem))
            member.size = content.tell()
            content.seek(0)
            archive.addfile(member, content)
    return len(paths)
