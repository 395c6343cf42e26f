"""Hugging Face datasets: a saved data set or one of the Hub, with a column of images and a column of masks."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from contextcrf.data.images import DECODING_ERRORS, describe_error
from contextcrf.data.importers.files import split_name
from contextcrf.data.importers.label_maps import from_values, one_channel, read_values
from contextcrf.data.importers.options import Options
from contextcrf.data.importers.records import IGNORED, Findings, Labels, Record, Source
from contextcrf.utils.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

# Usual names of the columns.
_IMAGES = ("image", "img", "images", "pixel_values")
_LABELS = ("label", "labels", "annotation", "mask", "segmentation", "segmentation_mask", "label_map", "semantic_mask")
# Files of a data set that `save_to_disk` has written.
_SAVED = ("dataset_dict.json", "dataset_info.json")


def read(source: Path, options: Options, findings: Findings) -> Source:
    """Read all splits. Without the option `classes`, the classes are numbers up to the highest label."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ValueError(
            "The format huggingface needs the package datasets, which is not installed. Run "
            '`pip install "contextcrf[datasets]"`.'
        ) from error

    saved = any((source / name).is_file() for name in _SAVED)
    try:
        # A name on the Hub has a forward slash on every system.
        found = datasets.load_from_disk(str(source)) if saved else datasets.load_dataset(source.as_posix())
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{source} cannot be opened as a data set of Hugging Face: {error}. Give a folder that save_to_disk has "
            "written, or the name of a data set on the Hub."
        ) from error
    splits: Mapping[str, Any] = found if isinstance(found, Mapping) else {"": found}
    if not splits:
        raise DataError(f"{source} has no splits.")
    first = next(iter(splits.values()))
    image_column = options.image_column or _column(first, _IMAGES, "image", None)
    label_column = options.label_column or _column(first, _LABELS, "label", image_column)
    for name, data in splits.items():
        for column in (image_column, label_column):
            if column not in data.column_names:
                raise DataError(
                    f"The split {name!r} of {source} has the columns {', '.join(data.column_names)}, but not "
                    f"{column!r}. Choose one with --image-column or --label-column."
                )
    ignore_index = 255 if options.ignore_index is None else options.ignore_index
    names = options.classes
    masks = {key: _stored(data, label_column) for key, data in splits.items()}
    values = _label_values(masks, label_column, str(source))
    if values == {0, 255} and options.ignore_index is None and len(names or "  ") == 2:
        findings.note("the masks have only the values 0 and 255, so 255 is taken as a class", str(source))
        names, table = names or ("background", "foreground"), {0: 0, 255: 1}
    else:
        if names is None:
            highest = max(values - {ignore_index}, default=-1)
            names = tuple(f"class {label}" for label in range(highest + 1))
            findings.note("the classes have numbers for names; give --classes to name them", f"{len(names)} classes")
        table = {label: label for label in range(len(names))} | {ignore_index: IGNORED}
    records: list[Record] = []
    for name, data in splits.items():
        records += _records(name, data, image_column, label_column, table)
    return Source(names, records)


def _column(data: "Dataset", usual: tuple[str, ...], kind: str, other: str | None) -> str:
    """Return the column with a usual name, or the only column of images that remains."""
    import datasets

    if found := [name for name in usual if name in data.column_names and name != other]:
        return found[0]
    pictures = [
        name for name, feature in data.features.items() if isinstance(feature, datasets.Image) and name != other
    ]
    if len(pictures) == 1:
        return pictures[0]
    raise DataError(
        f"The columns are {', '.join(data.column_names)}, and none has a usual name for the {kind}s. Choose one with "
        f"--{kind}-column."
    )


def _label_values(splits: Mapping[str, Any], column: str, where: str) -> set[int]:
    """Return the values of all masks that can be read. The others are reported when they are imported.

    Raises:
        DataError: If no mask can be read.
    """
    found: set[int] = set()
    faults: list[DataError] = []
    for name, data in splits.items():
        for row in range(len(data)):
            try:
                found.update(np.unique(_values(data, row, column, f"{where}, {name}, row {row}")).tolist())
            except DataError as error:
                faults.append(error)
    if not found and faults:
        raise faults[0]
    return found


def _stored(data: "Dataset", column: str) -> "Dataset":
    """Return a column, in which images are the content of their files."""
    import datasets

    chosen = data.select_columns(column)
    images = isinstance(chosen.features[column], datasets.Image)
    return chosen.cast_column(column, datasets.Image(decode=False)) if images else chosen


def _values(data: "Dataset", row: int, column: str, where: str) -> npt.NDArray[np.int64]:
    import datasets

    if isinstance(data.features[column], datasets.Image):
        return read_values(Path(where), _content(data, column, row))
    try:
        values = np.asarray(data[row][column])
    except DECODING_ERRORS as error:
        raise DataError(f"The mask of {where} cannot be read: {describe_error(error)}.") from error
    if values.dtype.kind not in "biu":
        raise DataError(
            f"The column {column!r} of {where} does not have a mask of integers. Choose another one with "
            "--label-column."
        )
    return one_channel(values, f"The mask of {where}")


def _records(name: str, data: "Dataset", image_column: str, label_column: str, table: dict[int, int]) -> list[Record]:
    import datasets

    stored = data.select_columns(image_column).cast_column(image_column, datasets.Image(decode=False))
    masks = _stored(data, label_column)
    records = []
    for row in range(len(data)):
        path = _path(stored, image_column, row)
        # Rows without a file name are numbered in each split.
        title = (f"{name}/{path}" if path else f"{name}_{row:06d}").lstrip("/_")
        image = partial(_content, stored, image_column, row)
        labels = partial(_labels, masks, label_column, row, table, title)
        records.append(Record(image, title, None, labels, (split_name(name),) if name else ()))
    return records


def _path(stored: "Dataset", column: str, row: int) -> str | None:
    found = stored[row][column]
    return PurePosixPath(found["path"].replace("\\", "/")).name if found and found.get("path") else None


def _content(stored: "Dataset", column: str, row: int) -> bytes:
    found = stored[row][column]
    if found and found.get("bytes"):
        return bytes(found["bytes"])
    if found and found.get("path"):
        try:
            return Path(found["path"]).read_bytes()
        except OSError as error:
            raise DataError(f"{found['path']} cannot be read: {describe_error(error)}.") from error
    raise DataError(f"Row {row} has no image in the column {column!r}.")


def _labels(masks: "Dataset", column: str, row: int, table: dict[int, int], title: str, findings: Findings) -> Labels:
    return from_values(_values(masks, row, column, title), table, title, findings)
