"""Our command as a method of accuracy.py: its experiments, and a run of a given processor time.

The command logs a line after each epoch, at which its processor time is read. A pilot run of a few epochs tells what an
epoch costs and what the rest of a run costs: start, listing, checkpoints and report.
"""

import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import processor_time
import real_tiles
import yaml
from real_tiles import BANDS, SCENES

PILOT_EPOCHS = (2, 10)  # the second where the epochs after the first take less than PILOT_S
PILOT_S = 5.0
SUMMARY = re.compile(
    r"; (\d+) epochs of (\d+) steps, (\d+) tiles a step"
)  # before the first step, see training/progress.py

# planet-snowcover's way: statistics of the train tiles after scaling, written by hand, and settings of each scene.
RESNET = {"name": "albunet", "encoder": "resnet18", "num_filters": 16, "tile_size": 256, "batch_size": 4}
COSINE = {"lr": 0.001, "schedule": "cosine"}
STATISTICS = {
    "s2_virginia_water": {"mean": [0.119, 0.095, 0.074, 0.101], "std": [0.017, 0.020, 0.026, 0.094]},
    "l7_everest_glacier": {"mean": [0.711, 0.674, 0.696, 0.561], "std": [0.281, 0.300, 0.295, 0.308]},
    "l8_himachal_snow": {"mean": [0.676, 0.645, 0.664, 0.642], "std": [0.292, 0.304, 0.327, 0.323]},
    "modis_patagonia_snow": {"mean": [0.272, 0.275, 0.267, 0.329], "std": [0.253, 0.260, 0.261, 0.248]},
}
MODIS = {"lr": 0.0005, "loss": {"lovasz": 0.5, "cross_entropy": 1.0}}  # Lovász alone stalls on masks this sparse


class Result(NamedTuple):
    val_iou: float  # of the last epoch
    steps: int
    batch_size: int
    processor_s: float
    epoch_ends_s: list[float]  # processor time when each epoch ended


def original(scene: str) -> dict[str, Any]:
    own = MODIS if scene == "modis_patagonia_snow" else {}
    return {"channels": [{"bands": list(BANDS), **STATISTICS[scene]}], "model": RESNET | COSINE | own}


def strong(scene: str) -> dict[str, Any]:
    return {"channels": [{"bands": list(BANDS)}], "model": {"name": "unet", "recipe": "strong"}}


METHODS = {"original": original, "strong": strong}


def experiment(method: str, scene: str, ids_file: str, folder: Path | str = real_tiles.FOLDER) -> dict[str, Any]:
    """The experiment file; `ids_file` names the tiles to evaluate, `folder` has the tiles."""
    return {
        "dataset": real_tiles.dataset(scene, folder) | {"split": {"from": ids_file}},
        "classes": [{"name": SCENES[scene].class_name}],
        **METHODS[method](scene),
    }


def run(method: str, scene: str, seed: int, budget_s: float | None, overrides: Sequence[str]) -> Result:
    """Train for about `budget_s` of processor time; for None, for as many epochs as the experiment says."""
    if budget_s is not None:
        pilot = train_pilot(method, scene, tuple(overrides))
        exact = processor_time.epochs_within(budget_s, pilot.processor_s, pilot.epoch_ends_s)
        steps_before = pilot.steps // len(pilot.epoch_ends_s)
        epochs, steps = processor_time.as_epochs_and_steps(exact, steps_before)
        overrides = [*overrides, f"model.epochs={epochs}"]
        if steps != steps_before:
            overrides = [*overrides, f"sampling.tiles_per_epoch={steps * pilot.batch_size}"]
    return train(method, scene, [*overrides, f"runtime.seed={seed}"])


@functools.cache
def train_pilot(method: str, scene: str, overrides: tuple[str, ...]) -> Result:
    """One pilot for all seeds, so that they train for equally many steps; a longer one where epochs are short."""
    for epochs in PILOT_EPOCHS:
        pilot = train(method, scene, [*overrides, f"model.epochs={epochs}"])
        if pilot.epoch_ends_s[-1] - pilot.epoch_ends_s[0] > PILOT_S:
            break
    return pilot


def train(method: str, scene: str, overrides: Sequence[str]) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder)
        ids_file = job / "val_ids.txt"
        ids_file.write_text("\n".join(real_tiles.val_ids(scene)))
        (job / "input/data/config").mkdir(parents=True)
        (job / f"input/data/config/{scene}.yml").write_text(yaml.safe_dump(experiment(method, scene, str(ids_file))))
        before_s = processor_time.of_ended_children()
        (epochs, steps, batch_size), epoch_ends_s = watch(job, overrides)
        processor_s = processor_time.of_ended_children() - before_s
        metrics = json.loads((job / "model/metrics.json").read_text())
    return Result(metrics["val"]["iou"], epochs * steps, batch_size, processor_s, epoch_ends_s)


def watch(job: Path, overrides: Sequence[str]) -> tuple[tuple[int, ...], list[float]]:
    """Run the command; return (epochs, steps of each, batch size), and the processor time after each epoch.

    Tiles are read in the command's own process (`runtime.workers=0`), so that its processor time includes them.
    """
    command = [sys.executable, "-u", "-m", "robosat_pink.train", "runtime.workers=0", *overrides]
    environment = os.environ | processor_time.ONE_THREAD | {"SAGEMAKER_BASE_DIR": str(job)}
    lines, epoch_ends_s = [], []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            lines.append(line)
            if line.startswith("phase=val "):
                epoch_ends_s.append(processor_time.of_process(process.pid))
    if process.returncode:
        sys.exit(f"{''.join(lines[-30:])}{' '.join(command)} ended with {process.returncode}")
    [numbers] = SUMMARY.findall("".join(lines))
    epochs, steps, batch_size = map(int, numbers)
    return (epochs, steps, batch_size), epoch_ends_s[:epochs]  # an evaluation with symmetries logs another line
