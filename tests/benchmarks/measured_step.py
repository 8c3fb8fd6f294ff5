"""A training step under some levers, and what can be measured of it. Called by the benchmarks of a step."""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from kept_memory import kept_bytes
from lovasz_loop import looped_lovasz_hinge
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch_checkpoint import CHECKPOINT, SELECTIVE

from robosat_pink.container import hardware
from robosat_pink.losses import build_loss
from robosat_pink.models import build_model
from robosat_pink.models.blocks import Execution, choose_execution

CHANNELS = {"unet": 4, "albunet": 4, "albunet resnet18": 4, "ternausnetv2": 11}
STEPS_AT_A_TIME = {"cpu": 1, "cuda": 5}

Form = Literal["auto", "plain", "transposed"]
Recomputation = Literal["none", "norms", "blocks", "torch checkpoint", "torch selective"]


@dataclass(frozen=True)
class Levers:
    form: Form = "plain"
    recompute: Recomputation = "none"
    bf16: bool = False
    channels_last: bool = False
    loss: bool = False  # ours
    fused: bool = False  # Adam
    prepared: bool = False  # the process, for the device
    compiled: bool = False  # the network

    def __str__(self) -> str:
        names = [] if self.form == "plain" else [self.form]
        if self.recompute != "none":
            names.append(f"recompute {self.recompute}")
        flags = ("bf16", "channels_last", "loss", "fused", "prepared", "compiled")
        names += [flag for flag in flags if getattr(self, flag)]
        return ", ".join(names) or "none: the straightforward step"

    @property
    def execution(self) -> Execution:
        if self.recompute == "torch checkpoint":
            return replace(CHECKPOINT, upsampling=self.form)
        if self.recompute == "torch selective":
            return replace(SELECTIVE, upsampling=self.form)
        return Execution(self.form, self.recompute)

    def arithmetic(self, device: str) -> str:
        """The type that a step computes in."""
        if self.bf16:
            return "bfloat16"
        return "TF32" if self.prepared and device == "cuda" else "float32"


ALL = Levers("auto", "norms", bf16=True, channels_last=True, loss=True, fused=True, prepared=True)


class Step:
    """A network with its batch and optimizer."""

    def __init__(
        self, levers: Levers, network: str, batch: int, size: int, device: str, dtype: torch.dtype = torch.float32
    ) -> None:
        torch.manual_seed(0)
        self.levers, self.device = levers, device
        layout = torch.channels_last if levers.channels_last else torch.contiguous_format
        name, _, encoder = network.partition(" ")
        self.model = build_model(name, num_classes=1, num_channels=CHANNELS[network], encoder=encoder or None)
        self.model.to(device, dtype).to(memory_format=layout)  # type: ignore[call-overload]
        choose_execution(self.model, levers.execution)
        self.network: Callable[[Tensor], Tensor] = self.model
        if levers.compiled:
            self.network = torch.compile(self.model, dynamic=False)
        image = torch.randn(batch, CHANNELS[network], size, size, device=device)
        self.image = image.to(dtype, memory_format=layout)
        self.mask = (torch.rand(batch, size, size, device=device) < 0.3).to(torch.uint8)
        self.loss: Callable[[Tensor, Tensor], Tensor] | nn.Module = looped_lovasz_hinge
        if levers.loss:
            self.loss = build_loss("lovasz", num_classes=1)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=2.5e-5, fused=levers.fused)
        self.seconds: list[float] = []

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    def forward(self) -> Tensor:
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.levers.bf16):
            logits = self.network(self.image)
        return self.loss(logits, self.mask)

    def run(self) -> Tensor:
        """Forward, loss, backward and optimizer; the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.forward()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def measure(self) -> None:
        """Add the seconds of a step to `seconds`."""
        prepare(self.device, self.levers.prepared)
        if self.levers.prepared:
            self.run()  # allocates the memory that the next step finds kept
        self.seconds.append(seconds_of(self.run, self.device))

    def peak_bytes(self) -> int:
        """What the process, or the GPU, takes at most during a step beyond what it had before."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.device == "cuda":
            prepare(self.device, self.levers.prepared)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.run()
            wait_for(self.device)
            return torch.cuda.max_memory_allocated() - before
        prepare(self.device, False)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        before = resident_bytes("VmRSS")
        self.run()
        return resident_bytes("VmHWM") - before

    def forward_flops(self) -> int:
        with FlopCounterMode(display=False) as counter:
            self.forward()
        return counter.get_total_flops()

    def kept_bytes(self) -> int:
        """What waits for backward, parameters, buffers and batch aside."""
        return kept_bytes(self.forward, (*self.model.parameters(), *self.model.buffers(), self.image, self.mask))


def seconds_of(work: Callable[[], object], device: str) -> float:
    """Of one call among as many as nothing needs to wait between."""
    wait_for(device)
    started = time.perf_counter()
    for _ in range(STEPS_AT_A_TIME[device]):
        work()
    wait_for(device)
    return (time.perf_counter() - started) / STEPS_AT_A_TIME[device]


def wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def prepare(device: str, is_prepared: bool) -> None:
    """Set the process as `device.prepare` does, or back to the defaults of torch and glibc."""
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = is_prepared
        torch.backends.cudnn.benchmark = is_prepared
    elif is_prepared:
        hardware.keep_freed_memory()
    else:
        mxfast, trim_threshold, mmap_max = 1, -1, -4  # malloc.h
        library = ctypes.CDLL(None)
        library.mallopt(mmap_max, 65536)
        library.mallopt(trim_threshold, 128 * 1024)
        library.mallopt(mxfast, 128)
        library.malloc_trim(0)


def resident_bytes(name: str) -> int:
    """VmRSS, what the process has now, or VmHWM, what it had at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def step_arguments(description: str) -> argparse.ArgumentParser:
    """What every benchmark of a step can be told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--network", choices=list(CHANNELS), default="albunet")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser
