"""Results in the format of PASCAL VOC's evaluation server, which alone knows the truth of the test images."""

import re
import tarfile
from io import BytesIO
from pathlib import Path

from rich.progress import track

from contextcrf.data.dataset import VOC, VOC_SPLITS, voc_kit
from contextcrf.data.images import DECODING_ERRORS, read_picture
from contextcrf.evaluation.figures import index_png
from contextcrf.inference.tta import ONE_VIEW, Views
from contextcrf.modeling.model import ContextCRF
from contextcrf.utils.errors import DataError

# Where the server looks for an image's labels.
_MEMBER = "results/VOC2012/Segmentation/{competition}_{split}_cls/{stem}.png"


def write_submission(
    model: ContextCRF,
    root: Path,
    out: Path,
    split: str = "test",
    competition: str = "comp6",
    dense: bool = False,
    progress: bool = True,
    views: Views = ONE_VIEW,
) -> int:
    """Label a split of VOC into an archive for the evaluation server; it is there whole or not at all.

    Args:
        model: of VOC's 21 classes.
        root: folder of, or above, the development kit; the split needs images alone.
        out: the archive, .tgz or .tar.gz.
        split: "test", or "val" to try it.
        competition: "comp5" for networks that have seen VOC's own masks only, "comp6" for all others (with SBD, or
            ImageNet weights).
        dense, views: as in `ContextCRF.segment`.
        progress: show a progress bar.

    Returns:
        The number of images.

    Raises:
        ValueError: the model knows other classes, or the archive or competition has a name that the server refuses.
        DataError: there is no such split, or an image is missing or cannot be read.
    """
    if model.classes.names != VOC.names:
        raise ValueError(f"the model knows the classes {', '.join(model.classes.names)}; expected VOC's 21")
    if not out.name.endswith((".tgz", ".tar.gz")):
        raise ValueError(f"{out}: expected an archive .tgz or .tar.gz")
    if not re.fullmatch("comp[56]", competition):
        raise ValueError(f"competition {competition!r}: expected comp5 or comp6")
    kit = voc_kit(root)
    if kit is None or not (kit / VOC_SPLITS / f"{split}.txt").is_file():
        raise DataError(f"{root}: no {VOC_SPLITS / f'{split}.txt'} below it; expected VOC's development kit")
    paths = [kit / "JPEGImages" / f"{stem}.jpg" for stem in (kit / VOC_SPLITS / f"{split}.txt").read_text().split()]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(f"{missing[0]}: no such image; {len(missing)} of {len(paths)} of {split} are missing")
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f"{out.name}.part")
    with tarfile.open(unfinished, "w:gz") as archive:
        for path in track(paths, split, disable=not progress):
            try:
                picture = read_picture(path)
            except DECODING_ERRORS as error:
                raise DataError(f"{path}: could not be read: {error}") from error
            content = BytesIO()
            index_png(model.segment(picture, dense=dense, views=views).labels, VOC.palette).save(content, format="PNG")
            member = tarfile.TarInfo(_MEMBER.format(competition=competition, split=split, stem=path.stem))
            member.size = content.tell()
            content.seek(0)
            archive.addfile(member, content)
    unfinished.rename(out)
    return len(paths)
