"""Processor time of child processes, and how many epochs fit into a budget of it. Called by accuracy.py's methods."""

import os
import resource
from collections.abc import Sequence
from pathlib import Path

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # environment variables
TOLERANCE = 0.05  # up to which epochs keep their number of steps


def of_ended_children() -> float:
    """Seconds of all child processes that have ended, and of their descendants."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def of_process(pid: int) -> float:
    """Seconds of a running process and its threads, without its running children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = fields[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def epochs_within(budget_s: float, pilot_s: float, epoch_ends_s: Sequence[float]) -> float:
    """The length in epochs, not rounded, of a run of `budget_s`, from a pilot run of two epochs or more.

    `pilot_s` is the processor time of the whole pilot; `epoch_ends_s` is its processor time after each epoch.
    """
    epochs = len(epoch_ends_s)
    epoch_s = (epoch_ends_s[-1] - epoch_ends_s[0]) / (epochs - 1)
    return epochs + (budget_s - pilot_s) / epoch_s


def as_epochs_and_steps(epochs: float, steps: int) -> tuple[int, int]:
    """Whole epochs, and the steps of each, that take about as long as `epochs` epochs of `steps` steps; at least 1."""
    whole = max(1, round(epochs))
    if abs(epochs / whole - 1) <= TOLERANCE:
        return whole, steps
    return whole, max(1, round(steps * epochs / whole))
