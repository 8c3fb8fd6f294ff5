"""Results of an earlier run are moved away, whatever they are."""

from pathlib import Path

from resumable import experiment
from robosat_pink.container.contract import Container
from robosat_pink.training.earlier_results import move_away


def test_events_of_an_earlier_run_become_a_run_of_their_own_beside_the_new_one(opt_ml: Path) -> None:
    (opt_ml / "output/tensorboard").mkdir()
    for name in ("events.out.tfevents.1.host.2.0", "mine.txt"):
        (opt_ml / "output/tensorboard" / name).touch()
    move_away(Container.here(), experiment())
    left = sorted(path.relative_to(opt_ml / "output") for path in (opt_ml / "output/tensorboard").rglob("*.*"))
    assert list(map(str, left)) == ["tensorboard/earlier-1/events.out.tfevents.1.host.2.0", "tensorboard/mine.txt"]


def test_links_to_themselves_are_moved_away_as_files_are(opt_ml: Path) -> None:
    (opt_ml / "model").mkdir(exist_ok=True)
    (opt_ml / "output/data").mkdir(parents=True, exist_ok=True)
    for name in ("best.pth", "earlier-1"):
        (opt_ml / "model" / name).symlink_to(name)
    move_away(Container.here(), experiment(checkpoint={"path": str(opt_ml / "model/earlier-1")}))
    assert (opt_ml / "model/earlier-2/best.pth").is_symlink()
    assert not (opt_ml / "model/best.pth").is_symlink()
