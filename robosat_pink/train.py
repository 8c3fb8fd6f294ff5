"""The training run, from the experiment file to the model: `python -m robosat_pink.train [KEY=VALUE ...]`.

`--check FILE` says what a run would find and take, and trains nothing.

What may be broken is imported when it is needed, so that even a broken installation leaves a failure file; what loads
torch, after the experiment file has been checked: a misspelt key is told within a second.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from robosat_pink.container.contract import Container
from robosat_pink.container.failure_file import user_message
from robosat_pink.container.pid1 import run_as_init
from robosat_pink.container.redaction import SECRET_NAME, RedactingFormatter, redacted_tree
from robosat_pink.container.stop_request import Stopped, StopRequest
from robosat_pink.distributed import launcher
from robosat_pink.distributed.launcher import ProcessRank
from robosat_pink.errors import ConfigError, RobosatError

if TYPE_CHECKING:
    from robosat_pink.config import Config
    from robosat_pink.distributed.process_group import World
    from robosat_pink.training.outputs import NoResults, Results
    from robosat_pink.training.state import State, Task

log = logging.getLogger("robosat_pink")

MOST_LISTINGS = 10  # that tiles which change during a run may cost it


class RunOutcome(NamedTuple):
    """What a run has come to, with at least one epoch to report on."""

    state: State
    task: Task
    holdout: dict[str, Any] | None  # the metrics of held-out tiles, if any and if the run got so far
    stopped: Stopped | None  # by its time budget


def main(argv: Sequence[str] | None = None) -> int:
    """Train what the container's experiment file says. Returns the exit code; on failure the failure file says why."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(RedactingFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    container = Container.here()
    argv = sys.argv[1:] if argv is None else argv
    arguments = None
    try:
        with StopRequest() as stop:
            arguments = parse_arguments(argv)
            if arguments.check is None:
                container.prepare()
            with stop.postponed():
                from robosat_pink.config import load_config
            path = arguments.check or arguments.config or container.experiment_file()
            config = load_config(path, container.hyperparameters(), arguments.overrides)
            if arguments.check is not None:
                with stop.postponed():
                    from robosat_pink import check
                check.check(config, container)
                return 0
            launcher.end_with_parent(os.environ)
            process = launcher.rank_from_environment(os.environ)
            here = [process] if process else launcher.ranks_of_this_host(container, config.runtime)
            if len(here) > 1:
                return launcher.run(here, argv, stop, container)
            run_in(here[0], config, container, stop)
    except Stopped as stopped:
        log.info("stopped %s; the same command goes on where resume points were kept", stopped.reason)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of obstore's, too, which is no Exception
        log.error("error: %s", user_message(error), exc_info=not isinstance(error, RobosatError))  # noqa: TRY400
        if arguments is None or arguments.check is None:
            container.write_failure(error)
        return getattr(error, "exit_code", 1)
    return 0


def run_in(process: ProcessRank, config: Config, container: Container, stop: StopRequest) -> None:
    """Run as one of the processes that train together. The first speaks for all; the others, of trouble only."""
    with stop.postponed():
        from robosat_pink.distributed import process_group
    if process.rank:
        (handler,) = log.root.handlers
        handler.setFormatter(RedactingFormatter(f"process {process.rank}: %(message)s"))
        log.root.setLevel(logging.WARNING)
    with process_group.joined(container, process, config.runtime.peer_timeout_s, stop) as world:
        ended = run(config, container, stop, world)
        world.release()
        if world.is_rank_zero:
            from robosat_pink.report import build

            build.leave(*ended, container, stop)
    if ended.stopped:
        raise ended.stopped


def run(config: Config, container: Container, stop: StopRequest, world: World) -> RunOutcome:
    """Find the tiles, build the network, continue where an earlier attempt stopped, and fit."""
    with stop.postponed():
        import torch
        from torch.amp.grad_scaler import GradScaler

        from robosat_pink import checkpoint
        from robosat_pink.config import to_tree
        from robosat_pink.container import device as devices
        from robosat_pink.container import hardware
        from robosat_pink.datasets import coverage
        from robosat_pink.datasets.normalisation import normalisation
        from robosat_pink.datasets.store_options import store_options
        from robosat_pink.datasets.transforms import EvaluationTransform, TrainingTransform
        from robosat_pink.losses import build_loss
        from robosat_pink.training import outputs, progress, resume, setup
        from robosat_pink.training.background_writer import Writer
        from robosat_pink.training.state import State, Task
        from robosat_pink.training.stopping import Watch

    for line in hardware.report(container):
        log.info(line)
    setup.check_processes(config, world)
    points = checkpoint.ResumePoints(container.checkpoints) if container.checkpoints else None
    where = store_options(config.dataset, container.channels())
    start = world.on_rank_zero(lambda: resume.find(config, points, where))
    config = resume.with_scales_settled(config, start)
    log.info("experiment: %s", json.dumps(redacted_tree(to_tree(config))))

    torch.manual_seed(config.runtime.seed)
    device = devices.choose_device(config.runtime.device, world.process.local_rank)
    precision = devices.choose_precision(config.runtime.precision, device)
    memory_format = devices.choose_layout(device, precision)
    devices.prepare(device, world.process.local_size, world.neighbours())

    tiles, split = setup.find_tiles(config, container, world)
    remarks = world.on_rank_zero(lambda: coverage.look(config, tiles, split.train))
    for remark in remarks:
        log.log(logging.WARNING if remark.startswith("warning: ") else logging.INFO, remark)
    is_synchronised = config.model.batch_norm == "synchronised" and world.size > 1
    model, upsampling = setup.build_network(config, start, device, where, is_synchronised)
    model.to(device).to(memory_format=memory_format)  # type: ignore[call-overload]
    network: Any = model
    if config.runtime.compile:
        devices.check_compiler(device)
        network = torch.compile(model, dynamic=False)
        log.info("the network is compiled in the first step: a minute or more on a GPU, some on a CPU, of silence")
    class_weights = [each.weight for each in config.classes]
    loss = build_loss(config.model.loss, num_classes=config.num_classes, class_weights=class_weights)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.model.lr, weight_decay=config.model.decay, fused=True)
    state = State(model, optimizer, GradScaler(device.type, enabled=precision == torch.float16))
    if start:
        resume.restore(state, start, config, tiles, split)
    del start  # three times the weights

    writer = Writer()
    save_every_s = 60 * config.checkpoint.every_minutes if points else None
    watch = Watch(world, stop, writer, save_every_s, config.runtime.max_seconds)
    task = Task(
        config=config,
        split=split,
        loader=setup.make_loader(tiles, config, device, watch.interrupt, world.process),
        loss=loss.to(device),
        training_transform=TrainingTransform(*normalisation(config.channels)).to(device),
        evaluation_transform=EvaluationTransform(*normalisation(config.channels)).to(device),
        device=device,
        autocast=precision,
        memory_format=memory_format,
        show=progress.bar if container.is_interactive() and world.is_rank_zero else progress.lines,
        watch=watch,
        network=world.data_parallel(network, device, config.runtime.accumulation),
        world=world,
        remarks=tuple(remarks),
    )
    with writer:
        outcome: outputs.Results | outputs.NoResults = outputs.NoResults()
        if world.is_rank_zero:
            outcome = outputs.Results(container, config, tiles, split, writer, points, upsampling)
        log.info("training on %s in %s", device, precision or torch.float32)
        log.info(progress.summary(model, len(split.train), config.model.batch_size, config.model.epochs))
        world.on_rank_zero(lambda: outcome.begin(state))
        stop.is_polled = True
        ended = fit_and_evaluate(state, task, outcome, container, stop)
    log.info("model and metrics are in %s; best epoch %d of %d", container.model, state.best_epoch, state.epoch)
    return ended


def fit_and_evaluate(
    state: State, task: Task, outcome: Results | NoResults, container: Container, stop: StopRequest
) -> RunOutcome:
    """Train to the last epoch or until the time is over, evaluate held-out tiles, and leave the results.

    Tiles that changed meanwhile are listed again; the task is then another one. Raises Stopped where a signal came, or
    where no epoch is done.
    """
    from robosat_pink.datasets.tile_file import Changed
    from robosat_pink.training import loop, setup

    for attempt in itertools.count():
        try:
            stop.raise_if_requested()
            loop.fit(state, task, outcome.save, outcome.save_epoch)
            outcome.complete(state)
            holdout = evaluate_held_out(state, task)
            outcome.finish(state, holdout)
            return RunOutcome(state, task, holdout, stopped=None)
        except Stopped as stopped:
            outcome.save_stopped(state, stopped.reason)
            if stopped.reason == Stopped.BY_SIGNAL or not state.history:
                raise
            return RunOutcome(state, task, None, stopped)
        except Changed as error:
            if task.config.dataset.if_changed == "error" or attempt == MOST_LISTINGS:
                raise
            log.warning("warning: %s", error)
            is_fitted = state.epoch == task.config.model.epochs
            anew = "the held-out tiles are evaluated" if is_fitted else f"epoch {state.epoch + 1} begins"
            log.warning("listing again; %s anew", anew)
            task.loader.close()
            tiles, split = setup.find_tiles(task.config, container, task.world)
            loader = setup.make_loader(tiles, task.config, task.device, stop.raise_if_requested, task.world.process)
            task = dataclasses.replace(task, split=split, loader=loader)
            outcome.relist(tiles, split)
            state.restart_epoch()
    raise AssertionError


def evaluate_held_out(state: State, task: Task) -> dict[str, Any] | None:
    """The metrics of the best weights, if tiles were held out. The network has its last weights again after it."""
    from robosat_pink.training import loop
    from robosat_pink.training.background_writer import snapshot

    if not len(task.split.holdout):
        return None
    last = snapshot(state.model.state_dict())
    state.model.load_state_dict(state.best_weights)
    try:
        return loop.evaluate(state, task, task.split.holdout, "holdout", state.best_epoch)
    finally:
        state.model.load_state_dict(last)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """`--config FILE` and KEY=VALUE overrides; `train`, as SageMaker may repeat it, is passed over."""
    parser = _Parser(prog="robosat_pink.train", description="Train on tiles, as /opt/ml/input/data/config says.")
    parser.add_argument("--config", metavar="FILE", help="an experiment file instead of the config channel's")
    parser.add_argument(
        "--check", metavar="FILE", nargs="?", const="", help="train nothing, but say what a run would find and take"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="override a key, such as model.lr=0.001")
    arguments = parser.parse_intermixed_args([each for each in argv if each != "train"])
    if "=" in (arguments.check or ""):  # an override, after --check without a file
        arguments.overrides.append(arguments.check)
        arguments.check = ""
    for before, each in itertools.pairwise(["", *arguments.overrides]):
        if "=" not in each:  # one word of it: `password abc` and `password=ab c` are typed as well
            shown = "***" if SECRET_NAME.search(before.partition("=")[0]) else each.partition(" ")[0]
            raise ConfigError(f"command line: {shown}: accepted: KEY=VALUE, such as model.epochs=1")
    arguments.overrides = dict(each.split("=", 1) for each in arguments.overrides)
    return arguments


def leave(code: int) -> NoReturn:
    """End this process now. Threads that ask a silent store again (runtime.workers = 0) would take a minute more."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}; accepted: [--config FILE] [--check [FILE]] [KEY=VALUE ...]")


if __name__ == "__main__":
    leave(run_as_init(main))
