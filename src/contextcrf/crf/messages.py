"""Mean-field messages: sums of expected pair logits over windows of neighboring nodes.

Mean field spends most of its time on these sums. An edge (p, q) joins a node p, which owns the window, to a node q
inside it, and has the hidden units h_pq = relu(f_p + g_q). W_kj [D] is the part of the last layer for the label k of p
and the label j of q, and Q are the marginals. The messages of all edges are

    from p to q:  sum_k Q_p(k) W_kj h_pq + bias,      Q_p is contracted with the layer once for all edges of p.
    from q to p:  sum_j W_kj Q_q(j) h_pq + bias,      Q_q(j) h_pq is summed over all edges of p before the layer.

Every edge then costs K x D products in each direction, whereas the table of pair logits would cost K^2 x D. Both
directions use the same hidden units. They are computed in tiles that fit into the processor's cache, because writing
them to memory would take longer than the products.
"""

from collections.abc import Iterator
from itertools import product
from threading import get_ident

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from contextcrf.crf.blocks import block_elements, records_gradients, slices
from contextcrf.crf.cached_indices import cached_indices
from contextcrf.crf.relations import Window

# The number of hidden units that a thread computes at once: 2 MiB of float32.
TILE_ELEMENTS = 1 << 19
# The largest number of elements that a block of rows of nodes p stores: the messages and marginals of its edges and,
# with gradients, its hidden units.
BLOCK_ELEMENTS = 1 << 22
# The smallest number of hidden units of the nodes p whose [K, D] matrices are computed together. Of the paper's 512
# units, these are 64 nodes. With fewer, the matrix products are slow, and with more, the matrices do not fit into the
# cache.
CONTRACTED_UNITS = 1 << 15
# The smallest number of nodes p in a block, and of the hidden units of their edges, on a CPU. With fewer, the matrix
# products are slow.
CPU_NODES, CPU_UNITS = 128, 1 << 20
# The smallest number of nodes p in a block on an accelerator. With fewer, it is not busy.
NODES = 2048


class Workspace:
    """Memory that is reused by name, because allocating it again takes longer than the computations that use it.

    Each thread has memory of its own. So has inference mode, whose tensors cannot be written outside of it.

    Args:
        like: a tensor with the dtype and device of the memory.
    """

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.kept: dict[tuple[str, int, bool], Tensor] = {}

    def __call__(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return an uninitialized tensor of a shape. It reuses the memory of earlier tensors with the same name.

        The dtype is that of `like` if None. A name always has the same dtype.
        """
        if torch.compiler.is_compiling():  # a compiled graph manages its memory
            return self.like.new_empty(shape, dtype=dtype)
        size = torch.Size(shape).numel()
        key = name, get_ident(), torch.is_inference_mode_enabled()
        if key not in self.kept or self.kept[key].numel() < size:
            self.kept[key] = self.like.new_empty(size, dtype=dtype)
        return self.kept[key][:size].view(shape)


def send(
    owner: Tensor,
    neighbor: Tensor,
    marginals: Tensor,
    weight: Tensor,
    bias: Tensor,
    window: Window,
    workspace: Workspace,
) -> Tensor:
    """Compute the messages between every node and the nodes in its window, in both directions, and sum them.

    The result is differentiable. The backward pass recomputes blocks of rows to save memory.

    Args:
        owner: the part f of the hidden layer of each node as p, [B, H, W, D].
        neighbor: the part g of the hidden layer of each node as q, [B, H, W, D].
        marginals: the marginals Q, [B, H, W, K].
        weight: the weight of the last layer, [K, K, D]. The label of p is the first index.
        bias: the bias of the last layer, [K, K]. The label of p is the first index.
        window: the displacements q - p.
        workspace: memory that is used if no gradients are needed.

    Returns:
        The summed messages, [B, H, W, K], in at least single precision. In half precision, a sum over a hundred edges
            would be inaccurate.
    """
    batch, height, width, hidden = owner.shape
    num_classes = marginals.shape[-1]
    to_owners = accumulator(owner, batch, height, width, num_classes)
    if not any(map(any, window.inside)):
        return to_owners
    top, bottom, left, right = window.rows[0], window.rows[-1], window.columns[0], window.columns[-1]
    # Positions outside the map are neighbors too, with marginals of 0. Their messages are cropped at the end, which is
    # faster than excluding them. If all neighbors lie to one side of p, some padding is negative and crops the nodes
    # that are no neighbors.
    neighbor, around = (F.pad(values, (0, 0, -left, right, -top, bottom)) for values in (neighbor, marginals))
    to_neighbors = accumulator(owner, *neighbor.shape[:3], num_classes)
    gradients = records_gradients(owner, neighbor, marginals, weight, bias)
    per_node = len(window.rows) * len(window.columns)
    edges = width * per_node
    per_row = 2 * edges * num_classes
    if gradients:
        per_row += 2 * (edges + width * num_classes) * hidden
    # All rows of a block share one window. In a taller block, a larger part of this window lies outside the map.
    on_cpu = owner.device.type == "cpu"
    least = max(CPU_NODES, CPU_UNITS // (per_node * hidden)) if on_cpu else NODES
    elements = block_elements(owner.device, on_cpu=BLOCK_ELEMENTS)
    step = min(elements // per_row, max((bottom - top) // 2 + 1, least // width + 1))
    for image in range(batch):
        for rows in slices(height, step):
            near = window.between(-(rows.stop - 1), height - 1 - rows.start)
            if not near.rows:
                continue
            reach = slice(rows.start + near.rows[0] - top, rows.stop + near.rows[-1] - top)
            nodes, positions = (image, rows), (image, reach)
            arguments = owner[nodes], neighbor[positions], marginals[nodes], around[positions], weight, bias, near
            if gradients:
                found = checkpoint(_block, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                found = _block(*arguments, workspace)
            to_neighbors[positions] += found[0]
            to_owners[nodes] += found[1]
    return to_owners + F.pad(to_neighbors, (0, 0, left, -right, top, -bottom))


def _block(
    owner: Tensor,
    neighbor: Tensor,
    marginals: Tensor,
    around: Tensor,
    weight: Tensor,
    bias: Tensor,
    window: Window,
    workspace: Workspace | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the messages between some rows of nodes p and their neighbors q, and sum them.

    Args:
        owner: the part f of the hidden layer at these rows, [h, W, D].
        neighbor: the part g of the hidden layer, [h + R - 1, W + S - 1, D]. The rows of the window span R nodes and
            its columns span S nodes. The neighbors of node (y, x) are at the positions (y, x) to
            (y + R - 1, x + S - 1).
        marginals: the marginals of the nodes p, [h, W, K].
        around: the marginals of the neighbors, [h + R - 1, W + S - 1, K]. They are 0 outside the map.
        weight: the weight of the last layer, [K, K, D].
        bias: the bias of the last layer, [K, K].
        window: the displacements q - p.
        workspace: reusable memory. None if gradients are needed, and then there is only one tile.

    Returns:
        The summed messages to the neighbors, [h + R - 1, W + S - 1, K], and those to the nodes p, [h, W, K].
    """
    rows, columns = ([value - values[0] for value in values] for values in (window.rows, window.columns))
    marginals, around = (values.to(weight.dtype) for values in (marginals, around))
    received = _select(_select(_windows(around, rows, columns), 2, rows), 3, columns)
    received = received.clone(memory_format=torch.contiguous_format)
    for row, places in window.outside():
        received[:, :, row, places] = 0
    received = received.flatten(2, 3)
    weight, biases = weight.flatten(1), (marginals @ bias)[:, :, None]
    windows = _windows(neighbor, rows, columns)
    if workspace is None:
        contracted = (marginals.flatten(0, 1) @ weight).unflatten(1, (len(bias), -1))
        sent, summed = _tile(windows, owner, contracted, received.flatten(0, 1), rows, columns)
        sent = sum_precision(sent).unflatten(0, owner.shape[:2]) + biases
        to_owners = sum_precision(F.linear(summed.flatten(1), weight)).unflatten(0, owner.shape[:2])
    else:
        sent, to_owners = _tiles(windows, owner, marginals, received, weight, biases, rows, columns, workspace)
    to_neighbors = _overlapping_sum(sent.unflatten(2, (len(rows), len(columns))), window)
    return to_neighbors, to_owners + received.sum(2, dtype=to_owners.dtype) @ bias.T.to(to_owners.dtype)


def _windows(values: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    """Return the windows of R x S positions, [h, W, R, S, D], in a map [h + R - 1, W + S - 1, D]."""
    return values.unfold(0, rows[-1] + 1, 1).unfold(1, columns[-1] + 1, 1).permute(0, 1, 3, 4, 2)


def _tiles(
    windows: Tensor,
    owner: Tensor,
    marginals: Tensor,
    received: Tensor,
    weight: Tensor,
    biases: Tensor,
    rows: list[int],
    columns: list[int],
    workspace: Workspace,
) -> tuple[Tensor, Tensor]:
    """Compute the messages of a block in tiles that fit into the cache of a CPU, without gradients.

    Args:
        windows: the part g of the hidden layer at the positions of each window, [h, W, R, S, D].
        owner: the part f of the hidden layer of the nodes p, [h, W, D].
        marginals: the marginals of the nodes p, [h, W, K].
        received: the marginals of the neighbors of each node p, [h, W, edges, K].
        weight: the weight of the last layer, [K, K * D].
        biases: the biases of the messages from each node p, [h, W, 1, K].
        rows: the rows of the neighbors in the window.
        columns: the columns of the neighbors in the window.
        workspace: reusable memory.

    Returns:
        The messages to the neighbors, [h, W, edges, K], and the summed messages without biases to the nodes p,
            [h, W, K].
    """
    height, width, hidden = owner.shape
    num_classes, edges = marginals.shape[2], received.shape[2]
    # In the dtype of the sums, since sums of tensors with different dtypes take longer.
    sent = workspace("sent", height, width, edges, num_classes, dtype=_sum_dtype(owner))
    to_owners = accumulator(owner, height, width, num_classes)
    # A tile contains either several whole rows of nodes or a part of one row.
    elements = block_elements(owner.device, on_cpu=TILE_ELEMENTS * torch.get_num_threads())
    count = max(1, elements // (edges * hidden))
    lines = max(1, count // width)
    for some in slices(height, max(lines, -(-CONTRACTED_UNITS // (hidden * width)))):
        nodes = marginals[some].flatten(0, 1)
        matrices = (workspace(name, len(nodes), num_classes * hidden) for name in ("contracted", "summed"))
        contracted, summed = (each.view(-1, width, num_classes, hidden) for each in matrices)
        torch.matmul(nodes, weight, out=contracted.view(len(nodes), -1))
        for y in slices(len(contracted), lines):
            for x in slices(width, count if lines == 1 else width):
                found = _tile(
                    windows[some][y, x],
                    owner[some][y, x],
                    contracted[y, x].flatten(0, 1),
                    received[some][y, x].flatten(0, 1),
                    rows,
                    columns,
                    workspace,
                    summed[y, x].flatten(0, 1),
                )[0]
                tile = sent[some][y, x]
                torch.add(found.view(tile.shape), biases[some][y, x], out=tile)
        to_owners[some] = F.linear(summed.view(len(nodes), -1), weight).unflatten(0, (-1, width))
    return sent, to_owners


def _tile(
    windows: Tensor,
    owner: Tensor,
    contracted: Tensor,
    received: Tensor,
    rows: list[int],
    columns: list[int],
    workspace: Workspace | None = None,
    summed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the hidden units of the edges of n = h * w nodes p, and their products in both directions.

    Args:
        windows: as for `_tiles`, [h, w, R, S, D].
        owner: as for `_tiles`, [h, w, D].
        contracted: the last layer, contracted with the marginals of the nodes p, [n, K, D].
        received: the marginals of the neighbors, [n, edges, K].
        rows: as for `_tiles`.
        columns: as for `_tiles`.
        workspace: reusable memory.
        summed: memory for the second result.

    Returns:
        The messages to the neighbors, [n, edges, K], and the products of the marginals of the neighbors with the hidden
            units, summed over the edges, [n, K, D].
    """
    if workspace is None:
        units = _select(_select(windows, 2, rows), 3, columns) + owner[:, :, None, None]
    else:
        units = workspace("hidden", *owner.shape[:2], len(rows), len(columns), owner.shape[2])
        for (at, down), (place, across) in product(_runs(rows), _runs(columns)):
            part = windows[:, :, down, across]
            torch.add(part, owner[:, :, None, None], out=units[:, :, at, place])
    units = units.relu_().flatten(2, 3).flatten(0, 1)
    # [K, D] times [D, edges] is nearly twice as fast as its transpose if K does not fill the vector registers (11, 21).
    out = None if workspace is None else workspace("transposed", *contracted.shape[:2], units.shape[1])
    return torch.bmm(contracted, units.mT, out=out).mT, torch.bmm(received.mT, units, out=summed)


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


@cached_indices(maxsize=64)
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
