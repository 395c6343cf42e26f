"""Sums of expected pair logits over windows: what mean field spends its time on.

A sender s and a receiver r that it is joined to exchange

    sum_j Q_s(j) W_j relu(f_s + g_r) + bias,        W_j the K x D slice of the last layer for the sender's label j.

The sender contracts its marginals with the layer once, C_s = sum_j Q_s(j) W_j, and every edge then costs K x D products
where the table of pair logits would take K^2 x D. The hidden units of the edges are made in tiles small enough to stay
in a processor's cache: written to memory they would cost more time than the products do.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from contextcrf.crf.relations import Window

# Hidden units of one tile: 1 MiB of float32 for each of two cores.
TILE_ELEMENTS = 1 << 19
# Numbers that a block of sender rows may keep: contracted layers, messages, and all tiles when gradients are needed.
BLOCK_ELEMENTS = 1 << 24


def send(senders: Tensor, receivers: Tensor, beliefs: Tensor, weight: Tensor, bias: Tensor, window: Window) -> Tensor:
    """The messages of every node to the nodes of its window, summed at the receivers.

    Args:
        senders, receivers: the two halves f, g of the hidden layer, [B, H, W, D].
        beliefs: marginals Q of the senders, [B, H, W, K].
        weight, bias: of the last layer, [K, D * K] and [K, K], the sender's label first.
        window: where a sender's receivers are.

    Returns:
        [B, H, W, K], in at least single precision: a sum over a hundred edges loses its digits in half precision.
        Differentiable; blocks of rows are recomputed in the backward pass.
    """
    batch, height, width, hidden = senders.shape
    num_classes = beliefs.shape[-1]
    total = accumulator(senders, batch, height, width, num_classes)
    if not window.inside.any():
        return total
    gradients = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (senders, receivers, beliefs, weight, bias)
    )
    left, right = window.columns[0], window.columns[-1]
    # Columns outside the map receive too, and are cut off below: that costs less than telling them apart. Where all
    # receivers lie to one side, the padding is negative and cuts off those without a sender.
    padded = F.pad(receivers, (0, 0, -left, right))
    low, high = max(0, left), min(width, width + right)
    # Without gradients all tiles share their memory.
    buffer = None if gradients else senders.new_empty(max(TILE_ELEMENTS, window.inside.numel() * hidden))
    edges = width * window.inside.numel()
    per_row = width * num_classes * hidden + edges * (2 * num_classes + (hidden if gradients else 0))
    step = max(1, BLOCK_ELEMENTS // per_row)
    for image in range(batch):
        for top in range(0, height, step):
            bottom = min(top + step, height)
            first, last = max(0, top + window.rows[0]), min(height, bottom + window.rows[-1])
            if first >= last:
                continue
            arguments = (senders[image, top:bottom], padded[image, first:last], beliefs[image, top:bottom])
            if gradients:
                part = checkpoint(_block, *arguments, weight, bias, window, top - first, use_reentrant=False)
            else:
                part = _block(*arguments, weight, bias, window, top - first, buffer)
            total[image, first:last, low:high] += part[:, low - left : high - left]
    return total


def _block(
    senders: Tensor,
    padded: Tensor,
    beliefs: Tensor,
    weight: Tensor,
    bias: Tensor,
    window: Window,
    shift: int,
    buffer: Tensor | None = None,
) -> Tensor:
    """Messages of some rows of senders, summed over them.

    Args:
        senders, beliefs: [h, W, D], [h, W, K].
        padded: rows of receivers, [R, W + S - 1, D], S the span of the window's columns; column x is displaced by the
            first of these from sender x.
        weight, bias: [K, D * K], [K, K].
        shift: sender row i is row i + shift of the receivers.
        buffer: memory for a tile; None where gradients are needed.

    Returns:
        [R, W + S - 1, K].
    """
    height, width, hidden = senders.shape
    num_classes = beliefs.shape[-1]
    beliefs = beliefs.to(weight.dtype)
    contracted = (beliefs.flatten(0, 1) @ weight).view(height, width, hidden, num_classes)
    constant = (beliefs @ bias)[:, :, None]
    columns, span = [dx - window.columns[0] for dx in window.columns], window.columns[-1] - window.columns[0] + 1
    holes = not window.inside.all()
    total = accumulator(padded, *padded.shape[:2], num_classes)
    for y in range(height):
        # The window's rows that exist are successive ones.
        exist = [i for i, dy in enumerate(window.rows) if 0 <= y + shift + dy < len(padded)]
        if not exist:
            continue
        lines = [y + shift + window.rows[i] for i in exist]
        dense = lines[-1] - lines[0] == len(lines) - 1
        receivers = padded[lines[0] : lines[-1] + 1] if dense else padded[lines]
        windows = receivers.unfold(1, span, 1).permute(1, 0, 3, 2)  # [W, rows, S, D], a view
        sent = torch.cat(
            [
                _tile(windows[part], senders[y, part], contracted[y, part], columns, buffer)
                for part in _tiles(width, len(lines) * len(columns) * hidden)
            ]
        )
        sent = (sent + constant[y]).view(width, len(lines), len(columns), num_classes)
        if holes:
            sent = sent * window.inside[exist[0] : exist[-1] + 1, :, None]
        total[lines] += _skewed_sum(sent, columns, span, total.dtype)
    return total


def _tiles(width: int, elements_per_sender: int) -> Iterator[slice]:
    step = max(1, TILE_ELEMENTS // elements_per_sender)
    return (slice(start, min(start + step, width)) for start in range(0, width, step))


def _tile(windows: Tensor, senders: Tensor, contracted: Tensor, columns: list[int], buffer: Tensor | None) -> Tensor:
    """Messages [n, rows * columns, K] of n senders [n, D] to the receivers [n, rows, S, D] in their windows."""
    if len(columns) < windows.shape[2]:
        windows = windows[:, :, columns]
    if buffer is None:
        hidden = (windows + senders[:, None, None]).relu_()
    else:
        hidden = buffer[: windows.numel()].view(windows.shape)
        torch.add(windows, senders[:, None, None], out=hidden).relu_()
    return hidden.flatten(1, 2) @ contracted


def _skewed_sum(sent: Tensor, columns: list[int], span: int, dtype: torch.dtype) -> Tensor:
    """Messages [W, rows, columns, K] of senders x to places x + columns[i], summed: [rows, W + S - 1, K]."""
    width, rows, _, num_classes = sent.shape
    if len(columns) < span:
        spread = sent.new_zeros(width, rows, span, num_classes)
        spread[:, :, columns] = sent
        sent = spread
    # One place more to every line of length W + S - 1 than it can hold moves line i by i places.
    lines = F.pad(sent.permute(1, 2, 0, 3), (0, 0, 0, span)).flatten(1, 2)
    return lines[:, : span * (width + span - 1)].unflatten(1, (span, width + span - 1)).sum(1, dtype=dtype)


def accumulator(like: Tensor, *shape: int) -> Tensor:
    """Zeros in at least single precision: a sum over a hundred edges loses its digits in half precision."""
    return like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32))
