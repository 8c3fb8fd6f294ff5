"""Restores a run's state from a resume point, or weights from another checkpoint. Called by `run` and `check`."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import nn

from robosat_pink import checkpoint
from robosat_pink.config import Config
from robosat_pink.container.quantities import count
from robosat_pink.datasets import TilePairs
from robosat_pink.datasets.split import Split
from robosat_pink.errors import CheckpointError, RobosatError
from robosat_pink.training import tile_ids
from robosat_pink.training.experiment_diff import check_same_experiment
from robosat_pink.training.initial_checkpoint import InitialCheckpoint
from robosat_pink.training.resume_point import check_average, check_moments, check_point
from robosat_pink.training.state import State

log = logging.getLogger(__name__)

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # entries of state dicts that are not parameters


def restore(state: State, initial: InitialCheckpoint, config: Config, tiles: TilePairs, split: Split) -> None:
    """Load `initial` into `state`. Raises CheckpointError if it is damaged, or of another network or experiment."""
    if not initial.is_resumed:
        loaded = checkpoint.load_weights(state.model, initial.content, name=initial.name)
        state.restore_average({})
        log.info("starting from %s: %s, epoch %s", initial.name, count(loaded.tensors, "tensor"), loaded.epoch)
        return
    state.is_resumed = True
    try:
        _resume(state, initial, config, tiles, split)
    except RobosatError:
        raise
    except Exception as error:  # a damaged or foreign checkpoint may cause any error
        raise CheckpointError(f"{initial.name}: damaged, or of another program: {error}") from error
    left = "" if state.epoch < config.model.epochs else "; nothing is left to train: for more, raise model.epochs"
    done = f"{count(state.epoch, 'epoch')} and {count(state.step, 'step')}"
    log.info("continuing from %s: %s are done%s", initial.name, done, left)


def _resume(state: State, initial: InitialCheckpoint, config: Config, tiles: TilePairs, split: Split) -> None:
    name, content = initial.name, initial.content
    check_same_experiment(name, checkpoint.metadata_of(content), config)
    epoch, epochs = content.get("epoch"), config.model.epochs
    step = content.get("step", 0)
    if not isinstance(epoch, int) or not isinstance(step, int) or epoch < 0:
        raise CheckpointError(f"{name}: does not say after how many epochs it was written, or is damaged")
    if epoch + (step > 0 or not initial.is_resume_point) > epochs:
        done = count(epoch, "epoch") + (f" and {count(step, 'step')}" if step else "")
        raise CheckpointError(
            f"{name} was written after {done}, but model.epochs = {epochs}; raise model.epochs, or give this run an "
            "empty checkpoints folder and no checkpoint.resume"
        )
    check_average(content, state.model, name)
    if initial.is_resume_point:
        check_point(content, state.model, name)
        checkpoint.check_weights(content["state_dict"], state.model.state_dict(), name)
        state.restore(content)
        _restart_epoch_if_batches_differ(state, initial, config, tiles, split)
    else:
        weights = content.get("trained_state_dict")
        checkpoint.load_weights(state.model, weights or content, name=name)
        state.restore_average(content)
        restore_optimizer(state.optimizer, state.model, initial)
        state.epoch = epoch
        log.warning("warning: %s holds weights, optimizer and epoch; its history is not known", name)


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, initial: InitialCheckpoint) -> None:
    """Restore Adam's moments by parameter name, because robosat.pink's checkpoints have parameters our models lack."""
    saved = initial.content.get("optimizer")
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"{initial.name}: holds no optimizer; checkpoint.path starts from weights alone")
    names = [name for name in checkpoint.weights_of(initial.content, initial.name) if not name.endswith(STATISTICS)]
    moments_by_name = {names[number]: moments for number, moments in saved["state"].items() if number < len(names)}
    state = {}
    for number, (name, parameter) in enumerate(model.named_parameters()):
        moments = moments_by_name.get(name)
        if moments is None or moments["exp_avg"].shape != parameter.shape:
            shape = tuple(parameter.shape)
            raise CheckpointError(f"{initial.name}: its optimizer has no moments for {name} of {shape}")
        state[number] = {
            "step": torch.tensor(float(moments["step"])),
            "exp_avg": moments["exp_avg"],
            "exp_avg_sq": moments["exp_avg_sq"],
        }
    check_moments(state, list(model.parameters()), initial.name)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _restart_epoch_if_batches_differ(
    state: State, initial: InitialCheckpoint, config: Config, tiles: TilePairs, split: Split
) -> None:
    """Restart the unfinished epoch if its tiles, or their permutation, have changed since the resume point."""
    metadata = checkpoint.metadata_of(initial.content)
    # The digest of a folder covers modification times, which differ in every copy of the folder.
    is_changed = tiles.image_location.bucket is not None and metadata["data_digest"] != tiles.digest()
    saved, current = tile_ids.decompress(initial.content["ids"]), tile_ids.tile_ids(tiles, split)
    saved_ids, current_ids = ({id_ for ids in split_ids.values() for id_ in ids} for split_ids in (saved, current))
    if is_changed or saved_ids != current_ids:
        log.warning(
            "warning: the tiles have changed since %s was written (%d are new, %d are gone); continuing with today's",
            initial.name,
            len(current_ids - saved_ids),
            len(saved_ids - current_ids),
        )
    experiment = metadata["config"]
    tiles_per_epoch = experiment.get("sampling", {}).get("tiles_per_epoch")
    permutation = (experiment["model"]["batch_size"], experiment["runtime"]["seed"], tiles_per_epoch)
    current_permutation = (config.model.batch_size, config.runtime.seed, config.sampling.tiles_per_epoch)
    if is_changed or saved != current or permutation != current_permutation:
        if state.step or state.train_metrics:
            log.warning("warning: epoch %d restarts", state.epoch + 1)
        state.restart_epoch()
