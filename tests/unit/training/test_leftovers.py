"""What an earlier run has left is put aside, whatever it is."""

from pathlib import Path

from resumable import experiment
from robosat_pink.container.contract import Container
from robosat_pink.training.leftovers import put_aside


def test_links_to_themselves_are_put_aside_as_files_are(opt_ml: Path) -> None:
    (opt_ml / "model").mkdir(exist_ok=True)
    (opt_ml / "output/data").mkdir(parents=True, exist_ok=True)
    for name in ("best.pth", "earlier-1"):
        (opt_ml / "model" / name).symlink_to(name)
    put_aside(Container.here(), experiment(checkpoint={"path": str(opt_ml / "model/earlier-1")}))
    assert (opt_ml / "model/earlier-2/best.pth").is_symlink()
    assert not (opt_ml / "model/best.pth").is_symlink()
