"""Pairwise potentials on a grid that is coarser than the grid of the unary logits."""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

from contextcrf.crf.checks import whole_number
from contextcrf.crf.meanfield import Pairwise
from contextcrf.crf.relations import Graph


class CoarseGrid:
    """A pairwise potential whose graph is coarser than the grid of the marginals by an integer factor r.

    Each cell of the coarse grid covers r x r nodes of the fine grid. Cells at the right and lower border may cover
    fewer nodes. If two cells are joined, each node of the one is joined with each node of the other by an edge of
    weight 1 / r^2 with the pair logits of the two cells. Nodes in the same cell are not joined.

    Pass a `CoarseGrid` with the features of the coarse grid to `mean_field` in place of a pairwise potential. The
    marginals of the nodes are summed over each cell and divided by r^2, and the messages of a cell are copied to its
    nodes. With r = 1, the result is the same as with the potential itself.

    With `upsampling="bilinear"`, the messages are interpolated between the centers of the cells instead, so they change
    smoothly across the border of two cells. The terms of the two nodes of an edge then differ slightly, so the updates
    are no longer those of one CRF.

    Args:
        pairwise: the potential on the coarse grid.
        factor: the number r of nodes along each side of a cell, >= 1.
        upsampling: the interpolation of the messages, "nearest" or "bilinear".

    Attributes:
        pairwise: as given.
        factor: as given.
        upsampling: as given.

    Raises:
        ValueError: if `factor` is not a whole number >= 1, or `upsampling` has another value.

    Example:
        >>> import torch
        >>> from contextcrf.crf import CoarseGrid, PairwisePotential, RangeBox, mean_field
        >>> potential = PairwisePotential(in_channels=8, num_classes=3, box=RangeBox.surrounding())
        >>> logits, coarse_features = torch.randn(1, 3, 10, 15), torch.randn(1, 8, 5, 8)
        >>> mean_field(logits, [(CoarseGrid(potential, factor=2), coarse_features)]).shape
        torch.Size([1, 3, 10, 15])
    """

    def __init__(self, pairwise: Pairwise, factor: int, upsampling: str = "nearest") -> None:
        self.pairwise = pairwise
        self.factor = whole_number("factor", factor, least=1)
        if upsampling not in ("nearest", "bilinear"):
            raise ValueError(f"upsampling is {upsampling!r}, but must be 'nearest' or 'bilinear'.")
        self.upsampling = upsampling

    def graph(self, features: Tensor) -> Graph:
        """Return the graph of the wrapped potential on coarse features [B, C, h, w]. Its nodes are the cells."""
        return self.pairwise.graph(features)

    def prepare(self, features: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the messages as a function of the marginals on the fine grid.

        Args:
            features: the features of the coarse grid, [B, C, h, w] with h = ceil(H / r) and w = ceil(W / r).

        Returns:
            A function that takes marginals [B, K, H, W] and returns messages [B, K, H, W], both on the fine grid. It
                raises ValueError if the two sizes do not fit the factor.
        """
        messages = self.pairwise.prepare(features)
        if self.factor == 1:
            return messages

        def fine_messages(marginals: Tensor) -> Tensor:
            self._check_sizes(features, marginals)
            coarse = messages(shrink(marginals, self.factor))
            return enlarge(coarse, self.factor, marginals.shape[-2:], self.upsampling)

        return fine_messages

    def _check_sizes(self, features: Tensor, marginals: Tensor) -> None:
        """Raise ValueError unless the features have the size of the coarse grid."""
        height, width = (-(-side // self.factor) for side in marginals.shape[-2:])
        if tuple(features.shape[-2:]) != (height, width):
            raise ValueError(
                f"The features have the shape {tuple(features.shape)}, which does not fit marginals of shape "
                f"{tuple(marginals.shape)} with factor={self.factor}. Expected features of {height} x {width} cells, "
                f"that is, the height and the width of the marginals divided by {self.factor} and rounded up."
            )


def shrink(fine: Tensor, factor: int) -> Tensor:
    """Sum a map over the nodes of each cell and divide by factor^2.

    In a whole cell, this is the mean. A cell that is cut off by the border of the map has fewer nodes, so its value,
    and therefore the weight of its messages, is lower.

    Args:
        fine: a map on the fine grid, [B, C, H, W].
        factor: the number of nodes along each side of a cell.

    Returns:
        The map on the coarse grid, [B, C, ceil(H / factor), ceil(W / factor)].

    Example:
        >>> import torch
        >>> from contextcrf.crf.coarse_grid import shrink
        >>> shrink(torch.ones(1, 1, 2, 3), 2).tolist()
        [[[[1.0, 0.5]]]]
    """
    height, width = fine.shape[-2:]
    return F.avg_pool2d(F.pad(fine, (0, -width % factor, 0, -height % factor)), factor)


def enlarge(coarse: Tensor, factor: int, size: Sequence[int], upsampling: str = "nearest") -> Tensor:
    """Copy the value of each cell to all of its nodes, or interpolate bilinearly between the centers of the cells.

    Args:
        coarse: a map on the coarse grid, [B, C, h, w].
        factor: the number of nodes along each side of a cell.
        size: the height H and the width W of the fine grid.
        upsampling: "nearest" or "bilinear". Outside the outermost centers, "bilinear" repeats the values.

    Returns:
        The map on the fine grid, [B, C, H, W].

    Example:
        >>> import torch
        >>> from contextcrf.crf.coarse_grid import enlarge
        >>> enlarge(torch.tensor([[[[1.0, 2.0]]]]), 2, size=(2, 3)).tolist()
        [[[[1.0, 1.0, 2.0], [1.0, 1.0, 2.0]]]]
    """
    if upsampling == "bilinear":
        fine = F.interpolate(coarse, scale_factor=float(factor), mode="bilinear", align_corners=False)
    else:
        fine = coarse.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return fine[..., : size[0], : size[1]]
