"""The import of a data set: from a source in any format to images, masks, classes and splits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from contextcrf.data.classes import IGNORE_INDEX, Classes, Color, voc_palette
from contextcrf.data.decoding import turned
from contextcrf.data.importers.drawing import draw
from contextcrf.data.importers.options import CityscapesIds, Crowd, FormatName, Options, Order, Unlabeled
from contextcrf.data.importers.records import (
    IGNORED,
    UNLABELED,
    Findings,
    Labels,
    Record,
    Source,
    without_shared_files,
)
from contextcrf.data.importers.registry import FORMATS, Format
from contextcrf.data.importers.report import ImportReport
from contextcrf.data.importers.writing import Picture, Stems, open_picture
from contextcrf.data.visualization import index_png
from contextcrf.utils.errors import DataError
from contextcrf.utils.files import write_json, write_text
from contextcrf.utils.progress import track

BACKGROUND = "background"
# Names that tools give to the class of unlabeled pixels.
_BACKGROUNDS = ("background", "_background_", "__background__")
# Without splits in the source, one of this many images is assigned to val.
VAL_EVERY = 5


def import_dataset(
    format: FormatName,
    source: str | Path,
    out: str | Path,
    *,
    images: str | Path | None = None,
    classes: Sequence[str] | None = None,
    unlabeled: Unlabeled | None = None,
    order: Order | None = None,
    crowd: Crowd | None = None,
    label_map: str | Path | None = None,
    ids: CityscapesIds | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    ignore_index: int | None = None,
    link: bool = False,
) -> ImportReport:
    """Turn a data set of an annotation tool into a folder with images, masks, classes and splits.

    `out` gets `images/`, `masks/` (palette PNGs of class indices), `classes.yaml`, `splits/` and the report
    `import.json`. `open_dataset` opens it. The source is not changed.

    The written masks match the upright image. If the EXIF data rotate an image, and its shapes or its mask in the
    source fit only the stored, unrotated image, they are rotated too. If the source has no split "train", the images
    that are in none of its splits are assigned: all to "train" if the source has a split "val"; otherwise every fifth
    to "val" and the others to "train".

    Args:
        format: the format of the source. The guide "Import annotations" describes the formats.
        source: the file or folder of the annotations; for huggingface, also the name of a data set on the Hub.
        out: a new or empty folder. If an error occurs, nothing is written.
        images: the folder of the images, if it is not the usual one of the format.
        classes: the classes to import, in the order of their indices. Shapes of other classes are dropped. For
            huggingface, the names of all labels. None imports all classes.
        unlabeled: "background" assigns pixels without a class to the class "background", and "ignore" gives them the
            ignore_index. None is "ignore" for voc, cityscapes, ade20k and camvid32, and "background" otherwise.
        order: "listed" draws later shapes over earlier ones (in CVAT, shapes with a higher z_order over shapes with a
            lower one). "area" draws smaller shapes over larger ones. None is "listed".
        crowd: for coco: "ignore" gives crowd regions (iscrowd) the ignore_index, and "class" gives them their class.
            None is "ignore".
        label_map: for voc and camvid32: the file with the classes and their colors.
        ids: for cityscapes: "labelIds" reads the masks `*_labelIds`, and "trainIds" the masks `*_labelTrainIds`. None
            is labelIds.
        image_column: for huggingface: the column of the images.
        label_column: for huggingface: the column of the masks.
        ignore_index: for voc and huggingface: the value in the masks that marks pixels to ignore. None is 255.
        link: make hard links of the images instead of copies.

    Returns:
        A report that lists what was imported, what was dropped, and why.

    Raises:
        DataError: If the source is not in the format, or if no image or no labeled pixel remains.
        FileExistsError: If `out` is not empty.
        ValueError: If an option does not belong to the format, if the format needs a package that is not installed, or
            if `out` is inside the source.

    Example:
        >>> import json
        >>> from PIL import Image
        >>> Path("tool").mkdir()
        >>> Image.new("RGB", (6, 4)).save("tool/a.png")
        >>> shape = {"label": "cat", "shape_type": "rectangle", "points": [[0, 0], [3, 4]]}
        >>> content = {"imagePath": "a.png", "imageWidth": 6, "imageHeight": 4, "shapes": [shape]}
        >>> _ = Path("tool/a.json").write_text(json.dumps(content))
        >>> import_dataset("labelme", "tool", "data").pixels
        {'background': 12, 'cat': 12}
    """
    options = Options(
        images=None if images is None else Path(images),
        classes=None if classes is None else tuple(classes),
        unlabeled=unlabeled,
        order=order,
        crowd=crowd,
        label_map=None if label_map is None else Path(label_map),
        ids=ids,
        image_column=image_column,
        label_column=label_column,
        ignore_index=ignore_index,
    )
    source, out = Path(source), Path(out)
    if format not in FORMATS:
        raise ValueError(f"The format is {format!r}, but one of {', '.join(FORMATS)} is expected.")
    chosen = FORMATS[format]
    _check(format, chosen, options, source, out)
    findings = Findings()
    found = chosen.read(source, options, findings)
    names, position = _class_names(found, options, chosen, findings)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as partial:
        complete = Path(partial, out.name)
        writer = _Writer(complete, names, position, options, findings, link)
        classes_ = _colored(names, found.colors)
        writer.write(found, classes_)
        _check_result(writer, names, source, findings)
        splits = _write_splits(complete / "splits", writer.splits, findings)
        classes_.to_yaml(complete / "classes.yaml")
        report = ImportReport(
            format=format,
            source=str(source),
            images=len(writer.splits),
            shapes=writer.shapes if "order" in chosen.options else None,
            pixels={name: writer.pixels[index] for index, name in enumerate(names)},
            ignored=writer.pixels[IGNORE_INDEX],
            splits=splits,
            dropped=findings.dropped,
            notes=findings.notes,
        )
        write_json(complete / "import.json", report.to_dict())
        if out.exists():
            out.rmdir()  # Windows cannot rename a folder to an existing one, even if that is empty.
        complete.rename(out)
    return report


def _check(format: str, chosen: Format, options: Options, source: Path, out: Path) -> None:
    for name in options.given():
        if name not in chosen.options:
            known = ", ".join(f"--{option.replace('_', '-')}" for option in sorted(chosen.options))
            raise ValueError(
                f"The format {format} has no option --{name.replace('_', '-')}. Its options are {known} and --link."
            )
    if options.classes is not None and len(set(options.classes)) != len(options.classes):
        raise ValueError(f"The classes {', '.join(options.classes)} repeat a name, but different names are expected.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"The folder {out} is not empty. Choose a new folder.")
    if not chosen.local and not source.exists():
        return
    if not source.exists():
        raise DataError(f"{source} does not exist, but the file or the folder of the annotations is expected.")
    if source.suffix.lower() in (".zip", ".tar", ".gz", ".tgz"):
        raise DataError(f"{source} is an archive. Unpack it, and give the folder or the file of the annotations.")
    if options.images is not None and not options.images.is_dir():
        raise DataError(f"The folder {options.images} of the images does not exist. Check --images.")
    inside = (folder for folder in (source, options.images) if folder is not None and folder.is_dir())
    for folder in inside:
        if out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{out} is inside {folder}, which is not changed. Choose a folder outside of it.")


def _dropped(findings: Findings) -> str:
    """Return a sentence with what has been dropped, for an error."""
    reasons = [f"{reason} ({len(items)}, such as {items[0]})" for reason, items in findings.dropped.items()]
    return f" Dropped: {'; '.join(reasons)}." if reasons else ""


def _class_names(
    found: Source, options: Options, chosen: Format, findings: Findings
) -> tuple[tuple[str, ...], dict[int, int]]:
    """Return the names of the new classes, and the new index of each index in the source and of unlabeled pixels."""
    names = found.names
    if options.classes is not None and "order" in chosen.options:
        for name in options.classes:
            if name not in names and name.casefold() not in _BACKGROUNDS:
                near = get_close_matches(name, names, n=1)
                hint = f"Did you mean {near[0]!r}? " if near else ""
                raise DataError(
                    f"The class {name!r} of --classes does not occur. {hint}The classes are: {', '.join(names)}."
                )
        names = options.classes
    position = {UNLABELED: IGNORE_INDEX, IGNORED: IGNORE_INDEX}
    if (options.unlabeled or chosen.unlabeled) == "background":
        existing = next((index for index, name in enumerate(names) if name.casefold() in _BACKGROUNDS), None)
        if existing is None:
            names, existing = (BACKGROUND, *names), 0
        position[UNLABELED] = existing
    if len(names) > IGNORE_INDEX:
        raise DataError(
            f"The number of classes is {len(names)}, but at most {IGNORE_INDEX} are possible. Choose some of them with "
            f"--classes. The first ones are: {', '.join(names[:5])}."
        )
    if not found.names:
        raise DataError(
            "The source has no classes. Check that it has annotations of objects or areas, and not captions or key "
            f"points.{_dropped(findings)}"
        )
    if len(names) < 2:
        raise DataError(
            f"The classes are {', '.join(names) or 'none'}, but at least 2 are needed. Check that the source has "
            "shapes with an area, or give pixels without a class to the background with --unlabeled background."
        )
    # Shapes are drawn with the positions of the new names; label maps have those of the source.
    shift = len(names) - len(found.names) if "order" not in chosen.options else 0
    position |= {index: index + shift for index in range(len(names) - shift)}
    return names, position


def _colored(names: Sequence[str], colors: Mapping[str, Color]) -> Classes:
    """Give each class its color in the source, or a color of VOC that no other class has."""
    palette: dict[str, Color] = {}
    for name in names:
        if name in colors and colors[name] not in palette.values():
            palette[name] = colors[name]
    free = [color for color in voc_palette(256) if color not in palette.values()]
    return Classes(tuple(names), tuple(palette[name] if name in palette else free.pop(0) for name in names))


class _Writer:
    """Writes the images and the masks, and counts them.

    Args:
        out: the folder to write.
        names: the names of the classes.
        position: the value in the masks of each label.
        options: the options of the import.
        findings: what is dropped.
        link: make hard links.
    """

    def __init__(
        self,
        out: Path,
        names: Sequence[str],
        position: Mapping[int, int],
        options: Options,
        findings: Findings,
        link: bool,
    ) -> None:
        self.out, self.options, self.findings, self.link = out, options, findings, link
        self.names = names
        self.indices = {name: index for index, name in enumerate(names)}
        # Negative labels are the last entries of the table.
        self.table = np.full(len(names) + 2, IGNORE_INDEX, np.uint8)
        for label, value in position.items():
            self.table[label] = value
        self.pixels: Counter[int] = Counter()
        self.shapes = 0
        self.splits: dict[str, tuple[str, ...]] = {}
        self.stems = Stems()

    def write(self, source: Source, classes: Classes) -> None:
        """Write all images that can be imported."""
        for folder in ("images", "masks"):
            (self.out / folder).mkdir(parents=True)
        for record in track(without_shared_files(source.records, self.findings), "Importing"):
            try:
                picture = open_picture(record)
            except DataError as error:
                self.findings.drop("images that cannot be read", str(error))
                continue
            values = self._mask(record, picture)
            if values is None:
                continue
            stem, renamed = self.stems.choose(record.name)
            if renamed:
                self.findings.note(
                    "images were renamed, because their name is used or not possible", f"{record.name}: {stem}"
                )
            picture.copy(self.out / "images" / f"{stem}{picture.suffix}", self.link)
            index_png(values, classes.palette).save(self.out / "masks" / f"{stem}.png")
            self.splits[stem] = record.splits
            found, counts = np.unique(values, return_counts=True)
            self.pixels.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))

    def _mask(self, record: Record, picture: Picture) -> npt.NDArray[np.uint8] | None:
        """Return the mask of the upright image, or None with a finding."""
        try:
            labels = self._labels(record, picture)
        except DataError as error:
            self.findings.drop("masks that cannot be read", f"{record.name}: {error}")
            return None
        if labels is None:
            return None
        values = self.table[labels]
        if (values == IGNORE_INDEX).all():
            self.findings.drop("images without a labeled pixel", record.name)
            return None
        return values

    def _labels(self, record: Record, picture: Picture) -> Labels | None:
        if callable(record.content):
            labels = record.content(self.findings)
            stored = self._is_stored((labels.shape[1], labels.shape[0]), record, picture)
            if stored is None:
                return None
        else:
            stored = self._is_stored(record.size, record, picture)
            if stored is None:
                return None
            if not record.content and self.findings.concerns(record.name):
                self.findings.drop("images whose annotations were all dropped", record.name)
                return None
            if not record.content:
                meaning = self.names[self.table[UNLABELED]] if self.table[UNLABELED] < IGNORE_INDEX else "unlabeled"
                self.findings.note(f"images have no shapes, so all their pixels are {meaning}", record.name)
            size = picture.stored if stored else picture.upright
            order = self.options.order or "listed"
            labels, drawn = draw(record.content, size, self.indices, order, record.name, self.findings)
            self.shapes += drawn
            if not drawn and any(shape.name in self.indices for shape in record.content):
                self.findings.drop("images whose annotations were all dropped", record.name)
                return None
        return turned(labels, picture.orientation) if stored else labels

    def _is_stored(self, size: tuple[int, int] | None, record: Record, picture: Picture) -> bool | None:
        """Return whether a size is that of the image as it is stored, and not upright; None if it is neither."""
        if size is None or size == picture.upright:
            if picture.turned and (size is None or picture.stored == picture.upright):
                self.findings.note(
                    "images are rotated by their EXIF data; their annotations, which fit both, were taken as upright",
                    record.name,
                )
            elif picture.turned:
                self.findings.note("images are rotated by their EXIF data; their annotations are upright", record.name)
            return False
        if size == picture.stored:
            self.findings.note(
                "images are rotated by their EXIF data; their annotations were not, and were turned", record.name
            )
            return True
        self.findings.drop(
            "images whose size differs from that of their annotations",
            f"{record.name}: {picture.upright[0]} x {picture.upright[1]}, annotations {size[0]} x {size[1]}",
        )
        return None


def _check_result(writer: _Writer, names: Sequence[str], source: Path, findings: Findings) -> None:
    """Raise a DataError if no image remains, or if all labeled pixels are background."""
    labeled = sum(writer.pixels[index] for index, name in enumerate(names) if name.casefold() not in _BACKGROUNDS)
    if labeled:
        return
    why = _dropped(findings) or " Check that the source has annotations."
    raise DataError(f"The import of {source} has no labeled pixels of a class, so nothing was written.{why}")


def _write_splits(folder: Path, assigned: Mapping[str, tuple[str, ...]], findings: Findings) -> dict[str, int]:
    """Write the splits of the source, and train and val if the source has no train. Return their sizes."""
    splits: dict[str, list[str]] = {}
    for stem, names in assigned.items():
        for name in names:
            splits.setdefault(name, []).append(stem)
    if "train" not in splits:
        rest = sorted(stem for stem, names in assigned.items() if not {"val", "test"} & set(names))
        val = [] if "val" in splits or len(rest) < 2 else (rest[VAL_EVERY // 2 :: VAL_EVERY] or rest[-1:])
        added = {"train": [stem for stem in rest if stem not in set(val)], "val": val}
        for name, stems in added.items():
            if stems:
                splits[name] = stems
                findings.note("splits were made, because the source has no split train", f"{name}: {len(stems)}")
    for name, stems in splits.items():
        write_text(folder / f"{name}.txt", "".join(f"{stem}\n" for stem in stems))
    return {name: len(stems) for name, stems in splits.items()}
