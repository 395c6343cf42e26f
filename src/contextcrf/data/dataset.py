"""The class `SegmentationDataset`: pairs of an image file and a mask file."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from contextcrf.data.classes import IGNORE_INDEX, Classes
from contextcrf.data.image_format import RGB, ImageFormat
from contextcrf.data.images import read_image
from contextcrf.data.masks import MaskFormat
from contextcrf.utils.errors import DataError
from contextcrf.utils.pipeline import read_ahead

Pair = tuple[Path, Path]
Sample = tuple[tv_tensors.Image, tv_tensors.Mask]
Transform = Callable[[tv_tensors.Image, tv_tensors.Mask], Sample]


class SegmentationDataset(Dataset[Sample]):
    """Images with their masks.

    An item is a pair `(image, mask)`. The image is uint8 [C, H, W], by default RGB. The mask is int64 [H, W], and its
    unlabeled pixels have the value `IGNORE_INDEX` (255).

    The key of an item is an index, or a pair `(index, seed)`. With a seed, the random numbers of the transform depend
    on that seed only, and not on the worker process or on earlier items. A resumed training run therefore loads exactly
    the same samples.

    A data set can be pickled. Its copies in the worker processes of a `DataLoader` share `broken`.

    Args:
        pairs: the path of the image and the path of the mask for each sample.
        classes: the classes of the masks.
        ignore_index: the value of unlabeled pixels in the mask files; None if there is none. It is not used with
            `mask_format`.
        transform: a joint transform of image and mask.
        skip_broken: if a file of a pair cannot be read, return the next pair and list the image in `broken`. Without
            this option, a DataError is raised.
        mask_format: how the masks are read. None reads index masks whose values are the class indices and
            `ignore_index`.
        image_format: how the images are read. By default, they are RGB.

    Raises:
        DataError: On access to an item, if a file cannot be read, or if a mask has a value that is not a class. The
            message begins with the path of the file.

    Example:
        >>> import tempfile
        >>> from contextcrf.data.layouts import open_dataset
        >>> from contextcrf.data.synthetic import write_scenes
        >>> data = open_dataset(write_scenes(tempfile.mkdtemp(), train=2, val=1, height=64, width=96), "train")
        >>> image, mask = data[0]
        >>> len(data), image.shape, mask.shape
        (2, torch.Size([3, 64, 96]), torch.Size([64, 96]))
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        classes: Classes,
        ignore_index: int | None = IGNORE_INDEX,
        transform: Transform | None = None,
        skip_broken: bool = False,
        mask_format: MaskFormat | None = None,
        image_format: ImageFormat = RGB,
    ) -> None:
        self.pairs = list(pairs)
        self.classes = classes
        self.mask_format = mask_format or MaskFormat.indices(len(classes), ignore_index)
        self.ignore_index = next(iter(self.mask_format.ignore_values), None)
        self.image_format = image_format
        self.transform = transform
        self.skip_broken = skip_broken
        # Worker processes write to this tensor, so it is in shared memory.
        self._broken = torch.zeros(len(self.pairs), dtype=torch.bool).share_memory_()

    @property
    def broken(self) -> list[Path]:
        """The images of the pairs that were skipped so far, because a file could not be read."""
        return [self.pairs[i][0] for i in self._broken.nonzero()[:, 0].tolist()]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        index, seed = key if isinstance(key, tuple) else (key, None)
        image, mask = self._readable_sample(index)
        if self.transform is None:
            return image, mask
        if seed is None:
            return self.transform(image, mask)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.transform(image, mask)

    def _readable_sample(self, index: int) -> Sample:
        """Return the sample `index`, or the next readable sample if broken files are skipped."""
        if not -len(self) <= index < len(self):
            # An IndexError ends a loop over the samples.
            raise IndexError(f"The index {index} is out of range for a data set of length {len(self)}.")
        for candidate in range(index, index + len(self)):
            try:
                return self.sample(candidate % len(self))
            except DataError:
                if not self.skip_broken:
                    raise
                self._broken[candidate % len(self)] = True
        raise DataError(
            f"No pair of image and mask can be read. The number of pairs is {len(self)}, and the first image is "
            f"{self.pairs[0][0]}. Check the paths and the files."
        )

    def sample(self, index: int) -> Sample:
        """Read the image and the mask of a pair, without the transform.

        Args:
            index: the position of the pair.

        Returns:
            The image, uint8 [C, H, W], and the mask, int64 [H, W].

        Raises:
            DataError: If a file cannot be read.
        """
        image, mask = self.pairs[index]
        return tv_tensors.Image(read_image(image, self.image_format)), tv_tensors.Mask(self.mask_format.read(mask))

    def spread(self, count: int) -> "SegmentationDataset":
        """Return a data set of at most `count` pairs, which are evenly spaced in the order of this data set."""
        total = len(self.pairs)
        chosen = range(total) if count >= total else [i * total // count for i in range(count)]
        return self.with_pairs([self.pairs[i] for i in chosen])

    def with_pairs(self, pairs: Sequence[Pair], skip_broken: bool = False) -> "SegmentationDataset":
        """Return a data set of other pairs, with the classes, the formats and the transform of this data set."""
        return SegmentationDataset(
            pairs, self.classes, self.ignore_index, self.transform, skip_broken, self.mask_format, self.image_format
        )

    def names(self, root: Path) -> list[str]:
        """Return the paths of the images relative to the folder `root`, with forward slashes."""
        return [Path(os.path.relpath(image, root)).as_posix() for image, _ in self.pairs]

    def without_transform(self) -> Iterator[Sample]:
        """Yield all images and masks in order, without the transform. The next one is read in a thread."""
        for _, sample in read_ahead(range(len(self)), self.sample):
            yield sample.result()
