"""The device of a run, its precision and its memory layout. Called by `train` and `check`."""

from __future__ import annotations

import logging
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from robosat_pink.container import hardware
from robosat_pink.errors import ContractError

log = logging.getLogger(__name__)


def choose_device(setting: str, local_rank: int = 0) -> torch.device:
    """The GPU whose number is the local rank; the CPU for `cpu`, or for `auto` without a GPU.

    Raises ContractError if `cuda` finds no GPU, if torch cannot use the GPU there is, or if none is left for this rank.
    """
    is_usable = torch.cuda.is_available()
    if setting == "cuda" and not is_usable:
        hardware.check_gpu(is_usable)
        raise ContractError("runtime.device = cuda: there is no GPU here; take a machine with one, or set auto or cpu")
    if setting == "auto":
        hardware.check_gpu(is_usable)
    if not is_usable or setting == "cpu":
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ContractError(
            f"runtime.processes: there are {torch.cuda.device_count()} GPU(s) here, none for process {local_rank + 1}; "
            "leave it at auto, or take a machine with more"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def choose_precision(setting: str, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast; None for float32.

    `auto` is bfloat16 if the hardware supports it, float16 on older GPUs whose tensor cores speed up only float16
    (Volta, Turing), and float32 otherwise.
    """
    if setting == "auto":
        setting = _fastest_on_gpu() if device.type == "cuda" else _fastest_on_cpu()
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[setting]


def choose_layout(device: torch.device, precision: torch.dtype | None) -> torch.memory_format:
    """channels_last, except for float32 on a CPU, where it took 1.2 times as long (two cores with AVX2)."""
    return torch.channels_last if precision or device.type == "cuda" else torch.contiguous_format


def autocast(device: torch.device, precision: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device.type, dtype=precision or torch.bfloat16, enabled=precision is not None)


def prepare(device: torch.device, processes: int = 1, neighbours: int = 1) -> None:
    """Set the number of threads, the memory allocation and TF32 for this process.

    `processes` counts the ranks on this host, `neighbours` the ranks in all containers of this machine.
    """
    hardware.drop_glibc_tunables()
    threads = min(torch.get_num_threads(), hardware.thread_count(processes, neighbours))  # torch ignores control groups
    torch.set_num_threads(threads)
    if neighbours > processes:
        log.info("%d processes of this run are on one machine: %d thread(s) each", neighbours, threads)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True  # float32 products with a 10-bit mantissa, on Ampere and later
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    else:
        hardware.keep_freed_memory()


def check_compiler(device: torch.device) -> None:
    """Raises ContractError if torch.compile lacks a compiler (C++ on a CPU, C for Triton on a GPU) or Python.h."""
    variable, defaults = ("CC", ("gcc", "clang")) if device.type == "cuda" else ("CXX", ("g++",))
    compilers = (os.environ[variable],) if variable in os.environ else defaults  # Triton and torch choose the same way
    missing = ""
    if not any(map(shutil.which, compilers)):
        missing = f"a compiler ({' or '.join(compilers)})"
    elif not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        missing = "Python.h, Python's C header,"
    if missing:
        raise ContractError(
            f"runtime.compile = true: {missing} is missing; leave it out, install one (on Debian: g++ and "
            'libpython3-dev), or build the image with --build-arg EXTRA_PACKAGES="g++ libpython3-dev"'
        )


def _fastest_on_gpu() -> str:
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp16" if torch.cuda.get_device_capability() >= (7, 0) else "fp32"


def _fastest_on_cpu() -> str:
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
