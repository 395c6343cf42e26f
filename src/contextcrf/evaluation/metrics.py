"""Confusion matrices and what follows from them: intersection over union, pixel accuracy."""

from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.functional.classification import multiclass_confusion_matrix

from contextcrf.data.classes import IGNORE_INDEX


def confusion(prediction: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Counts int64 [K, K], rows truth, columns prediction, of labels int64 of one shape.

    Args:
        prediction: labels.
        truth: labels; pixels with 255 (`IGNORE_INDEX`) do not count.
        num_classes: K.
    """
    return multiclass_confusion_matrix(prediction, truth, num_classes, ignore_index=IGNORE_INDEX, validate_args=False)


def intersection_over_union(counts: Tensor) -> Tensor:
    """IoU per class, [..., K], of confusion matrices [..., K, K]; NaN for a class in neither truth nor prediction.

    The mean over classes is `.nanmean(-1)`, Everingham et al. (2010).

    Example:
        >>> import torch
        >>> intersection_over_union(torch.tensor([[2, 1], [0, 1]])).tolist()
        [0.6666666666666666, 0.5]
    """
    hits = counts.diagonal(dim1=-2, dim2=-1).double()
    return hits / (counts.sum(-2) + counts.sum(-1) - hits)


class ConfusionMatrix(MulticlassConfusionMatrix):
    """Counts of (truth, prediction) over the pixels whose truth is known; scores of Everingham et al. (2010).

    A torchmetrics metric: registered in a module, it is summed over all processes of a training.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, ignore_index=IGNORE_INDEX, validate_args=False)

    @classmethod
    def of(cls, counts: Tensor) -> "ConfusionMatrix":
        """The metric whose counts int64 [K, K] are these."""
        result = cls(len(counts))
        result.confmat = counts
        return result

    @property
    def counts(self) -> Tensor:
        """int64 [K, K], rows truth, columns prediction."""
        return self.confmat

    def iou(self) -> Tensor:
        """Intersection over union per class, [K]; NaN for a class in neither truth nor prediction."""
        return intersection_over_union(self.counts)

    def mean_iou(self) -> float:
        """Mean IoU over the classes that occur."""
        return self.iou().nanmean().item()

    def pixel_accuracy(self) -> float:
        """Share of known pixels with the right label."""
        return (self.counts.diagonal().sum() / self.counts.sum()).item()


def image_scores(counts: Tensor) -> Tensor:
    """Mean IoU of each image by itself, [images], of confusion matrices [images, K, K]; NaN where nothing is known."""
    return intersection_over_union(counts).nanmean(-1)
