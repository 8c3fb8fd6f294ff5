"""A network as a torch.export program, run without robosat_pink, and the command line that writes it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robosat_pink.models import MODELS
from robosat_pink.trained import main
from saved_networks import NETWORKS, saved

# Applies model.pt2 to each image of images.npz where robosat_pink cannot be imported.
WITHOUT_US = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "robosat_pink":
            raise ImportError(name)

sys.meta_path.insert(0, Refused())
import numpy, torch
files = {"metadata.json": ""}
module = torch.export.load("model.pt2", extra_files=files).module()
images = numpy.load("images.npz")
numpy.savez("probs.npz", **{name: module(torch.from_numpy(images[name])).numpy() for name in images})
assert "robosat_pink" not in sys.modules
print(files["metadata.json"])
"""


def images_of(multiple: int) -> dict[str, np.ndarray]:
    """Batches of other sizes than the example of the export, one of them the smallest, with NaN and inf."""
    random = np.random.default_rng(0)
    shapes = {"smallest": (1, 2, multiple, multiple), "batch": (3, 2, 3 * multiple, multiple)}
    images = {name: random.uniform(0, 10_000, shape).astype(np.float32) for name, shape in shapes.items()}
    images["batch"][0, 0, :2, 0] = np.nan, np.inf
    return images


def test_program_computes_probabilities_without_robosat_pink(tmp_path: Path) -> None:
    trained = saved(tmp_path, classes=3, scale="auto")
    images = images_of(16)
    np.savez(tmp_path / "images.npz", **images)  # type: ignore[arg-type]
    trained.export(tmp_path / "model.pt2", dtype="float32")
    command = [sys.executable, "-I", "-c", WITHOUT_US]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    metadata = json.loads(run.stdout)
    assert metadata["bands"] == [1, 2]
    assert metadata["classes"] == ["class 0", "class 1", "class 2"]
    assert (metadata["size_multiple"], metadata["symmetries"], metadata["threshold"]) == (16, False, None)
    assert (metadata["scale"], metadata["mean"], metadata["std"]) == ([1, 1], [0.1, 0.2], [0.3, 0.4])
    probs = np.load(tmp_path / "probs.npz")
    for name, image in images.items():
        np.testing.assert_allclose(probs[name], trained.probabilities(image), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("network", [NETWORKS[0] | {"symmetries": True}, *NETWORKS[1:]], ids=lambda each: each["name"])
def test_program_of_every_network_and_of_symmetries_computes_probabilities(
    network: dict[str, Any], tmp_path: Path
) -> None:
    trained = saved(tmp_path, **network, threshold={"value": 0.25})
    trained.export(tmp_path / "model.pt2")
    files = {"metadata.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=files)
    assert [node for node in program.graph.nodes if "device" in node.kwargs] == []  # it may run on any
    assert json.loads(files["metadata.json"])["threshold"] == 0.25
    for image in images_of(MODELS[network["name"]].size_multiple).values():
        found = program.module()(torch.from_numpy(image)).numpy()
        np.testing.assert_allclose(found, trained.probabilities(image), atol=1e-5)


@pytest.mark.parametrize(
    ("scale", "arguments", "code", "words"),
    [
        (1.0, ["gone.pth", "--to", "model.pt2"], 3, "gone.pth"),
        (
            1.0,
            ["best.pth", "--to", "gone/model.pt2"],
            5,
            "cannot be written: No such file or directory",
        ),
        ("auto", ["best.pth", "--to", "model.pt2"], 2, "--dtype is missing: .* accepted: uint8, uint16, int16"),
        ("auto", ["best.pth", "--to", "model.pt2", "--dtype", "int8"], 2, "--dtype = int8: .* accepted: uint8, uint16"),
        (1.0, ["best.pth", "--to", "model.pt2", "--dtype", "uint8"], 2, "--dtype = uint8: .* leave it out"),
    ],
)
def test_export_that_cannot_be_is_refused_and_leaves_the_existing_file(
    scale: float | str,
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, scale=scale)
    Path("model.pt2").write_bytes(b"old")
    assert main(["export", *arguments]) == code
    assert re.search(words, caplog.text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pth", "model.pt2"]
    assert Path("model.pt2").read_bytes() == b"old"


def test_command_line_replaces_an_existing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("robosat_pink.export._program", lambda config, network, scale: scale)
    monkeypatch.setattr("torch.export.save", lambda scale, file, extra_files: file.write(repr(scale).encode()))
    saved(tmp_path, scale="auto")
    (tmp_path / "model.pt2").write_bytes(b"old")
    arguments = [str(tmp_path / "best.pth"), "--to", str(tmp_path / "model.pt2"), "--dtype", "uint16"]
    with caplog.at_level("INFO"):
        assert main(["export", *arguments]) == 0
    assert (tmp_path / "model.pt2").read_bytes() == b"tensor([[10000., 10000.]])"
    assert f"wrote {tmp_path}/model.pt2" in caplog.text


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("CHECKPOINT", "--to FILE", "--dtype", "torch.export.load"))
