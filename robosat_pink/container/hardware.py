"""The machine a run has got: cores, memory, shared memory, disk, GPU. Called by `train`, `loader` and `report`.

Containers see the whole machine and may use a part of it: limits of control groups count.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path

from robosat_pink.container.contract import Container
from robosat_pink.errors import ContractError

log = logging.getLogger(__name__)

CGROUP = Path("/sys/fs/cgroup")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - measured, not written to
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")  # the host's, shown in any container
DEVICES = Path("/dev")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # the same in all containers of a machine
TUNABLES = "glibc.malloc.tcache_count=0"  # as start.sh sets GLIBC_TUNABLES
PACKAGES = ("torch", "torchvision", "rasterio", "obstore", "numpy")
GIB = 2**30
KILLED_ADVICE = (  # after "was killed by SIGKILL"
    "most likely out of memory; lower model.batch_size, model.tile_size or runtime.workers, or take a machine with "
    "more memory"
)


def cpu_count() -> int:
    """Cores this process may use, at least one: its affinity, and the share its control group allows."""
    cores = len(os.sched_getaffinity(0))
    quota, period = (
        _numbers(CGROUP / "cpu.max")
        or (
            *_numbers(CGROUP / "cpu/cpu.cfs_quota_us"),
            *_numbers(CGROUP / "cpu/cpu.cfs_period_us"),
        )
        or (math.inf, 1.0)
    )
    return max(1, min(cores, math.ceil(quota / period) if 0 < quota < math.inf else cores))


def thread_count(processes: int, neighbours: int) -> int:
    """Of each of so many processes that share what this one may use, and of so many that share the whole machine.

    More threads than cores spin while they wait for each other's turn: in two containers on two cores, a step of
    TernausNetV2 with two tiles of 64 x 64 took 4.1 s with two threads each, and takes 2.0 s with one.
    """
    return max(1, min(cpu_count() // processes, (os.cpu_count() or 1) // neighbours))


def boot_id() -> str:
    """What tells this machine from others, or nothing."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def memory_bytes() -> int:
    """Memory this process may use: the machine's, or what its control group allows."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = _numbers(CGROUP / "memory.max") or _numbers(CGROUP / "memory/memory.limit_in_bytes")
    return int(min(there, *limits)) if limits else there


def resident_bytes() -> int:
    """Memory this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def process_seconds() -> float:
    """Since this process was started."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # after the machine's start; field 22 of proc(5), 3 the first
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def keep_freed_memory() -> None:
    """Have the C library keep what this process frees, for its next allocation of that size.

    glibc maps every block of more than 32 MiB anew, and the kernel clears each of its pages: a quarter of the time of
    a step of AlbuNet in float32 on two cores. Small blocks kept at hand would lie between what is freed and keep it
    from being joined: fastbins are turned off here, and by start.sh, as only an environment can, what threads keep.
    With another C library nothing happens.
    """
    mxfast, trim_threshold, mmap_max = 1, -1, -4  # malloc.h
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(mmap_max, 0)
        library.mallopt(trim_threshold, 2**31 - 1)
        library.mallopt(mxfast, 0)


def spare_later_processes_tunables() -> None:
    """Keep what start.sh asks of glibc for this process from those that it starts: decoding is slower with it."""
    if os.environ.get("GLIBC_TUNABLES") == TUNABLES:
        del os.environ["GLIBC_TUNABLES"]


def is_in_memory(folder: Path) -> bool:
    """Whether the folder lies on a tmpfs, according to /proc/mounts."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return False
    parents = [(point, kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return bool(parents) and max(parents, key=lambda mount: len(mount[0]))[1] in ("tmpfs", "ramfs")


def free_shared_memory_bytes() -> int:
    """What is left of /dev/shm, through which the GPUs of one host talk; 64 MiB in a plain container."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0


def check_gpu(is_usable: bool) -> None:
    """ContractError where this machine was given an NVIDIA GPU and torch cannot use it: not a silent run on the CPU."""
    if is_usable or not NVIDIA_DRIVER.exists():
        return
    if not any(DEVICES.glob("nvidia[0-9]*")):
        log.warning("warning: the host has an NVIDIA GPU which this container was not given: docker run --gpus all")
        return
    import torch

    raise ContractError(
        f"there is an NVIDIA GPU, but torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use it: "
        f"{NVIDIA_DRIVER.read_text().splitlines()[0]}. Take a host with a newer driver (CUDA 12.8 needs 570 or newer), "
        "or set runtime.device=cpu to train on the CPU"
    )


def check_disk(folder: Path, needed_bytes: int, what: str) -> None:
    """ContractError with the numbers where a folder has no room for the checkpoints that will stand there."""
    replaced = 0
    for path in folder.glob("*.pth"):
        with contextlib.suppress(OSError):  # it has just gone, or is a link to nowhere or to itself
            replaced += path.stat().st_size
    free = shutil.disk_usage(folder).free + replaced
    if free < needed_bytes:
        raise ContractError(
            f"{folder}: {free / GIB:.2f} GiB free, {what} need {needed_bytes / GIB:.2f} GiB; make room there, or mount "
            "a larger volume"
        )


def report(container: Container) -> list[str]:
    """Lines that say what this run runs on, for the log."""
    import torch

    lines = [
        f"robosat_pink {version('robosat_pink')}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        f"machine: {cpu_count()} CPU cores, {memory_bytes() / GIB:.1f} GiB memory, "
        f"{free_shared_memory_bytes() / GIB:.2f} GiB shared memory, "
        f"{shutil.disk_usage(container.model).free / GIB:.1f} GiB free in {container.model}",
    ]
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        lines.append(f"GPU {number}: {device.name}, {device.total_memory / GIB:.1f} GiB, CUDA {torch.version.cuda}")
    if NVIDIA_DRIVER.exists():
        lines.append(f"driver: {NVIDIA_DRIVER.read_text().splitlines()[0]}")
    channels = ", ".join(f"{name} {path}" for name, path in container.channels().items()) or "none"
    hosts, current = container.hosts()
    lines.append(f"channels: {channels}; host {current} of {', '.join(hosts)}; checkpoints: {container.checkpoints}")
    return lines


def _numbers(path: Path) -> tuple[float, ...]:
    """The numbers in a control group's file; `max` is none: infinite."""
    try:
        return tuple(math.inf if word == "max" else float(word) for word in path.read_text().split())
    except (OSError, ValueError):
        return ()
