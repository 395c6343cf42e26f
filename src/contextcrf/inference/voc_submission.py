"""Results in the format of PASCAL VOC's evaluation server. Only this server has the masks of the test images."""

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

# The path of an image's labels in the archive that the server expects.
_MEMBER = "results/VOC2012/Segmentation/{competition}_{split}_cls/{stem}.png"


def write_submission(
    predictor: Predictor, root: Path, out: Path, split: str = "test", competition: str = "comp6"
) -> int:
    """Label a split of VOC and write the labels into an archive for the evaluation server.

    If an error occurs, no archive is written.

    Args:
        predictor: a predictor with a model of VOC's 21 classes.
        root: the folder of the development kit or a folder above it. The split needs no masks.
        out: the archive, with the suffix .tgz or .tar.gz.
        split: "test", or "val" for a trial.
        competition: "comp5" for networks that were trained only on VOC's masks, or "comp6" for all other networks (with
            SBD or ImageNet weights).

    Returns:
        The number of images.

    Raises:
        ValueError: If the model has other classes, or if the server does not accept the suffix of the archive or the
            competition.
        DataError: If the split does not exist, or if an image is missing or cannot be read.
    """
    classes = predictor.model.classes
    if classes.names != VOC.names:
        raise ValueError(
            f"The model has the classes {', '.join(classes.names)}, but VOC's 21 classes are expected. Use a model "
            "that was trained on VOC."
        )
    if not out.name.endswith((".tgz", ".tar.gz")):
        raise ValueError(f"{out} does not have the suffix .tgz or .tar.gz, which the server expects.")
    if not re.fullmatch("comp[56]", competition):
        raise ValueError(f"The competition is {competition!r}, but comp5 or comp6 is expected.")
    kit = voc_kit(root)
    if kit is None or not (kit / VOC_SPLITS / f"{split}.txt").is_file():
        raise DataError(
            f"{root} is not the folder of VOC's development kit with the split {split}, because there is no "
            f"{VOC_SPLITS / f'{split}.txt'} below it. Check the path."
        )
    stems = (kit / VOC_SPLITS / f"{split}.txt").read_text(encoding="utf-8").split()
    paths = [kit / "JPEGImages" / f"{stem}.jpg" for stem in stems]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(
            f"{missing[0]} does not exist. The number of missing images in the split {split} is {len(missing)} of "
            f"{len(paths)}."
        )
    with atomic_write(out) as partial, tarfile.open(partial, "w:gz") as archive:
        for path in track(paths, f"Labeling the split {split}"):
            content = BytesIO()
            index_png(predictor.segment(read_image(path)).labels, VOC.palette).save(content, format="PNG")
            member = tarfile.TarInfo(_MEMBER.format(competition=competition, split=split, stem=path.stem))
            member.size = content.tell()
            content.seek(0)
            archive.addfile(member, content)
    return len(paths)
