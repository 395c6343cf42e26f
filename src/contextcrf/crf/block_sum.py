"""A sum over blocks whose gradients are computed together with it, so that nothing is stored and computed twice."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from contextcrf.crf.blocks import records_gradients

# A function from shared tensors and the tensors of one block to a scalar.
Term = Callable[..., Tensor]


def block_sum(term: Term, blocks: Sequence[Sequence[Tensor]], shared: Sequence[Tensor]) -> Tensor:
    """Return the sum of `term(*shared, *block)` over blocks.

    The gradients of each block are computed in the forward pass, right after its term, and added up. The memory is that
    of one block, as with `torch.utils.checkpoint`, but no term is computed a second time for the backward pass.

    Args:
        term: a function that returns a scalar, which depends on all shared tensors that require gradients.
        blocks: the tensors of each block. There must be at least one block.
        shared: the tensors that all blocks share. They get gradients if they require them.

    Returns:
        A scalar.

    Raises:
        ValueError: if a tensor of a block requires gradients, because it would get none.
        RuntimeError: in the backward pass with `create_graph=True`, because second derivatives are not available.

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
        >>> blocks = [(torch.tensor([0, 1]),), (torch.tensor([2]),)]
        >>> total = block_sum(lambda values, places: values[places].square().sum(), blocks, [x])
        >>> total.backward()
        >>> total.item(), x.grad.tolist()
        (14.0, [2.0, 4.0, 6.0])
    """
    if any(tensor.requires_grad for block in blocks for tensor in block):
        raise ValueError("The tensors of the blocks must not require gradients. Pass them as shared tensors.")
    if records_gradients(*shared):
        return _BlockSum.apply(term, blocks, *shared)
    return torch.stack([term(*shared, *block) for block in blocks]).sum()


class _BlockSum(Function):
    """The sum with its gradients."""

    @staticmethod
    def forward(ctx: Any, term: Term, blocks: Sequence[Sequence[Tensor]], *shared: Tensor) -> Tensor:
        leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in shared]
        needed = [leaf for leaf in leaves if leaf.requires_grad]
        gradients = [torch.zeros_like(leaf) for leaf in needed]
        terms = []
        for block in blocks:
            with torch.enable_grad():
                value = term(*leaves, *block)
            for total, gradient in zip(gradients, torch.autograd.grad(value, needed), strict=True):
                total += gradient
            terms.append(value.detach())
        ctx.save_for_backward(*gradients)
        ctx.needed = [leaf.requires_grad for leaf in leaves]
        return torch.stack(terms).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # with create_graph=True
            raise RuntimeError("block_sum has no second derivatives. Use create_graph=False.")
        saved = iter(ctx.saved_tensors)
        return (None, None, *(gradient * next(saved) if needed else None for needed in ctx.needed))
