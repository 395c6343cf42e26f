"""The features of a frozen trunk, computed once for all heads."""

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from contextcrf.data.dataset import SegmentationDataset
from contextcrf.modeling.config import UNARY
from contextcrf.modeling.model import ContextCRF
from contextcrf.training.config import Recipe
from contextcrf.training.sampler import SeededSampler
from contextcrf.utils.resizing import channels_last, downsample
from contextcrf.utils.runtime import autocast


class CachedFeatures(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """What a frozen trunk says on the graph's grid, in memory, indexed by what `SeededSampler` yields.

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
    model: ContextCRF, data: SegmentationDataset, name: str, views: int, recipe: Recipe, progress: bool = True
) -> CachedFeatures:
    """Features (bfloat16) of the potential `name`, labels and unary logits of the images, each seen `views` times."""
    model.eval()
    device = next(model.parameters()).device
    features, labels, unary = [], [], []
    samplers = [SeededSampler(len(data), recipe.seed) for _ in range(views)]
    for epoch, sampler in enumerate(samplers):
        sampler.set_epoch(epoch)
        loader = DataLoader(data, recipe.batch_size, sampler=sampler, num_workers=recipe.workers)
        for images, masks in track(loader, f"features, view {epoch + 1} of {views}", disable=not progress):
            with autocast(device, recipe.precision):
                both = model.features(channels_last(images.to(device)), [UNARY, name])
                logits = model.pool(model.unary(both[UNARY]).float())
            maps = both[name]
            unary.append(logits.cpu())
            features.append(maps.to(torch.bfloat16).cpu())
            labels.append(downsample(masks, maps.shape[-2:]))
    return CachedFeatures(torch.cat(features), torch.cat(labels), torch.cat(unary))
