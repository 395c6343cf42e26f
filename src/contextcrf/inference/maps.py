"""Map files of any network: probabilities, logits or labels of an image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from contextcrf.crf import logits_from_labels, logits_from_probabilities
from contextcrf.data.classes import IGNORE_INDEX, Classes, Color, voc_palette
from contextcrf.data.masks import MaskFormat, check_palette_order, index_values
from contextcrf.data.stored_mask import decode_mask
from contextcrf.inference.map_layout import AXES, Arranged, Layout, arrange, excess
from contextcrf.utils.errors import DataError
from contextcrf.utils.labels import most_probable
from contextcrf.utils.resizing import downsample, upsample

MAP_SUFFIXES = (".npy", ".npz", ".png")
# A uint8 array [H, W] may contain labels if all its values are below the first limit. It may also contain labels if
# they are below the second limit, and 255 occurs, the usual value of unlabeled pixels, or most changes between
# neighboring pixels are large. Probabilities that come near 255 have values between them, and change in small steps.
_LABELS_LIMIT, _MOST_LABELS = 64, 200
_SMALL_CHANGE = 8
# The largest difference of a sum of probabilities from 1.
_EXCESS = 0.02


@dataclass(frozen=True)
class ReadMap:
    """The content of a map file.

    Args:
        logits: the logits, [1, K, H, W], of the size of the image.
        labels: the most probable labels, int64 [H, W]. Unknown pixels are -1.
        reading: what the file was taken for, in words.
    """

    logits: Tensor
    labels: Tensor
    reading: str


@dataclass(frozen=True)
class MapFormat:
    """The format of map files.

    Args:
        kind: the content of .npy and .npz files: "probabilities" (floating in 0..1, or uint8 in 0..255) or "logits".
        classes: the names and colors of the classes. None uses the colors of PASCAL VOC.
        num_classes: the number of classes K, if it is known. It is not used if `classes` is given.
        confidence: the assumed probability that a label of a label map is correct.
        ignore_index: the value of unlabeled pixels in a label map. None is 255, but then label maps of two classes that
            have no other values than 0 and 255 are refused.
        masks: the values or colors of the classes in label maps (.png). None means the class indices.
        foreground: the value of class 1 in label maps of two classes. The value of class 0 is then 0.
        layout: the layout of .npy and .npz files: "khw" for [K, H, W], "hwk" for [H, W, K], or "hw" for the foreground
            [H, W]. None decides by evidence, see `arrange`.
        resize: resize maps to the size of the image, labels by nearest-neighbor interpolation, and probabilities and
            logits bilinearly.

    Raises:
        ValueError: If `confidence` is not in (0, 1), if there are fewer than 2 or more than 256 classes, or if
            `foreground` does not fit the other arguments.
    """

    kind: Literal["probabilities", "logits"] = "probabilities"
    classes: Classes | None = None
    num_classes: int | None = None
    confidence: float = 0.7
    ignore_index: int | None = None
    masks: MaskFormat | None = None
    foreground: int | None = None
    layout: Layout | None = None
    resize: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(
                f"The confidence must be a probability > 0 and < 1, but is {self.confidence}. Change --confidence."
            )
        if self.num_classes is not None and not 2 <= self.num_classes <= 256:
            raise ValueError(
                f"The number of classes is {self.num_classes}, but it must be from 2 to 256. Change --num-classes."
            )
        if self.foreground is None:
            return
        if self.count != 2:
            raise ValueError(
                f"--foreground {self.foreground} is given, but there are {self.count} classes. Only label maps of "
                "background and foreground, two classes, have such a value. Remove the option."
            )
        if self.foreground in (0, self.ignore_index):
            raise ValueError(
                f"--foreground is {self.foreground}, but it must differ from 0, the value of the background, and from "
                "--ignore-index, the value of unknown pixels."
            )

    @property
    def count(self) -> int | None:
        """The number of classes, or None if it is not known."""
        if self.classes is not None:
            return len(self.classes)
        return 2 if self.num_classes is None and self.foreground is not None else self.num_classes

    def palette(self, count: int) -> Sequence[Color]:
        """Return the colors of `count` classes."""
        return self.classes.palette if self.classes is not None else voc_palette(count)

    def for_labels(self, paths: Sequence[Path]) -> "MapFormat":
        """Return the format with the meaning of the values in all label maps of a run, which is then in `masks`.

        Args:
            paths: the map files. Only .png files are read, and only if the meaning depends on their values.

        Raises:
            DataError: If the meaning of the values is unclear, or if the number of classes is not known. The message
                names a file.
        """
        paths = [path for path in paths if path.suffix.lower() == ".png"]
        if not paths:
            return self
        count = self.count
        if count is None:
            raise DataError(
                f"The number of classes of the label map {paths[0]} is not known. Give --classes or --num-classes."
            )
        if self.foreground is not None:
            ignored = IGNORE_INDEX if self.ignore_index is None else self.ignore_index
            others = () if ignored == self.foreground else (ignored,)
            return replace(self, masks=MaskFormat(values=((0,), (self.foreground,)), ignore_values=others))
        positions = MaskFormat.indices(count, IGNORE_INDEX if self.ignore_index is None else self.ignore_index)
        masks = self.masks or positions
        if masks.kind == "index" and not masks.is_plain:
            return replace(self, masks=_by_values(paths, masks, positions))
        if count == 2 and self.ignore_index is None and 255 in masks.ignore_values:
            _check_binary(paths)
        return replace(self, masks=masks)

    def read(self, path: Path, size: tuple[int, int]) -> ReadMap:
        """Read a map file.

        Args:
            path: the map, a .npy, .npz or .png file. `for_labels` must have been called for .png files.
            size: the height and width of the image.

        Raises:
            ValueError: If the content of the file is not valid.
            OSError: If the file cannot be decoded. Other errors of `ARRAY_ERRORS` are possible too.
        """
        if path.suffix.lower() == ".png":
            return self._read_labels(path, size)
        content = _array(path)
        self._check_dtype(content)
        quantized = content.dtype == np.uint8
        total = None if self.kind == "logits" else 255 if quantized else 1
        found = arrange(content, size, self.count, total, self.layout, self.resize)
        if quantized and len(found.values) == 1 and self.layout is None:
            _check_not_labels(content)
        if self.kind == "probabilities":
            _check_probabilities(found, quantized)
        elif len(found.values) > 1 and _are_probabilities(found.values):
            raise ValueError(
                "The values are in 0..1 and sum to 1 over the classes, so they are probabilities, but --kind is "
                "logits. Give --kind probabilities."
            )
        return self._logits(content, found, size)

    def _check_dtype(self, content: npt.NDArray[Any]) -> None:
        if np.issubdtype(content.dtype, np.floating) or (self.kind == "probabilities" and content.dtype == np.uint8):
            return
        what = "probabilities or uint8 probabilities in 0..255" if self.kind == "probabilities" else "logits"
        raise ValueError(
            f"The array has dtype {content.dtype} and shape {list(content.shape)}, but floating-point {what} are "
            "expected. Convert the values, or save labels as .png files."
        )

    def _logits(self, content: npt.NDArray[Any], found: Arranged, size: tuple[int, int]) -> ReadMap:
        # The array is copied, because it can be read-only or have another byte order.
        values = found.values.astype(np.float64 if content.dtype == np.float64 else np.float32, order="C")
        maps = torch.from_numpy(values)[None]
        if content.dtype == np.uint8:
            # The rounding to 8 bits changes the sums.
            maps = maps / (255 if len(values) == 1 else maps.sum(1, keepdim=True))
        resized = maps.shape[2:] != size
        maps = upsample(maps, size) if resized else maps
        if self.kind == "logits":
            logits = torch.cat([torch.zeros_like(maps), maps], 1) if maps.shape[1] == 1 else maps
        else:
            logits = logits_from_probabilities(maps)
        axes = AXES[found.layout] if len(values) > 1 or found.layout == "hw" else AXES[found.layout].replace("K", "1")
        reading = f"{self.kind}{' of the foreground' if len(values) == 1 else ''} {axes}"
        reading += " in 0..255" if content.dtype == np.uint8 else ""
        reading += ", resized to the image" if resized else ""
        return ReadMap(logits, most_probable(logits[0]), reading)

    def _read_labels(self, path: Path, size: tuple[int, int]) -> ReadMap:
        masks = self.masks
        if masks is None:
            raise ValueError("The meaning of the values of label maps is not known. Call MapFormat.for_labels before.")
        try:
            stored = decode_mask(path)
            if self.classes is not None and masks.kind == "index":
                check_palette_order(stored, masks, self.classes)
            labels = torch.from_numpy(masks.positions(stored)[0])[None]
        except DataError as error:
            values = _stored_values(path)
            if self.foreground is not None and values <= {0, 1}:
                raise DataError(
                    f"{path} has the values 0 and 1, but not the value {self.foreground} of --foreground. Give "
                    "--num-classes 2 instead."
                ) from error
            if len(masks) == 2 and len(values) > 1:
                raise DataError(
                    f"{error} If these are probabilities, save them as a uint8 array [H, W] in a .npy file."
                ) from error
            raise
        resized = labels.shape[1:] != size
        if resized:
            arrange(labels[0].numpy(), size, layout=self.layout and "hw", resize=self.resize)
            labels = downsample(labels, size)
        logits = logits_from_labels(labels, len(masks), self.confidence, IGNORE_INDEX)
        reading = "labels" if masks.is_plain else "labels with the values " + masks.describe_values()
        if masks.kind == "color":
            reading = "labels by color"
        labels = labels[0].masked_fill(labels[0] == IGNORE_INDEX, -1)
        return ReadMap(logits, labels, reading + (", resized to the image" if resized else ""))


def _are_probabilities(values: npt.NDArray[Any]) -> bool:
    """Return whether the values [K, H, W] are in 0..1 and sum to 1 over the classes."""
    return bool(values.min() >= 0) and excess(values, 1) <= 1e-3


def _check_not_labels(content: npt.NDArray[np.uint8]) -> None:
    """Raise ValueError if a uint8 array [H, W] may contain labels instead of probabilities of the foreground."""
    largest = int(content[content < IGNORE_INDEX].max(initial=0))
    if not 0 < largest < _MOST_LABELS:
        return
    changes = np.abs(np.diff(content.astype(np.int16), axis=1))
    steep = 2 * int((changes > _SMALL_CHANGE).sum()) > int((changes > 0).sum())
    if largest < _LABELS_LIMIT or content.max() == IGNORE_INDEX or steep:
        also = f", and {IGNORE_INDEX}" if content.max() == IGNORE_INDEX else ""
        raise ValueError(
            f"The map is a uint8 array [H, W] with values up to {largest}{also}, which may be labels or probabilities "
            "of a foreground in 0..255. Give --layout hw for probabilities, or save labels as a .png file."
        )


def _check_probabilities(found: Arranged, quantized: bool) -> None:
    """Raise ValueError if probabilities are not in 0..1, or do not sum to 1. The message has the axis of the file."""
    values = found.values
    top = 255 if quantized else 1
    if quantized and values.max() <= 1 and len(values) > 1:
        raise ValueError(
            "The values are 0 and 1, but uint8 probabilities are in 0..255. Convert the map to floating point, for "
            "example with map.astype(np.float32)."
        )
    if len(values) == 1 and not quantized and values.max() > 1 and np.array_equal(values, np.rint(values)):
        raise ValueError(
            f"The values are whole numbers up to {values.max():g}, such as labels, but probabilities in 0..1 are "
            "expected. Save labels as a .png file, and give --num-classes."
        )
    if np.isnan(values).any():
        raise ValueError("The map contains NaN. Check the network that computed it.")
    if not bool(((values >= 0) & (values <= top * 1.001)).all()):
        limit = next((limit for limit in (100, 255) if values.min() >= 0 and 1 < values.max() <= limit * 1.001), None)
        way_out = f"If they are probabilities in 0..{limit}, divide them by {limit}. " if limit else ""
        raise ValueError(
            f"The values range from {values.min():.4g} to {values.max():.4g}, but probabilities in 0..1 are expected. "
            f"{way_out}If they are logits, give --kind logits."
        )
    if len(values) == 1:
        return
    # Each of the K values of 8 bits may have been rounded down.
    margin = max(_EXCESS * top, len(values) if quantized else 0)
    if not (off := excess(values, top)) <= margin:
        raise ValueError(
            f"The map must sum to {top} over axis {found.axis} (of length {len(values)}), which has the classes of "
            f"{AXES[found.layout]}, but the sums differ from {top} by up to {off:.3g}. If the classes are on another "
            "axis, give --layout. If the values are logits, give --kind logits."
        )


def _array(path: Path) -> npt.NDArray[Any]:
    """Return the only array of a .npy or .npz file."""
    with path.open("rb") as file:
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        if len(names := list(content)) != 1:
            raise ValueError(
                f"The file contains the arrays {names}, but exactly one array is expected. Save the map alone, for "
                "example with np.save."
            )
        return content[names[0]]


def _stored_values(path: Path) -> set[int]:
    """Return the values that occur in a label map, or an empty set if it cannot be read, which is reported later."""
    try:
        return {int(value) for value in np.unique(index_values(decode_mask(path)))}
    except DataError:
        return set()


def _check_binary(paths: Sequence[Path]) -> None:
    """Raise a DataError if 255 occurs in label maps of two classes, but 1 does not: 255 is then the foreground."""
    example = None
    for path in paths:
        values = _stored_values(path)
        if 1 in values:
            return
        if 255 in values and example is None:
            example = path
    if example is not None:
        raise DataError(
            f"{example} contains the value 255 and there are two classes, but no label map contains the value 1. If "
            "255 is the foreground, give --foreground 255. If it marks unknown pixels, give --ignore-index 255."
        )


def _by_values(paths: Sequence[Path], stored: MaskFormat, positions: MaskFormat) -> MaskFormat:
    """Choose between the values in classes.yaml and the class indices, which `predict` writes, for all label maps."""
    values = set().union(*(_stored_values(path) for path in paths))
    position = {value: index for index, own in enumerate(stored.values) for value in own}
    position |= dict.fromkeys(stored.ignore_values, IGNORE_INDEX)
    unknown = {IGNORE_INDEX} if position.get(IGNORE_INDEX, IGNORE_INDEX) == IGNORE_INDEX else set()
    as_positions = values <= {*range(len(positions)), *unknown}
    as_stored = values <= set(position)
    if as_positions and as_stored and any(position[value] != value for value in values):
        raise DataError(
            f"The values of {paths[0]} and the other label maps may be those in classes.yaml or the class indices "
            f"from 0. For class indices, give --num-classes {len(stored)} instead of --classes. For the values in "
            "classes.yaml, save the maps with class indices."
        )
    return positions if as_positions else stored
