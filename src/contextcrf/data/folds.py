"""Cross-validation: a data set as a folder of links, with splits that leave out one part after the other."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from contextcrf.data.dataset import open_dataset
from contextcrf.errors import DataError


def write_folds(data: str | Path, out: str | Path, folds: int, splits: Sequence[str] = ("train", "val")) -> Path:
    """Deal the images of some splits to folds, by name in turn, so that a series of like images spreads over all.

    Below `out`, a folder data set: `classes.yaml`; `images/` and `masks/` with links to the files; in `splits/`,
    for every fold k, `fold<k>-test.txt` (its images) and `fold<k>-train.txt` (all others).

    Args:
        data: the data set, of any known layout.
        out: a new or empty folder.
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
    for folder in ("images", "masks", "splits"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for image, mask in pairs:
        (out / "images" / image.name).symlink_to(image.resolve())
        (out / "masks" / f"{image.stem}.png").symlink_to(mask.resolve())
    parts[0].classes.to_yaml(out / "classes.yaml", parts[0].void)
    stems = [image.stem for image, _ in pairs]
    for fold in range(folds):
        test = stems[fold::folds]
        train = [stem for i, stem in enumerate(stems) if i % folds != fold]
        for name, chosen in (("train", train), ("test", test)):
            (out / "splits" / f"fold{fold}-{name}.txt").write_text("".join(f"{stem}\n" for stem in chosen))
    return out
