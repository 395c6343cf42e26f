"""Confusion matrices and the scores that are computed from them: intersection over union and pixel accuracy."""

from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.functional.classification import multiclass_confusion_matrix

from contextcrf.data.classes import IGNORE_INDEX


def confusion(prediction: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of each pair of ground truth and predicted label.

    Args:
        prediction: predicted labels, int64 of any shape.
        truth: labels of the ground truth, int64 of the same shape; pixels with 255 (`IGNORE_INDEX`) are not counted.
        num_classes: number of classes K.

    Returns:
        Counts, int64 [K, K]; rows are the ground truth and columns the prediction.
    """
    return multiclass_confusion_matrix(prediction, truth, num_classes, ignore_index=IGNORE_INDEX, validate_args=False)


def intersection_over_union(counts: Tensor) -> Tensor:
    """Compute the intersection over union (IoU) of each class, as in Everingham et al. (2010).

    Args:
        counts: confusion matrices [..., K, K].

    Returns:
        IoU as fractions, float64 [..., K]; NaN for a class that occurs neither in the ground truth nor in the
        prediction.

    Example:
        >>> import torch
        >>> intersection_over_union(torch.tensor([[2, 1], [0, 1]])).tolist()
        [0.6666666666666666, 0.5]
    """
    hits = counts.diagonal(dim1=-2, dim2=-1).double()
    return hits / (counts.sum(-2) + counts.sum(-1) - hits)


def mean_iou(counts: Tensor) -> Tensor:
    """Compute the mean IoU over the classes that occur in the ground truth.

    Predictions of other classes count as errors of the classes that do occur. If their IoU of 0 were averaged too, two
    systems could be averaged over different classes, and a single pixel could change the mean by many points.

    Args:
        counts: confusion matrices [..., K, K].

    Returns:
        Fractions, float64 [...]; NaN without labeled pixels.

    Example:
        >>> import torch
        >>> mean_iou(torch.tensor([[3, 0, 1], [0, 2, 0], [0, 0, 0]])).item()
        0.875
    """
    occurs = counts.sum(-1) > 0
    return intersection_over_union(counts).where(occurs, float("nan")).nanmean(-1)


class ConfusionMatrix(MulticlassConfusionMatrix):
    """A torchmetrics metric that counts pairs of ground truth and predicted label, and computes scores from them.

    Pixels whose ground truth is 255 (`IGNORE_INDEX`) are not counted. The scores are those of Everingham et al. (2010).
    As a part of a Lightning module, the metric is summed over all processes of a training run.

    Args:
        num_classes: number of classes K.

    Example:
        >>> import torch
        >>> matrix = ConfusionMatrix(num_classes=2)
        >>> matrix.update(torch.tensor([[0, 1, 1, 0]]), torch.tensor([[0, 0, 1, 255]]))
        >>> matrix.counts.tolist()
        [[1, 1], [0, 1]]
        >>> matrix.mean_iou()
        0.5
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, ignore_index=IGNORE_INDEX, validate_args=False)

    @classmethod
    def of(cls, counts: Tensor) -> "ConfusionMatrix":
        """Return a metric with the given counts, int64 [K, K]."""
        result = cls(len(counts))
        result.confmat = counts
        return result

    @property
    def counts(self) -> Tensor:
        """The counts, int64 [K, K]; rows are the ground truth and columns the prediction."""
        return self.confmat

    def iou(self) -> Tensor:
        """Return the IoU of each class as fractions, [K]; NaN for a class that neither occurs nor is predicted."""
        return intersection_over_union(self.counts)

    def mean_iou(self) -> float:
        """Return the mean IoU (`metrics.mean_iou`), a fraction; NaN without labeled pixels."""
        return mean_iou(self.counts).item()

    def pixel_accuracy(self) -> float:
        """Return the fraction of labeled pixels whose predicted label is right; NaN without labeled pixels."""
        return (self.counts.diagonal().sum() / self.counts.sum()).item()


def image_scores(counts: Tensor) -> Tensor:
    """Compute the mean IoU of each image separately.

    Args:
        counts: confusion matrices [images, K, K].

    Returns:
        Fractions [images]; NaN for an image without labeled pixels.
    """
    return mean_iou(counts)
