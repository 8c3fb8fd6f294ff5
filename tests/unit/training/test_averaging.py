"""The average of the weights is evaluated, kept and resumed in their place."""

import copy

import pytest
import torch

from resumable import SPLIT, Network, Tiles, experiment, learn, made, point_with
from robosat_pink.errors import CheckpointError
from robosat_pink.training import resume
from robosat_pink.training.averaging import FIRST_STEPS, AveragedModel
from robosat_pink.training.initial_checkpoint import InitialCheckpoint
from robosat_pink.training.state import State

EMA = {"model": {"ema": 0.9}}


def averaged() -> State:
    torch.manual_seed(0)
    state = made(Network())
    state.average = AveragedModel(state.model, 0.9)
    return state


def trained(steps: int, state: State | None = None) -> State:
    state = state or averaged()
    for _ in range(steps):
        learn(state, 1)
        assert state.average
        state.average.update(state.model)
    return state


def test_average_is_the_exponential_one_of_weights_and_statistics_whose_first_steps_count_for_less() -> None:
    state = averaged()
    assert state.average
    expected = copy.deepcopy(state.model.state_dict())
    for step in range(1, 150):
        trained(1, state)
        decay = min(0.9, step / (step + FIRST_STEPS))
        for name, value in state.model.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
            else:
                expected[name] = value.clone()
    for name, value in state.average.model.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_average_is_what_is_evaluated_and_kept_as_the_best() -> None:
    state = trained(3)
    assert state.average
    assert state.evaluated_model is state.average.model
    assert not state.evaluated_model.training
    state.finish_epoch({"iou": 0.1}, {"iou": 0.2})
    assert all(torch.equal(value, state.best_weights[name]) for name, value in state.average.model.state_dict().items())
    assert not torch.equal(state.best_weights["final.weight"], state.model.state_dict()["final.weight"])


@pytest.mark.parametrize("is_resume_point", [True, False])
def test_resumed_average_goes_on_to_the_last_bit(is_resume_point: bool) -> None:
    whole, part = trained(5), trained(3)
    start = point_with(part.to_content(), experiment(**EMA), is_resume_point)
    resumed = averaged()
    resume.restore(resumed, start, experiment(**EMA), Tiles(), SPLIT)  # type: ignore[arg-type]
    trained(2, resumed)
    for ours, expected in ((resumed.model, whole.model), (resumed.evaluated_model, whole.evaluated_model)):
        ours_weights, weights = ours.state_dict(), expected.state_dict()
        assert all(torch.equal(ours_weights[name], weights[name]) for name in weights)


def test_average_starts_anew_from_weights_without_one() -> None:
    plain = made(Network())
    learn(plain, 3)
    state = averaged()
    start = InitialCheckpoint("a.pth", {"state_dict": plain.model.state_dict()}, is_resumed=False)
    resume.restore(state, start, experiment(**EMA), Tiles(), SPLIT)  # type: ignore[arg-type]
    assert state.average
    assert state.average.updates == 0
    assert torch.equal(state.evaluated_model.state_dict()["final.weight"], plain.model.state_dict()["final.weight"])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"updates": -1}, "its updates"),
        ({"updates": None}, "its updates"),
        ({"trained_state_dict": []}, "its trained_state_dict"),
        ({"trained_state_dict": {"a": torch.zeros(1)}}, "not weights of this network"),
    ],
)
def test_average_that_cannot_be_of_this_network_is_refused(damage: dict[str, object], reason: str) -> None:
    start = point_with(trained(3).to_content() | damage, experiment(**EMA))
    with pytest.raises(CheckpointError, match=rf"^resume-00001.*{reason}"):
        resume.restore(averaged(), start, experiment(**EMA), Tiles(), SPLIT)  # type: ignore[arg-type]
