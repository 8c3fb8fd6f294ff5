"""What every test may use: the folder of real tiles, tiles written by code, and an S3 server on loopback."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import rasterio
import torch
import yaml
from rasterio.transform import from_origin

from robosat_pink.sample import write_tiles
from robosat_pink.storage import Location, Page, StoredFile

pytest_plugins = ["slow_tests"]

SHARED = Path(__file__).parents[2] / "shared"
DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny networks run no faster on several threads, and much slower beside another process on the same cores."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tiles from buckets are kept by default: each test starts without any."""
    monkeypatch.setattr("robosat_pink.datasets.cache.DEFAULT_FOLDER", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real tiles and reference facts, which only some machines have. The gate makes their absence a failure."""
    if not (SHARED / "data").is_dir():
        if os.environ.get("ROBOSAT_PINK_REQUIRE_SHARED"):
            pytest.fail(f"{SHARED} is required here and missing")
        pytest.skip("the folder of real tiles, ../shared, is not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def browser() -> str:
    """Where Chromium is, which only some machines have. The gate makes its absence a failure."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        if os.environ.get("ROBOSAT_PINK_REQUIRE_BROWSER"):
            pytest.fail("Chromium is required here and missing; on Debian: apt-get install chromium")
        pytest.skip("Chromium is not on this machine")
    return program


def pattern(bands: int, height: int, width: int) -> np.ndarray:
    """Image (C, H, W) in which every pixel says where it is: 10000 * band + 64 * row + column (for tiles to 64 px)."""
    band, row, column = np.ogrid[1 : bands + 1, :height, :width]
    return (10000 * band + 64 * row + column).astype(np.uint16)


def write_tile(path: Path, pixels: np.ndarray, **profile: object) -> Path:
    """Write pixels (C, H, W) or (H, W) as a GeoTIFF, with a georeference so that rasterio is content."""
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"driver": "GTiff", "crs": "EPSG:3857", "transform": from_origin(0, 64, 1, 1)} | profile
    with rasterio.open(
        path, "w", count=pixels.shape[0], height=pixels.shape[1], width=pixels.shape[2], dtype=pixels.dtype, **options
    ) as file:
        file.write(pixels)
    return path


def files_in(location: Location, directory: str) -> list[StoredFile]:
    """Every file below a directory, by paths relative to it."""

    def files(page: Page) -> list[StoredFile]:
        rows = zip(page.paths, page.sizes, page.etags, page.modified, strict=True)
        return [StoredFile(path.removeprefix(page.prefix), *row) for path, *row in rows]

    return [file for page in location.pages(directory, files) for file in page]


class S3Server:
    """moto's S3 on loopback."""

    def __init__(self, endpoint_url: str) -> None:
        import boto3

        self.endpoint_url = endpoint_url
        self.client = boto3.client("s3", endpoint_url=endpoint_url, region_name="us-east-1")

    def make_bucket(self, bucket: str) -> None:
        self.client.create_bucket(Bucket=bucket)

    def upload(self, folder: Path, bucket: str, prefix: str = "") -> None:
        """Every file below the folder, under its relative path."""
        for path in sorted(each for each in folder.rglob("*") if each.is_file()):
            self.client.put_object(Bucket=bucket, Key=f"{prefix}{path.relative_to(folder)}", Body=path.read_bytes())


@pytest.fixture(scope="session")
def s3_process() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(100):
            try:
                urlopen(f"{url}/moto-api/", timeout=1)
                break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def s3(s3_process: str, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """An empty S3 server, with credentials and endpoint in the environment as a user would set them."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_process)
    urlopen(f"{s3_process}/moto-api/reset", data=b"").read()
    return S3Server(s3_process)


@pytest.fixture
def opt_ml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /opt/ml tree that this process and its children take for the real one."""
    base = tmp_path / "opt_ml"
    for folder in ("input/config", "input/data/config", "model", "output/data"):
        (base / folder).mkdir(parents=True)
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(base))
    return base


# The smallest job that trains: the network, and where its tiles are.
SMALL_DATASET = {"image_bucket": "channel:imagery", "mask_bucket": "channel:mask", "train_percent": 0.6}
SMALL_MODEL = {
    "name": "albunet",
    "encoder": "resnet18",
    "num_filters": 4,
    "tile_size": 64,
    "lr": 0.001,
    "schedule": "cosine",
}


def write_job(opt_ml: Path, experiment: dict[str, Any], tiles: int) -> Path:
    """The experiment, tiles x tiles small written tiles in channels, and a folder for resume points."""
    write_tiles(opt_ml / "input/data", tiles=tiles, size=64)
    (opt_ml / "input/data/config/experiment.yml").write_text(yaml.safe_dump(experiment))
    (opt_ml / "checkpoints").mkdir()
    return opt_ml


@pytest.fixture
def run_train(opt_ml: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the container's command in a process of its own: arguments in, exit code and output out."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "robosat_pink.train", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)

    return run
