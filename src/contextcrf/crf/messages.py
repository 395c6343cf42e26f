"""Sums of expected pair logits over windows, which take most of the time of mean field.

The message from a sender s to a receiver r that is joined to it is

    sum_j Q_s(j) W_j relu(f_s + g_r) + bias,        W_j the K x D slice of the last layer for the sender's label j.

The marginals of a sender are contracted with the layer once, C_s = sum_j Q_s(j) W_j, and every edge then costs K x D
products where the table of pair logits would take K^2 x D. The hidden units of the edges are computed in tiles small
enough to stay in a processor's cache: writing them to memory would take more time than the products.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from contextcrf.crf.relations import Window

# Hidden units that a thread computes at once: 1 MiB of float32, half of what a core's cache holds.
TILE_ELEMENTS = 1 << 18
# Most numbers that a block of sender rows keeps: its messages, and with gradients all its hidden units.
BLOCK_ELEMENTS = 1 << 22
# Least number of senders whose marginals are contracted at once: with fewer the matrix product is slow.
CONTRACTED = 128


class Scratch:
    """Memory that is reused by name, since allocating it anew takes longer than the computations in it.

    Args:
        like: a tensor with the dtype and device of the memory.
    """

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.kept: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """An uninitialized tensor of the shape. It overwrites the earlier tensors of the same name."""
        size = torch.Size(shape).numel()
        if name not in self.kept or self.kept[name].numel() < size:
            self.kept[name] = self.like.new_empty(size)
        return self.kept[name][:size].view(shape)


def send(
    senders: Tensor,
    receivers: Tensor,
    marginals: Tensor,
    weight: Tensor,
    bias: Tensor,
    window: Window,
    scratch: Scratch,
) -> Tensor:
    """Compute the messages from every node to the nodes of its window, summed at the receivers.

    The result is differentiable; blocks of rows are recomputed in the backward pass.

    Args:
        senders: the half f of the hidden layer, [B, H, W, D].
        receivers: the half g of the hidden layer, [B, H, W, D].
        marginals: Q of the senders, [B, H, W, K].
        weight: of the last layer, [K, K, D], the sender's label first.
        bias: of the last layer, [K, K], the sender's label first.
        window: the displacements from a sender to its receivers.
        scratch: memory that is used where no gradients are needed.

    Returns:
        [B, H, W, K], in at least single precision: a sum over a hundred edges loses its digits in half precision.
    """
    batch, height, width, hidden = senders.shape
    num_classes = marginals.shape[-1]
    if not window.inside.any():
        return accumulator(senders, batch, height, width, num_classes)
    top, bottom, left, right = window.rows[0], window.rows[-1], window.columns[0], window.columns[-1]
    # Places outside the map are receivers too, and are cut off at the end, which is faster than leaving them out. Where
    # all receivers lie to one side of their sender, the padding is negative and cuts off those without a sender.
    receivers = F.pad(receivers, (0, 0, -left, right, -top, bottom))
    total = accumulator(senders, *receivers.shape[:3], num_classes)
    gradients = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (senders, receivers, marginals, weight, bias)
    )
    edges = width * window.inside.numel()
    per_row = edges * (num_classes + 2 * hidden) + width * hidden * num_classes if gradients else edges * num_classes
    # All rows of a block share one window: the taller the block, the more of the window lies outside the map.
    step = min(BLOCK_ELEMENTS // per_row, max((bottom - top) // 2 + 1, CONTRACTED // width + 1))
    for image in range(batch):
        for rows in _parts(height, step):
            near = window.between(-(rows.stop - 1), height - 1 - rows.start)
            if not near.rows:
                continue
            reach = slice(rows.start + near.rows[0] - top, rows.stop + near.rows[-1] - top)
            arguments = (senders[image, rows], receivers[image, reach], marginals[image, rows], weight, bias, near)
            if gradients:
                total[image, reach] += checkpoint(_block, *arguments, use_reentrant=False)
            else:
                total[image, reach] += _block(*arguments, scratch)
    return F.pad(total, (0, 0, left, -right, top, -bottom))


def _parts(length: int, step: int) -> Iterator[slice]:
    step = max(1, step)
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _block(
    senders: Tensor,
    receivers: Tensor,
    marginals: Tensor,
    weight: Tensor,
    bias: Tensor,
    window: Window,
    scratch: Scratch | None = None,
) -> Tensor:
    """The messages of some rows of senders, summed at the receivers.

    Args:
        senders: [h, W, D].
        receivers: [h + R - 1, W + S - 1, D], R and S the spans of the window's rows and columns: the receivers of
            sender (y, x) are at the places from (y, x) on.
        marginals: [h, W, K].
        weight: [K, K, D].
        bias: [K, K].
        window: the displacements from a sender to its receivers.
        scratch: None where gradients are needed; then there is one tile.

    Returns:
        [h + R - 1, W + S - 1, K].
    """
    rows, columns = ([value - values[0] for value in values] for values in (window.rows, window.columns))
    windows = receivers.unfold(0, rows[-1] + 1, 1).unfold(1, columns[-1] + 1, 1).permute(0, 1, 3, 4, 2)
    marginals = marginals.to(weight.dtype)
    if scratch is None:
        contracted = torch.matmul(marginals.flatten(0, 1), weight.transpose(0, 1)).unflatten(1, senders.shape[:2])
        sent = _tile(windows, senders, contracted, rows, columns)
    else:
        sent = _tiles(windows, senders, marginals, weight, rows, columns, scratch)
    sent.add_((marginals @ bias)[:, :, None])
    return _overlapping_sum(sent.unflatten(2, (len(rows), len(columns))), window)


def _tiles(
    windows: Tensor,
    senders: Tensor,
    marginals: Tensor,
    weight: Tensor,
    rows: list[int],
    columns: list[int],
    scratch: Scratch,
) -> Tensor:
    """The messages of `_tile` for all senders, computed in tiles that stay in the processor's cache."""
    height, width, hidden = senders.shape
    num_classes = marginals.shape[-1]
    edges = len(rows) * len(columns)
    sent = scratch("sent", height, width, edges, num_classes)
    # The senders of one tile are some whole rows, or a part of one row.
    count = max(1, TILE_ELEMENTS * torch.get_num_threads() // (edges * hidden))
    lines = max(1, count // width)
    for some in _parts(height, max(lines, -(-CONTRACTED // width))):
        flat = marginals[some].flatten(0, 1)
        contracted = scratch("contracted", num_classes, len(flat), hidden)
        torch.matmul(flat, weight.transpose(0, 1), out=contracted)
        contracted = contracted.unflatten(1, (-1, width))
        for y in _parts(contracted.shape[1], lines):
            for x in _parts(width, count if lines == 1 else width):
                tile = (windows[some][y, x], senders[some][y, x], contracted[:, y, x], rows, columns)
                _tile(*tile, scratch, sent[some][y, x])
    return sent


def _tile(
    windows: Tensor,
    senders: Tensor,
    contracted: Tensor,
    rows: list[int],
    columns: list[int],
    scratch: Scratch | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Messages [h, w, edges, K] of senders [h, w, D] to the receivers [h, w, R, S, D] in their windows.

    `contracted` is the last layer contracted with the senders' marginals, [K, h, w, D].
    """
    if len(rows) < windows.shape[2]:
        windows = windows[:, :, rows]
    if len(columns) < windows.shape[3]:
        windows = windows[:, :, :, columns]
    memory = None if scratch is None else scratch("hidden", *windows.shape)
    units = torch.add(windows, senders[:, :, None, None], out=memory).relu_().flatten(2, 3)
    places, edges = units.shape[:2], units.shape[2]
    units, weights = units.flatten(0, 1), contracted.flatten(1, 2).transpose(0, 1)
    # [K, D] times [D, edges] is nearly twice as fast as its transpose where K fills no vector registers (11, 21).
    if scratch is None or out is None:
        return torch.bmm(weights, units.mT).mT.unflatten(0, places)
    sent = torch.bmm(weights, units.mT, out=scratch("transposed", len(units), weights.shape[1], edges))
    return out.copy_(sent.mT.unflatten(0, places))


def _overlapping_sum(sent: Tensor, window: Window) -> Tensor:
    """Messages [h, W, rows, columns, K] summed at their receivers, [h + R - 1, W + S - 1, K]."""
    height, width, *_, num_classes = sent.shape
    for i, j in (~window.inside).nonzero().tolist():
        sent[:, :, i, j] = 0
    span = window.columns[-1] - window.columns[0] + width
    across = accumulator(sent, height, span, len(window.rows), num_classes)
    for dx, part in zip(window.columns, sent.unbind(3), strict=True):
        start = dx - window.columns[0]
        across[:, start : start + width].add_(part)
    total = accumulator(sent, window.rows[-1] - window.rows[0] + height, span, num_classes)
    for dy, part in zip(window.rows, across.unbind(2), strict=True):
        start = dy - window.rows[0]
        total[start : start + height].add_(part)
    return total


def accumulator(like: Tensor, *shape: int) -> Tensor:
    """Zeros in at least single precision: a sum over a hundred edges loses its digits in half precision."""
    return like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32))
