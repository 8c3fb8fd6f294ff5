"""The machine that a benchmark ran on, in one line below its table. Called by every benchmark."""

import os
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("obstore", "rasterio", "boto3", "torch")


def describe_machine() -> str:
    """Cores, processor, date and versions."""
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES if find_spec(package))
    return f"{len(os.sched_getaffinity(0))} cores, {processor()}, {time.strftime('%Y-%m-%d')}; {versions}"


def processor() -> str:
    """The processor's name, as the kernel gives it."""
    cpu_info = Path("/proc/cpuinfo").read_text().splitlines()
    model_names = [line for line in cpu_info if line.startswith("model name")]
    return model_names[0].partition(": ")[2] if model_names else "unknown processor"
