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
    total = senders.new_zeros(
        (batch, height, width, num_classes), dtype=torch.promote_types(senders.dtype, torch.float32)
    )
    columns = window.columns
    if window.rows == 0:
        return total
    gradients = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (senders, receivers, beliefs, weight, bias)
    )
    # Columns outside the map receive too, and are cut off below: that costs less than telling them apart.
    before, after = max(0, -window.left), max(0, window.left + columns - 1)
    padded = F.pad(receivers, (0, 0, before, after))[:, :, window.left + before :]
    weight, bias = weight.to(senders.dtype).flatten(1), bias.to(senders.dtype)
    low, high = max(0, window.left), min(width, width + columns - 1 + window.left)
    # A sender's contracted layer and messages; with gradients also its hidden units.
    per_row = width * num_classes * (hidden + 2 * window.rows * columns)
    per_row += width * window.rows * columns * hidden if gradients else 0
    step = max(1, BLOCK_ELEMENTS // per_row)
    for image in range(batch):
        for top in range(0, height, step):
            rows = range(top, min(top + step, height))
            first, last = max(0, top + window.top), min(height, rows[-1] + window.top + window.rows)
            if first >= last:
                continue
            arguments = (senders[image, top : rows[-1] + 1], padded[image, first:last])
            arguments += (beliefs[image, top : rows[-1] + 1], weight, bias)
            if gradients:
                part = checkpoint(_block, *arguments, window, top - first, use_reentrant=False)
            else:
                part = _block(*arguments, window, top - first)
            total[image, first:last, low:high] += part[:, low - window.left : high - window.left]
    return total


def _block(
    senders: Tensor, padded: Tensor, beliefs: Tensor, weight: Tensor, bias: Tensor, window: Window, shift: int
) -> Tensor:
    """Messages of some rows of senders, summed over them.

    Args:
        senders, beliefs: [h, W, D], [h, W, K].
        weight, bias: [K, K * D], [K, K].
        padded: rows of receivers, [R, W + columns - 1, D]; column x is displaced by `window.left` from sender x.
        shift: sender row i is row i + shift of the receivers.

    Returns:
        [R, W + columns - 1, K].
    """
    height, width, hidden = senders.shape
    num_classes = beliefs.shape[-1]
    contracted = (beliefs.to(weight.dtype).flatten(0, 1) @ weight).view(height, width, num_classes, hidden)
    constant = (beliefs.to(bias.dtype) @ bias)[:, :, None]
    windows = padded.unfold(1, window.columns, 1).permute(1, 0, 3, 2)  # [W, R, columns, D], a view
    total = padded.new_zeros((*padded.shape[:2], num_classes), dtype=torch.promote_types(padded.dtype, torch.float32))
    for y in range(height):
        low, high = max(0, y + shift + window.top), min(len(padded), y + shift + window.top + window.rows)
        if low >= high:
            continue
        sent = torch.cat(
            [
                _tile(windows[part, low:high], senders[y, part], contracted[y, part])
                for part in _tiles(width, (high - low) * window.columns * hidden)
            ]
        )
        sent = (sent + constant[y]).view(width, high - low, window.columns, num_classes)
        inside = window.inside[low - y - shift - window.top : high - y - shift - window.top]
        if not inside.all():
            sent = sent * inside[..., None]
        total[low:high] += _skewed_sum(sent, total.dtype)
    return total


def _tiles(width: int, elements_per_sender: int) -> Iterator[slice]:
    step = max(1, TILE_ELEMENTS // elements_per_sender)
    return (slice(start, min(start + step, width)) for start in range(0, width, step))


def _tile(windows: Tensor, senders: Tensor, contracted: Tensor) -> Tensor:
    """Receivers [n, rows, columns, D] in the windows of n senders [n, D] to messages [n, rows * columns, K]."""
    hidden = (windows + senders[:, None, None]).relu_()
    return hidden.flatten(1, 2) @ contracted.transpose(1, 2)


def _skewed_sum(sent: Tensor, dtype: torch.dtype) -> Tensor:
    """Messages [W, rows, columns, K], entry (x, y, i) sent to place (y, x + i), to sums [rows, W + columns - 1, K]."""
    width, _, columns, _ = sent.shape
    # One place more to every line of length W + columns - 1 than it can hold moves line i by i places.
    lines = F.pad(sent.permute(1, 2, 0, 3), (0, 0, 0, columns)).flatten(1, 2)
    lines = lines[:, : columns * (width + columns - 1)].unflatten(1, (columns, width + columns - 1))
    return lines.sum(1, dtype=dtype)
