"""Images that are too large to be labeled at once are cut into overlapping tiles."""

from collections.abc import Iterator

# Borders of tiles lie on the grid of every stride, so that nodes stand where they stand in the whole image.
_GRID = 32

Region = tuple[slice, slice]


def tiles(height: int, width: int, side: int, overlap: int) -> Iterator[tuple[Region, Region]]:
    """Cut an image into tiles.

    The relations of a tile's graph are fractions of the tile's shorter side, not of the image's.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        side: of the part of a tile that is kept, pixels, at least 32; rounded down to a multiple of 32.
        overlap: pixels that are computed around it, as far as the image reaches; rounded up to a multiple of 32.

    Yields:
        The rows and columns of the image that are computed, and those of them that are kept.

    Example:
        >>> [kept for _, kept in tiles(64, 96, side=64, overlap=32)]
        [(slice(0, 64, None), slice(0, 64, None)), (slice(0, 64, None), slice(64, 96, None))]
    """
    side, overlap = side // _GRID * _GRID, -(-overlap // _GRID) * _GRID
    for top in range(0, height, side):
        for left in range(0, width, side):
            kept = slice(top, min(top + side, height)), slice(left, min(left + side, width))
            computed = (
                slice(max(0, top - overlap), min(kept[0].stop + overlap, height)),
                slice(max(0, left - overlap), min(kept[1].stop + overlap, width)),
            )
            yield computed, kept
