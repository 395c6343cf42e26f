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
        weight, bias: of the last layer, [K, K, D] and [K, K], the sender's label first.
        window: where a sender's receivers are.

    Returns:
        [B, H, W, K], in at least single precision: a sum over a hundred edges loses its digits in half precision.
        Differentiable; blocks of rows are recomputed in the backward pass.
    """
    batch, height, width, hidden = senders.shape
    num_classes = beliefs.shape[-1]
    total = _accumulator(senders, batch, height, width, num_classes)
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
    weight, bias = weight.to(senders.dtype).flatten(1), bias.to(senders.dtype)
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
                part = _block(*arguments, weight, bias, window, top - first)
            total[image, first:last, low:high] += part[:, low - left : high - left]
    return total


def _block(
    senders: Tensor, padded: Tensor, beliefs: Tensor, weight: Tensor, bias: Tensor, window: Window, shift: int
) -> Tensor:
    """Messages of some rows of senders, summed over them.

    Args:
        senders, beliefs: [h, W, D], [h, W, K].
        padded: rows of receivers, [R, W + S - 1, D], S the span of the window's columns; column x is displaced by the
            first of these from sender x.
        weight, bias: [K, K * D], [K, K].
        shift: sender row i is row i + shift of the receivers.

    Returns:
        [R, W + S - 1, K].
    """
    height, width, hidden = senders.shape
    num_classes = beliefs.shape[-1]
    beliefs = beliefs.to(weight.dtype)
    contracted = (beliefs.flatten(0, 1) @ weight).view(height, width, num_classes, hidden)
    constant = (beliefs @ bias)[:, :, None]
    columns = torch.tensor(window.columns, device=senders.device) - window.columns[0]
    total = _accumulator(padded, *padded.shape[:2], num_classes)
    for y in range(height):
        exists = [0 <= y + shift + dy < len(padded) for dy in window.rows]
        rows = [y + shift + dy for dy, there in zip(window.rows, exists, strict=True) if there]
        if not rows:
            continue
        lines = torch.tensor(rows, device=senders.device)
        windows = padded[lines].unfold(1, int(columns[-1]) + 1, 1).permute(1, 0, 3, 2)  # [W, rows, S, D], a view
        sent = torch.cat(
            [
                _tile(windows[part], senders[y, part], contracted[y, part], columns)
                for part in _tiles(width, len(rows) * len(columns) * hidden)
            ]
        )
        sent = (sent + constant[y]).view(width, len(rows), len(columns), num_classes)
        inside = window.inside[torch.tensor(exists, device=senders.device)]
        if not inside.all():
            sent = sent * inside[..., None]
        total.index_add_(0, lines, _skewed_sum(sent, columns, total.dtype))
    return total


def _tiles(width: int, elements_per_sender: int) -> Iterator[slice]:
    step = max(1, TILE_ELEMENTS // elements_per_sender)
    return (slice(start, min(start + step, width)) for start in range(0, width, step))


def _tile(windows: Tensor, senders: Tensor, contracted: Tensor, columns: Tensor) -> Tensor:
    """Messages [n, rows * columns, K] of n senders [n, D] to the receivers [n, rows, S, D] in their windows."""
    if len(columns) < windows.shape[2]:
        windows = windows[:, :, columns]
    hidden = (windows + senders[:, None, None]).relu_()
    return hidden.flatten(1, 2) @ contracted.transpose(1, 2)


def _skewed_sum(sent: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    """Messages [W, rows, columns, K] of senders x to places x + columns[i], summed: [rows, W + S - 1, K]."""
    width, rows, _, num_classes = sent.shape
    span = int(columns[-1]) + 1
    if len(columns) < span:
        sent = sent.new_zeros(width, rows, span, num_classes).index_copy(2, columns, sent)
    # One place more to every line of length W + S - 1 than it can hold moves line i by i places.
    lines = F.pad(sent.permute(1, 2, 0, 3), (0, 0, 0, span)).flatten(1, 2)
    return lines[:, : span * (width + span - 1)].unflatten(1, (span, width + span - 1)).sum(1, dtype=dtype)


def _accumulator(like: Tensor, *shape: int) -> Tensor:
    return like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32))
