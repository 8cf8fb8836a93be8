"""How large is the largest piece of memory that an operation of a block of code writes to?"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LargestStorage(TorchDispatchMode):
    """Within it, `mib` is the size of the largest storage behind any result, and `name` whose.

    Tensors on the meta device count too, without being allocated.
    """

    def __init__(self):
        super().__init__()
        self.mib, self.name = 0.0, ""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                mib = tensor.untyped_storage().nbytes() / 2**20
                if mib > self.mib:
                    self.mib, self.name = mib, str(function)
        return out
