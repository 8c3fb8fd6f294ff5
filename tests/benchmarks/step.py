"""What a training step costs, ours beside a straightforward one: arithmetic, memory kept for backward, time.

    python tests/benchmarks/step.py [--network albunet] [--size 512] [--batch 2] [--rounds 3] [--device cpu]
                                    [--brief | --blocks | --losses | --equal 50] [--compiled]

The straightforward step computes in float32 and NCHW, upsamples before each convolution, and loops over images for a
Lovász loss in float64 whose steps are differences. Then each lever is turned on alone, then all together, then all but
one. Times are medians of alternating steps, forward, loss, backward and optimizer; on a GPU of five at a time, for
nothing in training waits for it. What is kept for backward is counted once a storage, parameters aside; `peak` is what
the process, or the GPU, takes at most during a step beyond what it had before. `prepared` is what `device.prepare`
sets: freed memory is kept on a CPU; on a GPU cuDNN chooses by trial, and float32 takes TF32. bfloat16 is left out on a
CPU without instructions for it. `of peak rate` is the arithmetic a second, three times the forward's, by what the
device does in a matrix product of 4096 x 4096 of that type, TF32 where the step takes it. Asserts nothing.
"""

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
from s3_read import machine as name_of_machine
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from robosat_pink.container import hardware
from robosat_pink.container.device import choose_precision
from robosat_pink.losses import build_loss
from robosat_pink.models import build_model
from robosat_pink.models.blocks import Execution, choose_execution
from robosat_pink.models.recomputation import Recompute, Upsampling, conv_of

CHANNELS = {"albunet": 4, "albunet resnet18": 4, "ternausnetv2": 11}
MATRIX = 4096
AT_A_TIME = {"cpu": 1, "cuda": 5}  # steps
# AlbuNet-50 on 512 x 512: channels in and out, and the size of the input.
BLOCKS = ((2048, 256, 8), (2304, 256, 16), (1280, 256, 32), (768, 64, 64), (320, 128, 128), (128, 32, 256))


@dataclass(frozen=True)
class Levers:
    form: Literal["auto", "plain", "transposed"] = "plain"
    recompute: Recompute = "none"
    bf16: bool = False
    channels_last: bool = False
    loss: bool = False  # ours
    fused: bool = False  # Adam
    prepared: bool = False  # the process, for the device
    compiled: bool = False  # the network

    def __str__(self) -> str:
        names = [self.form] * (self.form != "plain")
        names += [f"recompute {self.recompute}"] * (self.recompute != "none")
        names += [
            name for name in ("bf16", "channels_last", "loss", "fused", "prepared", "compiled") if getattr(self, name)
        ]
        return ", ".join(names) or "none: the straightforward step"


FORMS: tuple[Literal["auto", "plain", "transposed"], ...] = ("auto", "plain", "transposed")
ALL = Levers("auto", "norms", bf16=True, channels_last=True, loss=True, fused=True, prepared=True)
CONTENDERS = (
    Levers(),
    Levers(form="transposed"),
    Levers(form="auto"),
    Levers(recompute="norms"),
    Levers(recompute="blocks"),
    Levers(bf16=True),
    Levers(channels_last=True),
    Levers(loss=True),
    Levers(fused=True),
    Levers(prepared=True),
    ALL,
    replace(ALL, form="plain"),
    replace(ALL, form="transposed"),
    replace(ALL, recompute="none"),
    replace(ALL, recompute="blocks"),
    replace(ALL, bf16=False),
    replace(ALL, channels_last=False),
    replace(ALL, loss=False),
    replace(ALL, fused=False),
    replace(ALL, prepared=False),
)


def looped_lovasz_hinge(logits: Tensor, mask: Tensor) -> Tensor:
    """Image by image, in float64, each step the difference of two Jaccard losses."""
    losses = []
    for score, truth in zip(logits[:, 0].double(), mask.double(), strict=True):
        score, truth = score.flatten(), truth.flatten()
        errors, order = (1 - score * (2 * truth - 1)).sort(descending=True)
        ordered = truth[order]
        positives = ordered.sum()
        jaccard = 1 - (positives - ordered.cumsum(0)) / (positives + (1 - ordered).cumsum(0))
        steps = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
        losses.append(functional.relu(errors) @ steps)
    return torch.stack(losses).mean()


class Step:
    """A network with its batch and optimizer, under some levers."""

    def __init__(
        self, levers: Levers, network: str, batch: int, size: int, device: str, dtype: torch.dtype = torch.float32
    ) -> None:
        torch.manual_seed(0)
        self.levers, self.device = levers, device
        layout = torch.channels_last if levers.channels_last else torch.contiguous_format
        name, _, encoder = network.partition(" ")
        self.model = build_model(name, num_classes=1, num_channels=CHANNELS[network], encoder=encoder or None)
        self.model.to(device, dtype).to(memory_format=layout)  # type: ignore[call-overload]
        choose_execution(self.model, Execution(levers.form, levers.recompute))
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

    def forward(self) -> Tensor:
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.levers.bf16):
            logits = self.network(self.image)
        found: Tensor = self.loss(logits, self.mask)
        return found

    def run(self) -> Tensor:
        """One step; its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.forward()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def measure(self) -> None:
        prepare(self.device, self.levers.prepared)
        if self.levers.prepared:
            self.run()  # fetches what is to be kept
        wait_for(self.device)
        started = time.perf_counter()
        for _ in range(AT_A_TIME[self.device]):
            self.run()
        wait_for(self.device)
        self.seconds.append((time.perf_counter() - started) / AT_A_TIME[self.device])

    def peak_bytes(self) -> int:
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
        """Storages that wait for backward, each once; those of parameters and the batch are there anyway."""
        there = {each.untyped_storage().data_ptr() for each in (*self.model.parameters(), *self.model.buffers())}
        there |= {self.image.untyped_storage().data_ptr(), self.mask.untyped_storage().data_ptr()}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in there:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # itself would keep its own graph for good

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.forward()
        assert loss.requires_grad
        return sum(kept.values())


def wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def prepare(device: str, is_prepared: bool) -> None:
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = is_prepared
        torch.backends.cudnn.benchmark = is_prepared
    elif is_prepared:
        hardware.keep_freed_memory()
    else:  # glibc's defaults
        library = ctypes.CDLL(None)
        library.mallopt(-4, 65536)
        library.mallopt(-1, 128 * 1024)
        library.mallopt(1, 128)
        library.malloc_trim(0)


def resident_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def type_of(levers: Levers, device: str) -> str:
    """What the arithmetic of a step is done in."""
    if levers.bf16:
        return "bfloat16"
    return "TF32" if levers.prepared and device == "cuda" else "float32"


def peak_flops(device: str, name: str) -> float:
    """Of a matrix product in a type that `type_of` names, a second."""
    prepare(device, name == "TF32")
    dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
    first, second = (torch.randn(MATRIX, MATRIX, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        first @ second
        wait_for(device)
        seconds.append(time.perf_counter() - started)
    return 2 * MATRIX**3 / min(seconds)


def blocks(batch: int, device: str) -> None:
    """Of each of AlbuNet's upsampling blocks, how long the transposed form takes beside the plain one."""
    prepare(device, True)
    print("| channels | input | float32, plain, ms | transposed | x | bfloat16, plain, ms | transposed | x |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for num_in, num_out, size in BLOCKS:
        cells = []
        has_bf16 = device == "cuda" or choose_precision("auto", torch.device("cpu")) == torch.bfloat16
        for dtype in (torch.float32, torch.bfloat16)[: 1 + has_bf16]:
            seconds: dict[Upsampling, list[float]] = {"plain": [], "transposed": []}
            given = [torch.randn(batch, num_in, size, size), torch.randn(num_out, num_in, 3, 3)]
            features, weight = (
                each.to(device, dtype).to(memory_format=torch.channels_last).requires_grad_() for each in given
            )
            for _ in range(4):
                for form, found in seconds.items():
                    started = time.perf_counter()
                    for _ in range(AT_A_TIME[device]):
                        conv_of(features, weight, None, form, (1, 1), (1, 1)).sum().backward()
                    wait_for(device)
                    found.append((time.perf_counter() - started) / AT_A_TIME[device])
            plain, transposed = (statistics.median(found[1:]) for found in seconds.values())
            cells.append(f"{1e3 * plain:.3f} | {1e3 * transposed:.3f} | {transposed / plain:.2f}")
        print(f"| {num_in} to {num_out} | {size} x {size} | {' | '.join(cells)} |", flush=True)


def losses(batch: int, size: int, rounds: int, device: str) -> None:
    """Of the Lovász hinge, forward and backward, how long the loop takes beside ours, and how far ours is from it."""
    print("| positives | loop over images in float64, ms | ours in float32, ms | times faster | gradient off by |")
    print("|---:|---:|---:|---:|---:|")
    ours = build_loss("lovasz", num_classes=1)
    for share in (0.5, 0.1, 0.01, 0.001):
        torch.manual_seed(0)
        logits = torch.randn(batch, 1, size, size, device=device)
        mask = (torch.rand(batch, size, size, device=device) < share).to(torch.uint8)
        seconds: list[list[float]] = [[], []]
        gradients = []
        for _ in range(4 * rounds + 1):
            gradients = []
            for loss, found in zip((looped_lovasz_hinge, ours), seconds, strict=True):
                given = logits.clone().requires_grad_()
                started = time.perf_counter()
                loss(given, mask).backward()
                wait_for(device)
                found.append(time.perf_counter() - started)
                gradients.append(given.grad)
        expected, got = (each.double() for each in gradients)
        loop, fast = (statistics.median(each[1:]) for each in seconds)
        off = (got - expected).norm() / expected.norm()
        print(f"| {share:.1%} | {1e3 * loop:.0f} | {1e3 * fast:.0f} | {loop / fast:.2f} | {off:.1e} |", flush=True)


def equal(steps: int, network: str, batch: int, size: int, device: str) -> None:
    """How far losses of a training with all levers part from those without, and what one other rounding does to them.

    Training multiplies what differs: Adam's first steps have the gradients' signs alone, and norms share it out.
    """
    print("| beside the straightforward step | first loss | last | apart by at most |")
    print("|---|---:|---:|---:|")
    exact = replace(ALL, bf16=False, channels_last=device == "cuda")  # as a run in float32 has them
    for name, levers, dtype in (
        ("all levers, float32", exact, torch.float32),
        ("itself, its first weights off by 2^-23 of them, float32", Levers(), torch.float32),
        ("all levers, float64", exact, torch.float64),
        ("itself, its first weights off by 2^-23 of them, float64", Levers(), torch.float64),
    ):
        base, other = (Step(each, network, batch, size, device, dtype) for each in (Levers(), levers))
        if levers == Levers():
            with torch.no_grad():
                for each in other.model.parameters():
                    each.mul_(1 + 2.0**-23 * torch.randn_like(each).sign().to(torch.float64))
        pairs = [(base.run().item(), other.run().item()) for _ in range(steps)]
        apart = max(abs(first - second) for first, second in pairs)
        print(f"| {name} | {pairs[0][0]:.6f} | {pairs[-1][0]:.6f} | {apart:.1e} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="What a training step costs, lever by lever.")
    parser.add_argument("--network", choices=list(CHANNELS), default="albunet")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--blocks", action="store_true", help="only the two forms of each upsampling block")
    parser.add_argument(
        "--brief", action="store_true", help="only without levers, with all, and with all but one or other"
    )
    parser.add_argument("--compiled", action="store_true", help="with all levers and compiled, too: some minutes")
    parser.add_argument("--losses", action="store_true", help="only the Lovász loss")
    parser.add_argument(
        "--equal", type=int, metavar="STEPS", help="only how far losses part in so many steps, levers on and off"
    )
    options = parser.parse_args()
    if options.compiled and (options.equal or options.losses or options.blocks):
        parser.error("--compiled goes with --brief, or alone")
    if options.equal:
        equal(options.equal, options.network, options.batch, options.size, options.device)
        print(
            f"\n{name_of_machine()}; {options.network}, {options.device}, {options.size} x {options.size}, "
            f"batch {options.batch}, {options.equal} steps"
        )
        return
    if options.losses:
        losses(options.batch, options.size, options.rounds, options.device)
        print(f"\n{name_of_machine()}; {options.device}, batch {options.batch} of {options.size} x {options.size}")
        return
    if options.blocks:
        blocks(options.batch, options.device)
        print(f"\n{name_of_machine()}; {options.device}, batch {options.batch}, channels_last, forward and backward")
        return
    has_bf16 = options.device == "cuda" or choose_precision("auto", torch.device("cpu")) == torch.bfloat16
    chosen = [*CONTENDERS]
    if options.brief:
        chosen = [Levers(), *(replace(ALL, form=form) for form in FORMS), replace(ALL, recompute="none")]
    if options.compiled:
        chosen.append(replace(ALL, recompute="none", compiled=True))
    if not has_bf16:  # and then ours computes in the plain layout, too
        chosen = [replace(each, bf16=False, channels_last=False) for each in chosen]
    contenders = dict.fromkeys(chosen)
    types = dict.fromkeys(type_of(levers, options.device) for levers in contenders)
    peaks = {name: peak_flops(options.device, name) for name in types}
    steps = [Step(levers, options.network, options.batch, options.size, options.device) for levers in contenders]
    for step in steps:
        prepare(options.device, step.levers.prepared)
        step.run()  # Adam's moments are there from here on
    with torch.compiler.set_stance("force_eager"):  # what a compiler keeps is its own affair, and not counted
        counted = [(step.forward_flops(), step.kept_bytes()) for step in steps]
    counts = [(*each, step.peak_bytes()) for each, step in zip(counted, steps, strict=True)]
    for number in range(options.rounds + 1):
        for step in steps:
            step.measure()
            if number == 0:
                step.seconds.clear()  # warming up
    base_flops, base_kept, base_peak = counts[0]
    base_seconds = statistics.median(steps[0].seconds)
    print(
        "| levers | forward GFLOP | x | kept for backward, MB | x | peak, MB | x | s | times faster | tiles/s "
        "| of peak rate |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for step, (flops, kept, peak) in zip(steps, counts, strict=True):
        seconds = statistics.median(step.seconds)
        print(
            f"| {step.levers} | {flops / 1e9:.1f} | {flops / base_flops:.3f} | {kept / 1e6:.0f} "
            f"| {kept / base_kept:.2f} | {peak / 1e6:.0f} | {peak / base_peak:.2f} | {seconds:.3f} "
            f"| {base_seconds / seconds:.2f} | {options.batch / seconds:.2f} "
            f"| {3 * flops / seconds / peaks[type_of(step.levers, options.device)]:.2f} |"
        )
    print(
        f"\n{name_of_machine()}; {options.network}, {options.device}, {options.size} x {options.size}, "
        f"batch {options.batch}; matrix product, GFLOP/s: "
        + ", ".join(f"{peak / 1e9:.0f} in {name}" for name, peak in peaks.items())
    )


if __name__ == "__main__":
    main()
