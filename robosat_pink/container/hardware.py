"""The hardware of a run: cores, memory, shared memory, disk, GPU driver.

A container sees the whole machine, but its control group (cgroup v1 or v2) limits what it may use. Called by
most rooms, by `command`, `check` and `survey`.
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
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from robosat_pink.container.contract import Container
from robosat_pink.container.log_lines import IN_LOG, ON_TERMINAL
from robosat_pink.container.quantities import count, size
from robosat_pink.errors import ContractError

log = logging.getLogger(__name__)

CGROUP = Path("/sys/fs/cgroup")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - measured, not written to
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")  # the host's driver, visible in every container
DEVICES = Path("/dev")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
TUNABLES = "glibc.malloc.tcache_count=0"  # without an NVIDIA driver, start.sh sets GLIBC_TUNABLES to this
PACKAGES = ("torch", "torchvision", "rasterio", "obstore", "numpy")
WAIT_POLICY = "OMP_WAIT_POLICY"
LOOK_S = 0.2
LEAST_BUSY = 0.5  # cores that other programs use
KILLED_ADVICE = (  # for a process killed by SIGKILL
    "most likely out of memory; lower model.batch_size, model.tile_size or runtime.workers, or take a machine with "
    "more memory"
)


def cpu_count() -> int:
    """Cores that this process may use, at least 1: the smaller of its CPU affinity and its control group's quota."""
    cores = len(os.sched_getaffinity(0))
    quota_and_period = _numbers(CGROUP / "cpu.max")
    if not quota_and_period:
        quota_and_period = _numbers(CGROUP / "cpu/cpu.cfs_quota_us") + _numbers(CGROUP / "cpu/cpu.cfs_period_us")
    quota, period = quota_and_period or (math.inf, 1.0)
    is_limited = 0 < quota < math.inf
    return max(1, min(cores, math.ceil(quota / period))) if is_limited else cores


def thread_count(processes: int, neighbours: int) -> int:
    """Threads per process: `processes` are in this container, `neighbours` on the whole machine.

    If there are more threads than cores, they spin while they wait for each other: in two containers on two cores, a
    step of TernausNetV2 with two tiles of 64 x 64 took 4.1 s with two threads per container, and 2.0 s with one.
    """
    return max(1, min(cpu_count() // processes, (os.cpu_count() or 1) // neighbours))


def share_cores() -> None:
    """If other programs keep some of our cores busy, have threads sleep while they wait for each other.

    By default they spin for some milliseconds. On two cores (AMD EPYC) of which one was busy, a step of unet took 1.6
    times as long with spinning as without, one of AlbuNet 1.4 times; on idle cores 0.8 and 0.85 times. Call it before
    torch is loaded. What the environment says of waiting stays.
    """
    if NVIDIA_DRIVER.exists() or not {WAIT_POLICY, "GOMP_SPINCOUNT"}.isdisjoint(os.environ):
        return
    if os.environ.get("OMP_NUM_THREADS") == "1":
        return
    before = _busy_seconds()
    time.sleep(LOOK_S)
    busy = (_busy_seconds() - before) / LOOK_S
    if (os.cpu_count() or 1) - busy < cpu_count() - LEAST_BUSY:
        os.environ[WAIT_POLICY] = "PASSIVE"


def _busy_seconds() -> float:
    """Time that all cores of the machine have worked since boot, waiting for disks aside; 0 if unknown."""
    try:
        fields = Path("/proc/stat").read_text().split(None, 9)[1:9]  # proc(5)
        user, nice, system, _, _, interrupts, soft_interrupts, stolen = map(int, fields)
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")


def boot_id() -> str:
    """The kernel's id of this boot, equal in all containers of a machine; "" if unknown."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or its control group's limit if that is smaller."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = _numbers(CGROUP / "memory.max") or _numbers(CGROUP / "memory/memory.limit_in_bytes")
    return int(min(physical, *limits)) if limits else physical


def resident_bytes() -> int:
    """Memory that this process uses now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def process_seconds() -> float:
    """Seconds since this process was started."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # seconds from boot to start (starttime, field 22 in proc(5))
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def keep_freed_memory() -> None:
    """Have glibc reuse freed memory instead of returning it to the kernel. No effect with another C library.

    By default, glibc maps every block above 32 MiB afresh, and the kernel clears its pages. This took a quarter of the
    time of a training step of AlbuNet, in float32 on two cores. Small blocks in glibc's caches would keep freed
    blocks next to them from merging into large ones. So fastbins are turned off here, and thread caches by start.sh,
    because only an environment variable (GLIBC_TUNABLES) can turn those off.
    """
    mxfast, trim_threshold, mmap_max = 1, -1, -4  # malloc.h
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(mmap_max, 0)
        library.mallopt(trim_threshold, 2**31 - 1)
        library.mallopt(mxfast, 0)


def drop_glibc_tunables() -> None:
    """Remove start.sh's GLIBC_TUNABLES from the environment of child processes: it slows down decoding."""
    if os.environ.get("GLIBC_TUNABLES") == TUNABLES:
        del os.environ["GLIBC_TUNABLES"]


def is_in_memory(folder: Path) -> bool:
    """Whether the folder is on a tmpfs or ramfs, according to /proc/mounts."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return False
    parents = [(point, kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return bool(parents) and max(parents, key=lambda mount: len(mount[0]))[1] in ("tmpfs", "ramfs")


def free_shared_memory_bytes() -> int:
    """Free space of /dev/shm, through which NCCL connects the GPUs of a host. A plain container has 64 MiB."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0


def check_gpu(is_usable: bool) -> None:
    """Raises ContractError if torch cannot use this container's NVIDIA GPU, so that no run uses the CPU unnoticed."""
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
    """Raises ContractError if a folder has no room for `needed_bytes` of checkpoints, which replace those in it."""
    replaced = 0
    for path in folder.glob("*.pth"):
        with contextlib.suppress(OSError):  # a file that was removed meanwhile, or a broken or circular link
            replaced += path.stat().st_size
    room = shutil.disk_usage(folder).free + replaced
    if room < needed_bytes:
        raise ContractError(
            f"{folder} has room for {size(room)}; {what} need {size(needed_bytes)}; make room there, or mount a larger "
            "volume"
        )


def report(container: Container) -> list[str]:
    """Lines for the log: versions, hardware, channels and hosts."""
    import torch

    folder = container.model if container.model.is_dir() else container.output_data
    waiting = ", threads wait passively" if os.environ.get(WAIT_POLICY, "").upper() == "PASSIVE" else ""
    lines = [
        f"robosat_pink {version('robosat_pink')}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        f"machine: {count(cpu_count(), 'CPU core')}{waiting}, {size(memory_bytes())} memory, "
        f"{size(free_shared_memory_bytes())} shared memory, {size(shutil.disk_usage(folder).free)} free in {folder}",
    ]
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        lines.append(f"GPU {number}: {device.name}, {size(device.total_memory)}, CUDA {torch.version.cuda}")
    if NVIDIA_DRIVER.exists():
        lines.append(f"driver: {NVIDIA_DRIVER.read_text().splitlines()[0]}")
    channels = ", ".join(f"{name} {path}" for name, path in container.channels().items()) or "none"
    hosts, current = container.hosts()
    lines.append(f"channels: {channels}; host {current} of {', '.join(hosts)}; checkpoints: {container.checkpoints}")
    return lines


def log_report(container: Container) -> None:
    """Log the report; on a terminal, versions and the machine, in a line each."""
    versions, machine, *others = report(container)
    log.info(versions)
    names = [line.partition(": ")[2] for line in others if line.startswith("GPU ")]
    gpus = "".join(f"; {count(number, 'GPU')}: {name}" for name, number in Counter(names).items())
    log.info("%s%s", machine, gpus, extra=ON_TERMINAL)
    for line in (machine, *others):
        log.info(line, extra=IN_LOG)


def _numbers(path: Path) -> tuple[float, ...]:
    """The numbers in a control group's file, with infinity for `max`; empty if it cannot be read."""
    try:
        return tuple(math.inf if word == "max" else float(word) for word in path.read_text().split())
    except (OSError, ValueError):
        return ()
