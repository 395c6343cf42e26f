"""The features of a frozen trunk, computed once for all heads."""

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
    """Features, labels and unary logits on the graph's grid, in memory, indexed by what `SeededSampler` yields.

    Args:
        features: [N, C, h, w].
        labels: [N, h, w].
        unary: logits [N, K, h, w].
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
    """Compute the features of a potential, labels and unary logits for augmented copies of the images.

    Args:
        model: put into evaluation mode.
        data: images and masks with their augmentation.
        name: the potential whose features (bfloat16) are kept.
        copies: augmented copies of each image.
        config: seed, precision, batch size and workers.
    """
    model.eval()
    features, labels, unary = [], [], []
    samplers = [SeededSampler(len(data), config.seed) for _ in range(copies)]
    for number, sampler in enumerate(samplers):
        sampler.set_epoch(number)
        loader = DataLoader(data, config.batch_size, sampler=sampler, num_workers=config.workers)
        for images, masks in track(loader, f"features, copy {number + 1} of {copies}"):
            with autocast(model.device, config.precision):
                both = model.features(channels_last(images.to(model.device)), [UNARY, name])
                logits = model.pool(model.unary(both[UNARY]).float())
            maps = both[name]
            unary.append(logits.cpu())
            features.append(maps.to(torch.bfloat16).cpu())
            labels.append(downsample(masks, maps.shape[-2:]))
    return CachedFeatures(torch.cat(features), torch.cat(labels), torch.cat(unary))
