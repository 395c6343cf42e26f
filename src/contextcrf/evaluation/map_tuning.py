"""Tuning of the dense CRF for saved maps of any network: the command `tune-refine`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.evaluation.tuning import DENSE, Trial, search_dense
from contextcrf.inference.maps import MapFormat
from contextcrf.modeling.config import InferenceConfig
from contextcrf.utils.errors import DataError
from contextcrf.utils.labels import most_probable


@torch.inference_mode()
def tune_maps(
    maps: Sequence[Path],
    data: SegmentationDataset,
    form: MapFormat,
    grid: Mapping[str, Sequence[float]] = DENSE,
    rounds: int = 2,
    device: torch.device | None = None,
) -> list[Trial]:
    """Try parameters of the dense CRF on saved maps: vary one parameter at a time around the best trial so far.

    The maps are read again for each trial, since those of many images would fill the memory.

    Args:
        maps: the map files, one for each image of `data`, in the same order.
        data: images and masks.
        form: the format of the maps.
        grid: for each parameter name, the values to try.
        rounds: number of passes over all parameters.
        device: device of the dense CRF.

    Returns:
        All trials. The first trial has no dense CRF.

    Raises:
        DataError: a map cannot be read, or it has another number of classes than `data`. The message names the file.

    Example:
        >>> import numpy as np
        >>> from contextcrf.data.layouts import open_dataset
        >>> from contextcrf.data.synthetic import write_scenes
        >>> data = open_dataset(write_scenes("scenes", train=1, val=1, height=64, width=96), "val")
        >>> np.save("map.npy", np.full((10, 64, 96), 0.1, dtype=np.float32))
        >>> trials = tune_maps([Path("map.npy")], data, MapFormat(), {"bilateral_compat": (2,)}, rounds=1)
        >>> [trial.label for trial in trials]
        ['no dense CRF', '2']
    """
    form = form.for_labels(maps)

    def read(path: Path, size: tuple[int, int]) -> Tensor:
        try:
            logits = form.read(path, size).logits
        except DataError:
            raise
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read. {error}") from error
        if logits.shape[1] != len(data.classes):
            raise DataError(
                f"{path} has {logits.shape[1]} classes, but the masks have {len(data.classes)}. Change --classes or "
                "--num-classes."
            )
        return logits

    def refined(settings: InferenceConfig) -> Iterator[tuple[Tensor, Tensor]]:
        crf = settings.dense_crf().to(device)
        for path, (image, mask) in zip(maps, data.without_transform(), strict=True):
            logits = read(path, (mask.shape[0], mask.shape[1]))
            if not settings.dense_is_off:
                logits = crf(logits.to(device), image[None].to(device), image_range=(0, 255)).cpu()
            yield most_probable(logits, 1), mask

    return search_dense(refined, len(data.classes), len(data), InferenceConfig(), grid, rounds)
