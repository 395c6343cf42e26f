"""Overlapping tiles of images that are too large to be labeled at once."""

from collections.abc import Iterator

from contextcrf.data.raster import Region as Region

# The borders of tiles are multiples of every stride, so that the nodes have the same positions as in the whole image.
_GRID = 32


def tiles(height: int, width: int, side: int, overlap: int) -> Iterator[tuple[Region, Region]]:
    """Yield the tiles of an image.

    The boxes of the relations are fractions of the shorter side of the computed region (the tile with its border), and
    not of the image.

    Args:
        height: the height of the image in pixels.
        width: the width of the image in pixels.
        side: the side of a tile without its border in pixels, at least 32. It is rounded down to a multiple of 32.
        overlap: the width in pixels of the border around a tile. The border is computed with the tile, but not kept. It
            is rounded up to a multiple of 32. The border does not extend beyond the image.

    Yields:
        The rows and columns of the image that are computed, and the rows and columns that are kept.

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


def within(kept: Region, computed: Region) -> Region:
    """Return the rows and columns that are kept, counted from the first row and column that are computed.

    Example:
        >>> within((slice(64, 96), slice(0, 64)), (slice(32, 96), slice(0, 96)))
        (slice(32, 64, None), slice(0, 64, None))
    """
    rows, columns = (slice(k.start - c.start, k.stop - c.start) for k, c in zip(kept, computed, strict=True))
    return rows, columns
