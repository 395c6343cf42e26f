"""Mean-field messages: sums of expected pair logits over windows of neighboring nodes.

Mean field spends most of its time on these sums. If a sender s and a receiver r are joined by an edge, the message
from s to r is

    sum_j Q_s(j) W_j relu(f_s + g_r) + bias,        W_j the K x D slice of the last layer for the sender's label j.

The marginals of a sender are contracted with the layer once, C_s = sum_j Q_s(j) W_j. Every edge then costs K x D
products, whereas the table of pair logits would cost K^2 x D. The hidden units of the edges are computed in tiles that
fit into the processor's cache, because writing them to memory would take longer than the products.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from contextcrf.crf.blocks import block_elements, slices
from contextcrf.crf.relations import Window

# Hidden units that a thread computes at once: 1 MiB of float32, half the cache of a core.
TILE_ELEMENTS = 1 << 18
# The largest number of elements that a block of sender rows stores: its messages and, with gradients, its hidden units.
BLOCK_ELEMENTS = 1 << 22
# The smallest number of hidden units of the senders whose marginals are contracted together. Of the paper's 512 units,
# these are 32 senders. With fewer, the matrix product is slow, and with more, its result does not fit into the cache.
CONTRACTED_UNITS = 1 << 14
# The smallest number of senders in a block, and of the hidden units of their edges, on a CPU. With fewer, the matrix
# products are slow.
CPU_SENDERS, CPU_UNITS = 128, 1 << 20
# The smallest number of senders in a block on an accelerator. With fewer, it is not busy.
SENDERS = 2048


class Workspace:
    """Memory that is reused by name, because allocating it again takes longer than the computations that use it.

    Args:
        like: a tensor with the dtype and device of the memory.
    """

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.kept: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return an uninitialized tensor of a shape. It reuses the memory of earlier tensors with the same name.

        The dtype is that of `like` if None. A name always has the same dtype.
        """
        size = torch.Size(shape).numel()
        if name not in self.kept or self.kept[name].numel() < size:
            self.kept[name] = self.like.new_empty(size, dtype=dtype)
        return self.kept[name][:size].view(shape)


def send(
    senders: Tensor,
    receivers: Tensor,
    marginals: Tensor,
    weight: Tensor,
    bias: Tensor,
    window: Window,
    workspace: Workspace,
) -> Tensor:
    """Compute the messages from every node to the nodes in its window, and sum them at the receivers.

    The result is differentiable. The backward pass recomputes blocks of rows to save memory.

    Args:
        senders: the part f of the hidden layer, [B, H, W, D].
        receivers: the part g of the hidden layer, [B, H, W, D].
        marginals: the marginals Q of the senders, [B, H, W, K].
        weight: the weight of the last layer, [K, K, D]. The sender's label is the first index.
        bias: the bias of the last layer, [K, K]. The sender's label is the first index.
        window: the displacements from a sender to its receivers.
        workspace: memory that is used if no gradients are needed.

    Returns:
        The summed messages, [B, H, W, K], in at least single precision. In half precision, a sum over a hundred edges
            would be inaccurate.
    """
    batch, height, width, hidden = senders.shape
    num_classes = marginals.shape[-1]
    if not any(map(any, window.inside)):
        return accumulator(senders, batch, height, width, num_classes)
    top, bottom, left, right = window.rows[0], window.rows[-1], window.columns[0], window.columns[-1]
    # Positions outside the map are receivers too. They are cropped at the end, which is faster than excluding them. If
    # all receivers lie to one side of their sender, some padding is negative and crops the receivers without a sender.
    receivers = F.pad(receivers, (0, 0, -left, right, -top, bottom))
    total = accumulator(senders, *receivers.shape[:3], num_classes)
    gradients = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (senders, receivers, marginals, weight, bias)
    )
    per_node = len(window.rows) * len(window.columns)
    edges = width * per_node
    per_row = edges * (num_classes + 2 * hidden) + width * hidden * num_classes if gradients else edges * num_classes
    # All rows of a block share one window. In a taller block, a larger part of this window lies outside the map.
    on_cpu = senders.device.type == "cpu"
    least = max(CPU_SENDERS, CPU_UNITS // (per_node * hidden)) if on_cpu else SENDERS
    elements = block_elements(senders.device, on_cpu=BLOCK_ELEMENTS)
    step = min(elements // per_row, max((bottom - top) // 2 + 1, least // width + 1))
    for image in range(batch):
        for rows in slices(height, step):
            near = window.between(-(rows.stop - 1), height - 1 - rows.start)
            if not near.rows:
                continue
            reach = slice(rows.start + near.rows[0] - top, rows.stop + near.rows[-1] - top)
            arguments = (senders[image, rows], receivers[image, reach], marginals[image, rows], weight, bias, near)
            if gradients:
                total[image, reach] += checkpoint(_block, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                total[image, reach] += _block(*arguments, workspace)
    return F.pad(total, (0, 0, left, -right, top, -bottom))


def _block(
    senders: Tensor,
    receivers: Tensor,
    marginals: Tensor,
    weight: Tensor,
    bias: Tensor,
    window: Window,
    workspace: Workspace | None = None,
) -> Tensor:
    """Compute the messages of some rows of senders, and sum them at the receivers.

    Args:
        senders: the part f of the hidden layer at these rows, [h, W, D].
        receivers: the part g of the hidden layer, [h + R - 1, W + S - 1, D]. The rows of the window span R nodes and
            its columns span S nodes. The receivers of sender (y, x) are at the positions (y, x) to
            (y + R - 1, x + S - 1).
        marginals: the marginals of the senders, [h, W, K].
        weight: the weight of the last layer, [K, K, D].
        bias: the bias of the last layer, [K, K].
        window: the displacements from a sender to its receivers.
        workspace: reusable memory. None if gradients are needed, and then there is only one tile.

    Returns:
        The summed messages, [h + R - 1, W + S - 1, K].
    """
    rows, columns = ([value - values[0] for value in values] for values in (window.rows, window.columns))
    windows = receivers.unfold(0, rows[-1] + 1, 1).unfold(1, columns[-1] + 1, 1).permute(0, 1, 3, 4, 2)
    marginals = marginals.to(weight.dtype)
    biases = (marginals @ bias)[:, :, None]
    if workspace is None:
        contracted = torch.matmul(marginals.flatten(0, 1), weight.transpose(0, 1)).unflatten(1, senders.shape[:2])
        sent = _tile(windows, senders, contracted, rows, columns).add_(biases)
    else:
        sent = _tiles(windows, senders, marginals, weight, biases, rows, columns, workspace)
    return _overlapping_sum(sent.unflatten(2, (len(rows), len(columns))), window)


def _tiles(
    windows: Tensor,
    senders: Tensor,
    marginals: Tensor,
    weight: Tensor,
    biases: Tensor,
    rows: list[int],
    columns: list[int],
    workspace: Workspace,
) -> Tensor:
    """Compute the messages of `_tile` plus biases for all senders, in tiles that fit into the cache of a CPU."""
    height, width, hidden = senders.shape
    num_classes = marginals.shape[-1]
    edges = len(rows) * len(columns)
    # In the dtype of the sums, since sums of tensors with different dtypes take longer.
    sent = workspace("sent", height, width, edges, num_classes, dtype=_sum_dtype(senders))
    # A tile contains either several whole rows of senders or a part of one row.
    elements = block_elements(senders.device, on_cpu=TILE_ELEMENTS * torch.get_num_threads())
    count = max(1, elements // (edges * hidden))
    lines = max(1, count // width)
    for some in slices(height, max(lines, -(-CONTRACTED_UNITS // (hidden * width)))):
        flat = marginals[some].flatten(0, 1)
        contracted = workspace("contracted", num_classes, len(flat), hidden)
        torch.matmul(flat, weight.transpose(0, 1), out=contracted)
        contracted = contracted.unflatten(1, (-1, width))
        for y in slices(contracted.shape[1], lines):
            for x in slices(width, count if lines == 1 else width):
                tile = (windows[some][y, x], senders[some][y, x], contracted[:, y, x], rows, columns)
                torch.add(_tile(*tile, workspace), biases[some][y, x], out=sent[some][y, x])
    return sent


def _tile(
    windows: Tensor,
    senders: Tensor,
    contracted: Tensor,
    rows: list[int],
    columns: list[int],
    workspace: Workspace | None = None,
) -> Tensor:
    """Compute the messages [h, w, edges, K] of senders [h, w, D] to the receivers [h, w, R, S, D] in their windows.

    `contracted` is the last layer, contracted with the marginals of the senders, [K, h, w, D].
    """
    if workspace is None:
        units = _select(_select(windows, 2, rows), 3, columns) + senders[:, :, None, None]
    else:
        units = workspace("hidden", *senders.shape[:2], len(rows), len(columns), senders.shape[2])
        for (at, down), (place, across) in product(_runs(rows), _runs(columns)):
            part = windows[:, :, down, across]
            torch.add(part, senders[:, :, None, None], out=units[:, :, at, place])
    units = units.relu_().flatten(2, 3)
    places, edges = units.shape[:2], units.shape[2]
    units, weights = units.flatten(0, 1), contracted.flatten(1, 2).transpose(0, 1)
    # [K, D] times [D, edges] is nearly twice as fast as its transpose if K does not fill the vector registers (11, 21).
    out = None if workspace is None else workspace("transposed", len(units), weights.shape[1], edges)
    return torch.bmm(weights, units.mT, out=out).mT.unflatten(0, places)


def _runs(places: list[int]) -> Iterator[tuple[slice, slice]]:
    """Divide places into runs of equally spaced ones, because a slice of a tensor needs no copy.

    Yields:
        The positions in the list, and the places themselves.
    """
    start = 0
    while start < len(places):
        stop, step = start + 1, places[start + 1] - places[start] if start + 1 < len(places) else 1
        while stop < len(places) and places[stop] - places[stop - 1] == step:
            stop += 1
        yield slice(start, stop), slice(places[start], places[stop - 1] + 1, step)
        start = stop


def _select(windows: Tensor, axis: int, places: list[int]) -> Tensor:
    """Select places of an axis. Equally spaced places are a view, and others a copy."""
    if len(runs := list(_runs(places))) == 1:
        return windows.movedim(axis, 0)[runs[0][1]].movedim(0, axis)
    # The gradient of a single selection is a single tensor, whereas each slice would have one of the size of `windows`.
    return windows.index_select(axis, _index(tuple(places), windows.device))


@lru_cache(maxsize=64)
def _index(places: tuple[int, ...], device: torch.device) -> Tensor:
    """Return places as a tensor. It is cached, because the copy to a device waits for the device."""
    return torch.tensor(places, device=device)


def _overlapping_sum(sent: Tensor, window: Window) -> Tensor:
    """Sum messages [h, W, rows, columns, K] at their receivers, [h + R - 1, W + S - 1, K]."""
    height, width, *_, num_classes = sent.shape
    for row, columns in window.outside():
        sent[:, :, row, columns].zero_()
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
    """Return zeros in at least single precision, since half precision is inaccurate for sums over a hundred edges."""
    return like.new_zeros(shape, dtype=_sum_dtype(like))


def sum_precision(values: Tensor) -> Tensor:
    """Convert values to the dtype of their sums, at least single precision."""
    return values.to(_sum_dtype(values))


def _sum_dtype(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)
