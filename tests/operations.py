"""The operations of PyTorch that a function calls, and those for which a program waits for a GPU."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# They read a tensor, have results whose size depends on the values, or make a tensor from numbers of Python.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::_unique2",
    "aten::lift_fresh",
}
# They start no kernel.
_FREE = {"aten::empty", "aten::new_empty", "aten::empty_like", "aten::detach", "aten::promote_types"}


class Operations(TorchDispatchMode):
    """Counts operations while it is active. Views are not counted.

    `all` has the number of calls of each operation, and `waiting` of those that wait for a GPU: also a copy to another
    device, and an index of booleans. Use it with `torch.no_grad`; in `torch.inference_mode`, operations such as the
    evaluation of a condition appear as a whole.
    """

    def __init__(self):
        super().__init__()
        self.all, self.waiting = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        places = {tensor.device for tensor in tensors if tensor.ndim}
        mask = name.startswith("aten::index") and any(tensor.dtype == torch.bool for tensor in tensors[1:])
        if name in WAITING or len(places) > 1 or mask:
            self.waiting[name] += 1
        returns = func._schema.returns
        view = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if not view and name not in _FREE:
            self.all[name] += 1
        return result
