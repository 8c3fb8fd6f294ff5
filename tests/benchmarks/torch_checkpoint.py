"""torch.utils.checkpoint over the blocks of the plain networks. The rival of `recomputation` in step.py.

A block's inputs are kept. `CHECKPOINT` computes all else in it again in backward; `SELECTIVE` keeps the outputs of its
convolutions, too, and computes norms, activations, upsampling and concatenations again. Both update the running
statistics of batch norm twice a step, which changes no gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from robosat_pink.models.blocks import Execution


@dataclass(frozen=True)
class TorchCheckpoint(Execution):
    """The plain network, with a checkpoint where ours would compute something again."""

    contexts: Callable[[], Any] = noop_context_fn

    def block(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=self.contexts)

    cheap = block


def save_convolutions(context: Any, operation: Any, *inputs: Any, **options: Any) -> CheckpointPolicy:
    is_convolution = operation == torch.ops.aten.convolution.default
    return CheckpointPolicy.MUST_SAVE if is_convolution else CheckpointPolicy.PREFER_RECOMPUTE


CHECKPOINT = TorchCheckpoint(recompute="none")
# In decoders a ReLU writes into a saved output. The second time it finds its own result, which it leaves as it is.
SELECTIVE = TorchCheckpoint(
    recompute="none",
    contexts=partial(create_selective_checkpoint_contexts, save_convolutions, allow_cache_entry_mutation=True),
)
