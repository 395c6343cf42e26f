"""Pictures too large to be labeled at once: in tiles that overlap, in memory that does not grow with the picture."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.progress import track
from torch import Tensor

from contextcrf.inference.tta import ONE_VIEW, Views
from contextcrf.modeling.model import ContextCRF

# Borders of tiles lie on the grid of every stride, so that nodes stand where they stand in the whole picture.
_GRID = 32


@dataclass(frozen=True)
class Tiles:
    """How a large picture is cut. Each tile is seen with a margin around it, and labeled without.

    The relations of a tile's graph are fractions of the tile's shorter side, not of the picture's.

    Args:
        side: of a tile without its margin, pixels.
        margin: seen on every side, as far as the picture reaches.
        above: pictures of more pixels than this are cut.
    """

    side: int = 1536
    margin: int = 256
    above: int = 16_000_000

    def __post_init__(self) -> None:
        if self.side < _GRID or self.margin < 0:
            raise ValueError(f"tiles of {self.side} pixels with margins of {self.margin}: expected {_GRID}, 0 or more")

    def of(self, height: int, width: int) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
        """For every tile what is seen, and the part of it that is labeled, both as rows and columns of the picture."""
        side, margin = self.side // _GRID * _GRID, -(-self.margin // _GRID) * _GRID
        for top in range(0, height, side):
            for left in range(0, width, side):
                core = slice(top, min(top + side, height)), slice(left, min(left + side, width))
                seen = (
                    slice(max(0, top - margin), min(core[0].stop + margin, height)),
                    slice(max(0, left - margin), min(core[1].stop + margin, width)),
                )
                yield seen, core


def label(
    model: ContextCRF,
    pixels: Tensor,
    dense: bool = False,
    views: Views = ONE_VIEW,
    tiles: Tiles | None = None,
    progress: bool = True,
) -> Tensor:
    """Labels uint8 [H, W] of a picture uint8 [3, H, W]; in tiles if it is large.

    Args:
        dense, views: as for `ContextCRF.segment`.
        tiles: how; None is never.
        progress: show a bar over the tiles where there are several; beside that of the pictures it goes when it ends.
    """
    height, width = pixels.shape[1:]
    if tiles is None or height * width <= tiles.above:
        return model.segment(pixels, dense=dense, views=views).labels.byte()
    labels = torch.empty(height, width, dtype=torch.uint8)
    cuts = list(tiles.of(height, width))
    for seen, core in track(cuts, "tiles", transient=True, disable=not progress or len(cuts) == 1):
        found = model.segment(pixels[:, *seen], dense=dense, views=views).labels
        rows, columns = (slice(o.start - s.start, o.stop - s.start) for o, s in zip(core, seen, strict=True))
        labels[core] = found[rows, columns].byte()
    return labels
