"""The verb `predict`: from a trained model and image tiles to a map, in a folder or a bucket."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mercantile
import numpy as np
import pytest
import rasterio
import torch
import yaml

from conftest import S3Server, write_job
from robosat_pink import checkpoint
from robosat_pink.config import load_config, to_tree
from robosat_pink.models import build_model
from robosat_pink.predict import main
from robosat_pink.prediction import scenes
from robosat_pink.sample import FIRST_X, FIRST_Y, SCENE, ZOOM
from robosat_pink.trained import load_model

SIDE = 64
EXPERIMENT: dict[str, Any] = {
    "dataset": {"image_bucket": "channel:imagery", "mask_bucket": "channel:mask"},
    "classes": [{"name": "snow", "color": "white"}],
    "channels": [{"bands": [4, 1], "scale": 10000}],
    "model": {"name": "unet", "num_filters": 2, "batch_size": 3, "tile_size": SIDE},
    "predict": {"model": "channel:model", "buffer": 16},
    "runtime": {"precision": "fp32", "processes": 1},
}


def experiment(*changes: Mapping[str, Any]) -> dict[str, Any]:
    changed = dict(EXPERIMENT)
    for change in changes:
        for section, value in change.items():
            changed[section] = changed[section] | value if isinstance(value, dict) else value
    return changed


def write_model(job: Path, folder: Path, classes: int = 1, **metadata: Any) -> Path:
    """A checkpoint of the job's experiment, whose random network sees about half of the pixels above 0.5."""
    torch.manual_seed(0)
    network = build_model("unet", num_classes=classes, num_channels=2, num_filters=2)
    config = to_tree(load_config(job / "input/data/config/experiment.yml"))
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(
        folder / "best.pth",
        {"state_dict": network.state_dict(), "metadata": {"config": config, "zooms": [ZOOM]} | metadata},
    )
    path = load_model(folder / "best.pth")
    image = read(job / f"input/data/imagery/{SCENE}/{ZOOM}/{FIRST_X + 1}/{FIRST_Y + 1}.tif")[[3, 0]]
    logit = torch.logit(torch.tensor(float(np.median(path.probabilities(image)[0]))))
    network.final.bias.data[0] -= logit  # type: ignore[union-attr, operator]
    content = checkpoint.load(folder / "best.pth") | {"state_dict": network.state_dict()}
    checkpoint.save(folder / "best.pth", content)
    return folder


@pytest.fixture
def job(opt_ml: Path) -> Path:
    write_job(opt_ml, EXPERIMENT, tiles=4)
    shutil.rmtree(opt_ml / "input/data/mask")  # a map needs no masks
    write_model(opt_ml, opt_ml / "input/data/model")
    return opt_ml


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        pixels: np.ndarray = dataset.read()
        return pixels


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_map_is_what_the_model_says_of_the_whole_scene(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = job / "output/data"
    assert "open" in capsys.readouterr().out
    whole = np.concatenate(
        [
            np.concatenate(
                [read(job / f"input/data/imagery/{SCENE}/{ZOOM}/{FIRST_X + x}/{FIRST_Y + y}.tif") for x in range(4)], 2
            )
            for y in range(4)
        ],
        1,
    )[[3, 0]]
    missing = (whole == 0).all(axis=0)
    around = np.pad(whole, ((0, 0), (16, 16), (16, 16)), mode="reflect")
    model = load_model(job / "input/data/model/best.pth")
    for x in range(4):
        for y in range(4):
            cut = around[:, y * SIDE :, x * SIDE :][:, : SIDE + 32, : SIDE + 32]
            expected = model.probabilities(cut)[0, 16:-16, 16:-16]
            is_missing = missing[y * SIDE :, x * SIDE :][:SIDE, :SIDE]
            name = f"{SCENE}/{ZOOM}/{FIRST_X + x}/{FIRST_Y + y}.tif"
            probabilities, classes = read(out / f"probability/{name}")[0], read(out / f"predictions/{name}")[0]
            assert ((classes == 255) == is_missing).all()
            assert ((probabilities == 255) == is_missing).all()
            assert np.abs(probabilities / 200 - expected)[~is_missing].max(initial=0) < 0.0026
            is_clear = ~is_missing & (np.abs(expected - 0.5) > 1e-5)
            assert (classes == (expected > 0.5))[is_clear].all()
    with rasterio.open(out / f"predictions/{SCENE}.tif") as dataset:
        west, _, _, north = mercantile.xy_bounds(FIRST_X, FIRST_Y, ZOOM)
        _, south, east, _ = mercantile.xy_bounds(FIRST_X + 3, FIRST_Y + 3, ZOOM)
        assert tuple(dataset.bounds) == pytest.approx((west, south, east, north))
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        mosaic = dataset.read(1)
    assert set(np.unique(mosaic).tolist()) == {0, 1, 255}
    assert ((mosaic == 255) == missing).all()
    manifest = json.loads((out / f"predictions/{SCENE}.json").read_text())
    assert len(manifest["tiles"]) == 16
    assert {len(entry["images"]) for entry in manifest["tiles"]} == {4, 6, 9}
    page = (out / "map.html").read_text()
    assert "@media print" in page
    assert "Map of snow" in page
    assert "http" not in page.replace("http-equiv", "")


def test_what_is_there_and_agrees_is_kept_and_the_rest_is_as_if_it_had_never_been_away(job: Path) -> None:
    assert main([]) == 0
    out = job / "output/data"
    whole = files(out)
    tiles = sorted(path for path in (out / "predictions").rglob("*.tif") if path.parent.parent.name == str(ZOOM))
    times = {path: path.stat().st_mtime_ns for path in tiles}
    tiles[0].unlink()
    tiles[5].write_bytes(tiles[5].read_bytes()[:-100])
    (out / f"predictions/{SCENE}.json").unlink()
    assert main([]) == 0
    assert files(out) == whole
    kept = [path for path in tiles if path.stat().st_mtime_ns == times[path]]
    assert 16 - 2 * 3 <= len(kept) < 16, "only the batches of the two tiles are predicted again"


def test_a_changed_image_changes_its_tile_and_its_neighbours(job: Path) -> None:
    assert main([]) == 0
    out = job / "output/data"
    before = files(out)
    path = job / f"input/data/imagery/{SCENE}/{ZOOM}/{FIRST_X}/{FIRST_Y}.tif"
    with rasterio.open(path, "r+") as dataset:
        pixels = dataset.read()
        dataset.write(np.where(pixels, np.maximum(pixels // 2, 1), 0).astype(pixels.dtype))
    os.utime(path, (1, 1))
    assert main([]) == 0
    changed = {name for name, content in files(out).items() if before[name] != content and f"/{ZOOM}/" in name}
    near = {(x, y) for x in (0, 1) for y in (0, 1)}
    assert changed == {
        f"{folder}/{SCENE}/{ZOOM}/{FIRST_X + x}/{FIRST_Y + y}.tif"
        for folder in ("predictions", "probability")
        for x, y in near
    }


def test_from_a_bucket_to_a_bucket(job: Path, s3: S3Server) -> None:
    for bucket in ("imagery", "models", "maps"):
        s3.make_bucket(bucket)
    s3.upload(job / "input/data/imagery", "imagery")
    s3.upload(job / "input/data/model", "models", "run/")
    assert main([]) == 0
    there = ["predict.images=s3://imagery", "predict.model=s3://models/run", "predict.output=s3://maps/2018"]
    assert main(there) == 0
    keys = {entry["Key"] for entry in s3.client.list_objects_v2(Bucket="maps")["Contents"]}
    local = files(job / "output/data")
    assert keys == {f"2018/{name}" for name in local}
    for name, content in local.items():
        if f"/{ZOOM}/" in name:  # the tags differ, for they say what a tile was made from
            stored = s3.client.get_object(Bucket="maps", Key=f"2018/{name}")["Body"].read()
            with rasterio.MemoryFile(content) as one, rasterio.MemoryFile(stored) as other:
                assert (one.open().read() == other.open().read()).all()
    dates = {entry["Key"]: entry["ETag"] for entry in s3.client.list_objects_v2(Bucket="maps")["Contents"]}
    assert main(there) == 0
    assert {entry["Key"]: entry["ETag"] for entry in s3.client.list_objects_v2(Bucket="maps")["Contents"]} == dates


@pytest.mark.parametrize(
    ("tiles", "expected"), [("val", 2), ("holdout", None), ("FILE", 3), ("none", None), ("absent.txt", None)]
)
def test_tiles_are_chosen_by_id_files(
    job: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiles: str, expected: int | None
) -> None:
    ids = [f"channel:imagery_{SCENE}-{FIRST_X + x}-{FIRST_Y}-{ZOOM}" for x in range(3)]
    (job / "input/data/model/test_ids.txt").write_text("".join(f"{each}\n" for each in ids[:2]))
    (tmp_path / "ids.txt").write_text("".join(f"{each}\n" for each in ids))
    (tmp_path / "others.txt").write_text("imagery_elsewhere-1-2-3\n")
    names = {"FILE": f"{tmp_path}/ids.txt", "none": f"{tmp_path}/others.txt"}
    code = main([f"predict.tiles={names.get(tiles, tiles)}"])
    written = list((job / f"output/data/predictions/{SCENE}").rglob("*.tif"))
    assert code == (0 if expected else 3 if tiles != "absent.txt" else 2), capsys.readouterr().out
    assert len(written) == (expected or 0)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"predict": {"model": None}}, 2, "predict.model is missing"),
        ({"predict": {"model": "channel:absent"}}, 2, "there is no channel 'absent'"),
        (
            {"channels": [{"bands": [1, 2], "scale": 10000}]},
            2,
            "channels[].bands = [1, 2], but the model learnt from [4, 1]",
        ),
        (
            {"channels": [{"bands": [4, 1], "scale": 255}]},
            2,
            "band 4: channels[].scale = 255, but the model learnt with 10000",
        ),
        ({"classes": [{"name": "ice"}]}, 2, "classes = ['ice'], but the model knows ['snow']"),
        ({"model": {"num_filters": 4}}, 2, "model.num_filters = 4, but the model has 2"),
        ({"predict": {"threshold": "chosen"}}, 2, "predict.threshold = chosen: "),
        (
            {"classes": [{"name": "ice"}, {"name": "snow"}], "predict": {"threshold": 0.7}},
            2,
            "predict.threshold = 0.7: acts with a single class",
        ),
        ({"predict": {"images_regex": "nothing"}}, 3, "predict.images_regex = 'nothing' matches no directory"),
        ({"predict": {"buffer": 65}}, 3, "predict.buffer = 65"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_written(
    job: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], code: int, words: str
) -> None:
    (job / "input/data/config/experiment.yml").write_text(yaml.safe_dump(experiment(change)))
    assert main([]) == code
    assert words in capsys.readouterr().out
    assert words in (job / "output/failure").read_text()
    assert not [path for path in (job / "output/data").rglob("*") if path.is_file()]


def test_tiles_of_another_zoom_are_refused(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(job, job / "input/data/model", zooms=[14])
    assert main([]) == 3
    assert "learnt from tiles of zoom 14, but 16 of the 16 tiles are of another" in capsys.readouterr().out


def test_corrupt_tile_is_an_error_or_left_out(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{SCENE}/{ZOOM}/{FIRST_X + 1}/{FIRST_Y + 1}.tif"
    path = job / "input/data/imagery" / name
    path.write_bytes(path.read_bytes()[:200])
    assert main([]) == 3
    assert name in (job / "output/failure").read_text()
    assert main(["predict.if_damaged=skip"]) == 0
    said = capsys.readouterr().out
    assert "warning: skipped, because predict.if_damaged = skip: " in said
    assert len(list((job / f"output/data/predictions/{SCENE}").rglob("*.tif"))) == 15
    neighbour = read(job / f"output/data/predictions/{SCENE}/{ZOOM}/{FIRST_X + 2}/{FIRST_Y + 1}.tif")
    assert (neighbour != 255).mean() > 0.5
    with rasterio.open(job / f"output/data/predictions/{SCENE}.tif") as dataset:
        assert (dataset.read(1)[SIDE : 2 * SIDE, SIDE : 2 * SIDE] == 255).all()


def test_damaged_tile_is_left_out_where_an_earlier_map_has_it(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    path = job / f"input/data/imagery/{SCENE}/{ZOOM}/{FIRST_X + 1}/{FIRST_Y + 1}.tif"
    path.write_bytes(path.read_bytes()[:200])
    assert main(["predict.if_damaged=skip"]) == 0
    with rasterio.open(job / f"output/data/predictions/{SCENE}.tif") as dataset:
        assert (dataset.read(1)[SIDE : 2 * SIDE, SIDE : 2 * SIDE] == 255).all()
    assert len(json.loads((job / f"output/data/predictions/{SCENE}.json").read_text())["tiles"]) == 15
    assert f"2 files of {SCENE} are not of this map" in capsys.readouterr().out


def test_damaged_tile_is_tried_again_when_its_file_changes_and_not_before(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skip = ["predict.if_damaged=skip"]
    path = job / f"input/data/imagery/{SCENE}/{ZOOM}/{FIRST_X + 1}/{FIRST_Y + 1}.tif"
    content = path.read_bytes()
    path.write_bytes(content[:200])
    assert main(skip) == 0
    before = files(job / "output/data")
    assert list(json.loads(before[f"predictions/{SCENE}.json"])["damaged"]) == [
        f"{SCENE}/{ZOOM}/{FIRST_X + 1}/{FIRST_Y + 1}.tif"
    ]
    capsys.readouterr()
    assert main(skip) == 0
    said = capsys.readouterr().out
    assert "to be predicted: 0 of 6 batches" in said
    assert "damaged before and is the same: " in said
    assert f"{SCENE}/{ZOOM}/{FIRST_X + 1}/{FIRST_Y + 1}" in said
    assert files(job / "output/data") == before
    path.write_bytes(content)
    assert main(skip) == 0
    assert len(list((job / f"output/data/predictions/{SCENE}").rglob("*.tif"))) == 16
    assert json.loads((job / f"output/data/predictions/{SCENE}.json").read_text())["damaged"] == {}
    with rasterio.open(job / f"output/data/predictions/{SCENE}.tif") as dataset:
        assert (dataset.read(1)[SIDE : 2 * SIDE, SIDE : 2 * SIDE] != 255).any()


def test_scene_of_damaged_tiles_alone_has_a_manifest_that_says_so(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"clouds/{ZOOM}/{FIRST_X}/{FIRST_Y}.tif"
    (job / "input/data/imagery" / name).parent.mkdir(parents=True)
    (job / "input/data/imagery" / name).write_bytes(b"II*\0")
    for _ in range(2):
        assert main(["predict.if_damaged=skip"]) == 0
        assert list(json.loads((job / "output/data/predictions/clouds.json").read_text())["damaged"]) == [name]
    said = capsys.readouterr().out
    assert "to be predicted: 0 of 7 batches" in said
    assert "all tiles of clouds are damaged" not in said
    (job / "output/data/predictions/clouds.tif").touch()  # of an earlier map
    assert main(["predict.if_damaged=skip"]) == 0
    assert (
        "all tiles of clouds are damaged: its mosaic, if there is one, is of an earlier map" in capsys.readouterr().out
    )


def test_limit_of_time_holds_between_scenes_and_the_same_command_finishes_the_others(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = job / "input/data/imagery"
    shutil.copytree(images / SCENE, images / "another")
    assert main(["predict.mosaic=false"]) == 0
    out = job / "output/data"
    mosaics = [out / f"predictions/{scene}.tif" for scene in (SCENE, "another")]
    capsys.readouterr()
    assert main(["runtime.max_seconds=0.000001"]) == 0
    assert "stopped at runtime.max_seconds = 1e-06; the same command continues" in capsys.readouterr().out
    assert sum(mosaic.exists() for mosaic in mosaics) == 1
    assert not list(out.rglob("*.sagemaker-ignore"))
    assert main(["runtime.max_seconds=0.000001"]) == 0
    assert all(mosaic.exists() for mosaic in mosaics)


def test_mosaic_of_a_map_that_was_not_finished_is_not_taken_for_that_of_an_earlier_one(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([]) == 0
    out = job / "output/data"
    mosaics = {name: read(out / f"{name}/{SCENE}.tif") for name in ("predictions", "probability")}
    write_mosaic = scenes.write_mosaic

    def killed_at_the_second(path: Path, *arguments: Any, **settings: Any) -> None:
        if "probability" in path.name:
            raise KeyboardInterrupt
        write_mosaic(path, *arguments, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(scenes, "write_mosaic", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            main(["predict.threshold=0.9"])
    assert (read(out / f"predictions/{SCENE}.tif") != mosaics["predictions"]).any()
    assert main([]) == 0
    for name, pixels in mosaics.items():
        assert (read(out / f"{name}/{SCENE}.tif") == pixels).all()


def test_what_is_wanted_later_and_what_was_removed_is_made(job: Path) -> None:
    assert main(["predict.probability=false", "predict.mosaic=false"]) == 0
    out = job / "output/data"
    assert not list(out.rglob("probability*"))
    assert main([]) == 0
    for folder in ("predictions", "probability"):
        (out / f"{folder}/{SCENE}.tif").unlink()
        assert main([]) == 0
        assert (out / f"{folder}/{SCENE}.tif").is_file()


def test_batch_size_and_colors_are_the_experiment_s_own(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change = {"model": {"batch_size": 16}, "classes": [{"name": "snow", "color": "red"}]}
    (job / "input/data/config/experiment.yml").write_text(yaml.safe_dump(experiment(change)))
    assert main([]) == 0
    assert "to be predicted: 1 of 1 batch" in capsys.readouterr().out
    with rasterio.open(job / f"output/data/predictions/{SCENE}.tif") as dataset:
        assert dataset.colormap(1)[1] == (255, 0, 0, 255)


def test_tiles_that_lie_far_apart_make_no_mosaic_of_the_space_between(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far = job / f"input/data/imagery/{SCENE}/{ZOOM}/0"
    shutil.copytree(job / f"input/data/imagery/{SCENE}/{ZOOM}/{FIRST_X}", far)
    assert main([]) == 0
    assert "no mosaic and no picture: its 20 tiles lie in 5528 columns" in capsys.readouterr().out
    out = job / "output/data"
    assert not (out / f"predictions/{SCENE}.tif").exists()
    assert len(list((out / f"predictions/{SCENE}").rglob("*.tif"))) == 20
    assert (out / "map.html").exists()


@pytest.mark.parametrize(
    ("change", "code"),
    [("predict.threshold=chosen", 2), ("predict.buffer=65", 3), ("predict.output={job}/a file/maps", 5)],
)
def test_check_refuses_what_a_run_refuses(job: Path, change: str, code: int) -> None:
    (job / "a file").write_text("")
    change = change.format(job=job)
    assert main(["--check", str(job / "input/data/config/experiment.yml"), change]) == code
    assert main([change]) == code


def test_several_classes(job: Path) -> None:
    classes = [{"name": name} for name in ("rock", "snow", "water")]
    (job / "input/data/config/experiment.yml").write_text(yaml.safe_dump(experiment({"classes": classes})))
    write_model(job, job / "input/data/model", classes=3)
    assert main([]) == 0
    name = f"{SCENE}/{ZOOM}/{FIRST_X + 1}/{FIRST_Y + 1}.tif"
    probabilities = read(job / "output/data/probability" / name)
    found = read(job / "output/data/predictions" / name)[0]
    assert len(probabilities) == 3
    is_valid = found != 255
    assert np.abs(probabilities.astype(int).sum(axis=0) - 200)[is_valid].max() <= 2
    chosen = np.take_along_axis(probabilities, np.where(is_valid, found, 0)[None], axis=0)[0]
    assert (chosen == probabilities.max(axis=0))[is_valid].all()


def test_unwritable_output_is_said_at_once(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (job / "a file").write_text("")
    assert main([f"predict.output={job}/a file/maps"]) == 5
    assert "cannot be written" in capsys.readouterr().out


def test_check_predicts_nothing(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", str(job / "input/data/config/experiment.yml")]) == 0
    assert "16 of 16 tiles are wanted" in capsys.readouterr().out
    assert not [path for path in (job / "output").rglob("*") if path.is_file()]


def begin(*settings: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "robosat_pink.predict", *settings]
    return subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_map_that_is_killed_again_and_again_is_the_same_to_the_last_byte(opt_ml: Path) -> None:
    job = write_job(opt_ml, experiment({"model": {"batch_size": 16}}), tiles=20)
    write_model(job, job / "input/data/model")
    run = begin()
    assert run.wait(timeout=300) == 0, run.communicate()[0]
    out = job / "output/data"
    whole = files(out)
    assert len([name for name in whole if name.startswith("predictions") and f"/{ZOOM}/" in name]) == 400
    shutil.rmtree(out)
    random = np.random.default_rng(0)
    counts = [0]
    for _ in range(5):
        run = begin()
        deadline = time.monotonic() + 120
        while len(list(out.rglob("*.tif"))) <= counts[-1] + 40 and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.2))
        run.send_signal(signal.SIGKILL)
        run.wait()
        counts.append(len(list(out.rglob("*.tif"))))
    assert counts == sorted(set(counts)), "each attempt got further"
    assert counts[-1] < 800, "the last one was killed before the end"
    run = begin()
    assert run.wait(timeout=300) == 0
    assert files(out) == whole


@pytest.mark.slow
def test_two_processes_make_the_same_map(job: Path) -> None:
    for processes, folder in ((1, "one"), (2, "two")):
        run = begin(f"runtime.processes={processes}", f"predict.output={job}/{folder}")
        out, _ = run.communicate(timeout=300)
        assert run.returncode == 0, out
    one, two = files(job / "one"), files(job / "two")
    assert one.keys() == two.keys()
    for name in one:
        if f"/{ZOOM}/" in name:
            first, second = (read(job / folder / name).astype(int) for folder in ("one", "two"))
            differing = (first != second).mean() if name.startswith("predictions") else np.abs(first - second).max() > 1
            assert differing < 1e-4


@pytest.mark.slow
def test_two_hosts_share_the_tiles_of_a_bucket(job: Path, s3: S3Server) -> None:
    for bucket in ("imagery", "maps"):
        s3.make_bucket(bucket)
    s3.upload(job / "input/data/imagery", "imagery")
    there = ["predict.images=s3://imagery", "predict.output=s3://maps/2018"]
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    job_of_two = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    runs = [begin(*there, RANK=rank, LOCAL_RANK="0", **job_of_two) for rank in ("0", "1")]
    logs = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], logs
    names = {entry["Key"] for entry in s3.client.list_objects_v2(Bucket="maps")["Contents"]}
    assert main([]) == 0
    local = files(job / "output/data")
    assert names == {f"2018/{name}" for name in local}
    for name in local:
        if name.startswith("predictions") and f"/{ZOOM}/" in name:
            stored = s3.client.get_object(Bucket="maps", Key=f"2018/{name}")["Body"].read()
            with rasterio.MemoryFile(stored) as file:
                assert (file.open().read() != read(job / "output/data" / name)).mean() < 1e-4
    again = begin(*there)
    assert "to be predicted: 0 of 6 batches" in again.communicate(timeout=300)[0]


@pytest.mark.slow
def test_stop_ends_within_a_step_and_the_same_command_continues(job: Path) -> None:
    run = begin()
    assert run.stdout is not None
    for line in run.stdout:
        if "to be predicted: " in line:
            break
    run.send_signal(signal.SIGTERM)
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 0, out
    assert "the same command continues" in out
    again = begin()
    out, _ = again.communicate(timeout=120)
    assert again.returncode == 0, out
    assert len(list((job / f"output/data/predictions/{SCENE}").rglob("*.tif"))) == 16
