"""How good the maps are: val IoU of our networks and of others on real tiles, each in the same processor time.

    python tests/benchmarks/accuracy.py run [--methods NAME ...] [--scenes NAME ...] [--seeds NUMBER ...]
                                            [--seconds 180 | --own-length] [--set KEY=VALUE ...] [--rows FILE]
    python tests/benchmarks/accuracy.py ablation [--seconds 180]    # `strong` without one ingredient at a time
    python tests/benchmarks/accuracy.py table                       # writes the tables into docs/accuracy.md

Each run is a line in FILE. Runs that are there are skipped, so that an interrupted benchmark continues. Needs the
folder of real tiles (../shared/data), whose manifest says what is trained on and what is evaluated; and for the methods
that are not ours, `pip install -e ".[benchmark]"`. docs/accuracy.md has the results.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import ours
import processor_time
from accuracy_rows import (
    ABLATION_SCENES,
    ABLATION_SEEDS,
    INGREDIENTS,
    SCENES,
    SECONDS,
    SEEDS,
    Row,
    Run,
    append_row,
    read_rows,
    with_tables,
)
from machine import processor

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "accuracy.md"
RIVALS = {"forest": "sklearn", "smp": "segmentation_models_pytorch"}  # and the module that each needs
METHODS = (*RIVALS, *ours.METHODS)


def main() -> None:
    arguments = parse_arguments()
    if arguments.command == "table":
        PAGE.write_text(with_tables(PAGE.read_text(), read_rows(arguments.rows)))
        return
    check_installed(arguments.methods)
    for run in runs_of(arguments):
        if run in {row.run for row in read_rows(arguments.rows)}:
            continue
        row = measure(run)
        append_row(arguments.rows, row)
        name = " ".join([run.method, *run.overrides])
        took = f"{row.processor_s:.0f} s of processor time"
        print(f"{name}, {run.scene}, seed {run.seed}: val IoU {row.val_iou:.4f} after {took}", flush=True)


def runs_of(arguments: argparse.Namespace) -> Iterator[Run]:
    variants = [(), *INGREDIENTS.values()] if arguments.command == "ablation" else [tuple(arguments.set)]
    for method, overrides in itertools.product(arguments.methods, variants):
        budget_s = None if method == "forest" or arguments.own_length else arguments.seconds
        for scene, seed in itertools.product(arguments.scenes, arguments.seeds):
            yield Run(method, scene, seed, budget_s, overrides)


def measure(run: Run) -> Row:
    measured_commit = commit()  # before the run: the code may change during it
    if run.method in RIVALS:
        val_iou, steps, processor_s = run_rival(run)
    else:
        result = ours.run(*run)
        val_iou, steps, processor_s = result.val_iou, result.steps, result.processor_s
    if run.budget_s and abs(processor_s / run.budget_s - 1) > 0.1:
        print(f"warning: {processor_s:.0f} s is more than a tenth off the budget of {run.budget_s:g} s", flush=True)
    return Row(
        **run._asdict(),
        val_iou=round(val_iou, 6),
        processor_s=round(processor_s, 1),
        steps=steps,
        date=time.strftime("%Y-%m-%d"),
        commit=measured_commit,
        torch=version("torch"),
        cpu=processor(),
    )


def run_rival(run: Run) -> tuple[float, int | None, float]:
    """The val IoU, the number of steps if it counts any, and the processor time."""
    command = [sys.executable, str(HERE / "rivals.py"), run.method, run.scene, str(run.seed), str(run.budget_s or 0)]
    before_s = processor_time.of_ended_children()
    environment = os.environ | processor_time.ONE_THREAD
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        sys.exit(f"{ended.stdout}{' '.join(command)} ended with {ended.returncode}")
    result = json.loads(ended.stdout.splitlines()[-1])
    return result["val_iou"], result["steps"], processor_time.of_ended_children() - before_s


def commit() -> str:
    """The commit that is checked out, and `-changed` if a Python file differs from it."""
    git = ["git", "-C", str(HERE)]
    name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    is_changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ":/*.py"]).returncode
    return name.strip() + ("-changed" if is_changed else "")


def check_installed(methods: list[str]) -> None:
    missing = [method for method in methods if method in RIVALS and not find_spec(RIVALS[method])]
    if missing:
        modules = ", ".join(RIVALS[method] for method in missing)
        sys.exit(
            f"accuracy.py: {' and '.join(missing)}: {modules} cannot be imported; install the extra, "
            f'pip install -e ".[benchmark]", or take other methods: --methods {" ".join(ours.METHODS)}'
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "ablation", "table"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="NAME", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--scenes", nargs="+", choices=SCENES, metavar="NAME", help=f"of {', '.join(SCENES)}")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="NUMBER")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="processor time of each network's run")
    parser.add_argument("--own-length", action="store_true", help="train as long as our experiment says instead")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="override keys of our experiments")
    parser.add_argument("--rows", type=Path, default=HERE / "accuracy.jsonl", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.command == "ablation" and (arguments.methods or arguments.own_length or arguments.set):
        parser.error("ablation runs `strong`, for --seconds, with its own overrides; leave the other options out")
    is_ablation = arguments.command == "ablation"
    arguments.methods = arguments.methods or (["strong"] if is_ablation else list(METHODS))
    arguments.scenes = arguments.scenes or (ABLATION_SCENES if is_ablation else SCENES)
    arguments.seeds = arguments.seeds or (ABLATION_SEEDS if is_ablation else SEEDS)
    if (arguments.own_length or arguments.set) and set(arguments.methods) & set(RIVALS):
        parser.error(f"--own-length and --set are for our methods; add --methods {' '.join(ours.METHODS)}")
    return arguments


if __name__ == "__main__":
    main()
