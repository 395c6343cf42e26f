"""Cross-validation: a data set as a folder of links, with splits that leave out one part after the other."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from contextcrf.data.dataset import SegmentationDataset, open_dataset
from contextcrf.utils.errors import DataError


def write_folds(data: str | Path, out: str | Path, folds: int, splits: Sequence[str] = ("train", "val")) -> Path:
    """Deal the images of some splits to folds, in turn by name, so that a series of like images spreads over all.

    That is for photographs taken one by one. Neighboring frames of a film would come to lie in training and test.

    Below `out`, a folder data set: `classes.yaml`; `images/` and `masks/` with links to the files; in `splits/`,
    for every fold k, `fold<k>-test.txt` (its images) and `fold<k>-train.txt` (all others).

    Args:
        data: the data set, of any known layout.
        out: a new or empty folder; it is there whole or not at all.
        folds: how many, 2 or more.
        splits: whose images take part. Splits that are to stay unseen are left out.

    Returns:
        `out`.

    Raises:
        ValueError: less than two folds.
        DataError: two images of one name, or fewer images than folds.
        FileExistsError: there is something in `out`.
    """
    out = Path(out)
    if folds < 2:
        raise ValueError(f"{folds} folds: expected two or more")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: choose a new folder")
    parts = [open_dataset(data, split) for split in splits]
    pairs = sorted((pair for part in parts for pair in part.pairs), key=lambda pair: pair[0].stem)
    repeated = [stem for stem, times in Counter(image.stem for image, _ in pairs).items() if times > 1]
    if repeated:
        raise DataError(f"{data}: {repeated[0]} occurs twice in {', '.join(splits)}; expected every image once")
    if len(pairs) < folds:
        raise DataError(f"{data}: {len(pairs)} images for {folds} folds; expected at least one each")
    unfinished = out.with_name(f"{out.name}.part")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    _write(unfinished, pairs, folds, parts[0])
    unfinished.rename(out)
    return out


def _write(out: Path, pairs: Sequence[tuple[Path, Path]], folds: int, data: SegmentationDataset) -> None:
    for folder in ("images", "masks", "splits"):
        (out / folder).mkdir(parents=True)
    for image, mask in pairs:
        (out / "images" / image.name).symlink_to(image.resolve())
        (out / "masks" / f"{image.stem}.png").symlink_to(mask.resolve())
    data.classes.to_yaml(out / "classes.yaml", data.void)
    stems = [image.stem for image, _ in pairs]
    for fold in range(folds):
        test = stems[fold::folds]
        train = [stem for i, stem in enumerate(stems) if i % folds != fold]
        for name, chosen in (("train", train), ("test", test)):
            (out / "splits" / f"fold{fold}-{name}.txt").write_text("".join(f"{stem}\n" for stem in chosen))
