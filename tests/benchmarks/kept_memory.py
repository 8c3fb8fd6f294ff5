"""What a forward pass leaves in memory for backward, whoever keeps it. Called by the benchmarks of a training step.

Autograd's hooks on saved tensors do not see what torch.utils.checkpoint keeps by itself; the life of storages does.
"""

import gc
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class StorageRecord(TorchDispatchMode):
    """Remembers the storages of what operations return, without keeping them alive."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(returned):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.nbytes[StorageWeakRef(storage)] = storage.nbytes()
        return returned


def kept_bytes(forward: Callable[[], Tensor], permanent: Iterable[Tensor]) -> int:
    """Bytes that `forward()` made and that wait for the backward pass of its loss; each storage counts once.

    Neither the loss nor what is `permanent` counts: parameters, buffers and the batch are kept anyway.
    """
    with StorageRecord() as record:
        loss = forward()
    gc.collect()
    assert loss.requires_grad
    ignored = {StorageWeakRef(tensor.untyped_storage()) for tensor in (*permanent, loss)}
    return sum(nbytes for storage, nbytes in record.nbytes.items() if storage not in ignored and not storage.expired())
