"""The cache of the features of a frozen trunk, which are computed once for all heads."""

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.modeling.config import UNARY
from contextcrf.modeling.model import ContextCRF
from contextcrf.training.config import TrainingConfig
from contextcrf.training.sampler import SeededSampler
from contextcrf.utils.progress import track
from contextcrf.utils.resizing import channels_last, downsample
from contextcrf.utils.runtime import autocast


class CachedFeatures(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """A data set that holds features, labels and unary logits in memory.

    Its keys are the pairs that `SeededSampler` yields. The second part of a key, the seed, is not used.

    Args:
        features: feature maps [M, C, h, w] of M samples.
        labels: labels [M, h, w] of the graph nodes, or [M, H, W] of the pixels.
        unary: unary logits [M, K, h, w] of the graph nodes.

    Example:
        >>> cached = CachedFeatures(torch.rand(2, 8, 4, 6), torch.zeros(2, 4, 6).long(), torch.rand(2, 3, 4, 6))
        >>> features, labels, unary = cached[1, 0]
        >>> len(cached), features.shape
        (2, torch.Size([8, 4, 6]))
    """

    def __init__(self, features: Tensor, labels: Tensor, unary: Tensor) -> None:
        self.features, self.labels, self.unary = features, labels, unary

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        return self.features[key[0]], self.labels[key[0]], self.unary[key[0]]


@torch.no_grad()
def cache_features(
    model: ContextCRF, data: SegmentationDataset, name: str, copies: int, config: TrainingConfig
) -> CachedFeatures:
    """Compute the features of a potential, the labels and the unary logits of augmented copies of the images.

    For a relation, the labels are those of the graph nodes. For the unary, they are those of the pixels (uint8).

    Args:
        model: the model; it is set to evaluation mode.
        data: images and masks with their augmentation.
        name: name of the potential whose features are kept, in bfloat16.
        copies: number of augmented copies of each image.
        config: config of the training; its seed, precision, batch size and workers are used.

    Returns:
        A data set of `copies` entries for each image.

    Example:
        >>> from contextcrf import ModelConfig
        >>> from contextcrf.data.layouts import open_dataset
        >>> from contextcrf.data.synthetic import write_scenes
        >>> from contextcrf.training import augmentation
        >>> config = TrainingConfig(batch_size=1, crop=(64, 96), precision="32-true", workers=0)
        >>> root = write_scenes("scenes", train=2, val=1, height=64, width=96)
        >>> data = open_dataset(root, "train", augmentation(config))
        >>> small = ModelConfig(backbone="plain", channels=8, hidden=8, scales=(1.0,))
        >>> model = ContextCRF(small, data.classes, pretrained=False)
        >>> len(cache_features(model, data, "above", copies=2, config=config))
        4
    """
    model.eval()
    features, labels, unary = [], [], []
    samplers = [SeededSampler(len(data), config.seed) for _ in range(copies)]
    for number, sampler in enumerate(samplers):
        sampler.set_epoch(number)
        loader = DataLoader(data, config.batch_size, sampler=sampler, num_workers=config.workers)
        for images, masks in track(loader, f"Computing features, copy {number + 1} of {copies}"):
            with autocast(model.device, config.precision):
                both = model.features(channels_last(images.to(model.device)), dict.fromkeys([UNARY, name]))
                logits = model.pool(model.unary(both[UNARY]).float())
            maps = both[name]
            unary.append(logits.cpu())
            features.append(maps.to(torch.bfloat16).cpu())
            labels.append(masks.byte() if name == UNARY else downsample(masks, maps.shape[-2:]))
    return CachedFeatures(torch.cat(features), torch.cat(labels), torch.cat(unary))
