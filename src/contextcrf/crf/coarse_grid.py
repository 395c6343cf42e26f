"""Pairwise potentials on a grid that is coarser than that of the unary logits."""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

from contextcrf.crf.checks import whole_number
from contextcrf.crf.meanfield import Pairwise
from contextcrf.crf.relations import Graph


class CoarseGrid:
    """A pairwise potential whose graph is coarser than the grid of the marginals by a whole factor r.

    Each cell of the coarse grid covers r x r nodes of the fine grid, fewer at the right and lower border. Every pair of
    nodes in two joined cells is an edge of weight 1 / r^2 whose pair logits are those of the two cells. Nodes in the
    same cell are not joined.

    It stands wherever `mean_field` takes a pairwise potential, together with the features of the coarse grid: marginals
    go to the cells by `shrink`, and messages go to their nodes by `enlarge`. With r = 1 it is the potential itself.

    Args:
        pairwise: the potential on the coarse grid.
        factor: r, >= 1.

    Attributes:
        pairwise: as given.
        factor: as given.

    Raises:
        ValueError: if `factor` is not a whole number >= 1.

    Example:
        >>> import torch
        >>> from contextcrf.crf import CoarseGrid, PairwisePotential, RangeBox, mean_field
        >>> potential = PairwisePotential(in_channels=8, num_classes=3, box=RangeBox.surrounding())
        >>> logits, coarse_features = torch.randn(1, 3, 10, 15), torch.randn(1, 8, 5, 8)
        >>> mean_field(logits, [(CoarseGrid(potential, factor=2), coarse_features)]).shape
        torch.Size([1, 3, 10, 15])
    """

    def __init__(self, pairwise: Pairwise, factor: int) -> None:
        self.pairwise = pairwise
        self.factor = whole_number("factor", factor, least=1)

    def graph(self, features: Tensor) -> Graph:
        """The graph of the wrapped potential on features [B, C, h, w] of the coarse grid; its nodes are the cells."""
        return self.pairwise.graph(features)

    def prepare(self, features: Tensor) -> Callable[[Tensor], Tensor]:
        """Expected pair logits, as `PairwisePotential.messages`, as a function of marginals of the fine grid.

        Args:
            features: [B, C, h, w] of the coarse grid, h = ceil(H / r) and w = ceil(W / r).

        Returns:
            A function of marginals [B, K, H, W] of the fine grid that returns messages likewise. It raises ValueError
            where the two sizes do not fit the factor.
        """
        messages = self.pairwise.prepare(features)
        if self.factor == 1:
            return messages

        def fine_messages(marginals: Tensor) -> Tensor:
            self._check_sizes(features, marginals)
            return enlarge(messages(shrink(marginals, self.factor)), self.factor, marginals.shape[-2:])

        return fine_messages

    def _check_sizes(self, features: Tensor, marginals: Tensor) -> None:
        height, width = (-(-side // self.factor) for side in marginals.shape[-2:])
        if tuple(features.shape[-2:]) != (height, width):
            raise ValueError(
                f"features {tuple(features.shape)} do not fit marginals {tuple(marginals.shape)} with "
                f"factor={self.factor}; expected features of {height} x {width} cells, the height and width of the "
                f"marginals divided by {self.factor} and rounded up"
            )


def shrink(fine: Tensor, factor: int) -> Tensor:
    """Sum a map over the nodes of each cell and divide by factor^2.

    This is the mean, except in a cell that the border cuts: its sum has fewer terms, so its messages weigh less.

    Args:
        fine: [B, C, H, W].
        factor: nodes along a side of a cell.

    Returns:
        [B, C, ceil(H / factor), ceil(W / factor)].
    """
    height, width = fine.shape[-2:]
    return F.avg_pool2d(F.pad(fine, (0, -width % factor, 0, -height % factor)), factor)


def enlarge(coarse: Tensor, factor: int, size: Sequence[int]) -> Tensor:
    """Give every node the value of its cell.

    Args:
        coarse: [B, C, h, w].
        factor: nodes along a side of a cell.
        size: height H and width W of the fine grid.

    Returns:
        [B, C, H, W].
    """
    return coarse.repeat_interleave(factor, 2).repeat_interleave(factor, 3)[..., : size[0], : size[1]]
