"""Outside clients of the image, each in an environment of its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

# These keys open nothing. Version 2 reads from the variable that it is not to report its use, version 3 from a file.
ENVIRONMENT = {
    "AWS_DEFAULT_REGION": "us-west-2",
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "SAGEMAKER_TELEMETRY_OPT_OUT": "true",
}
NO_TELEMETRY = 'SchemaVersion: "1.0"\nSageMaker: {PythonSDK: {Modules: {TelemetryOptOut: true}}}\n'


def python_with(folder: Path, *installs: Sequence[str]) -> Path:
    """A Python with packages: the arguments of each `pip install`. Skips without an index, or fails where required."""
    required = bool(os.environ.get("ROBOSAT_PINK_REQUIRE_DOCKER"))
    if not shutil.which("docker-compose"):
        assert not required, "docker-compose is required here and is not installed"
        pytest.skip("the SDK's local mode needs docker-compose")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    for arguments in installs:
        command = [folder / "bin/pip", "install", "--quiet", "--no-compile", *arguments]
        if subprocess.run(command, check=False).returncode:
            assert not required, "the SDK is required here and cannot be installed"
            pytest.skip("the SDK cannot be installed here")
    (folder / "config.yaml").write_text(NO_TELEMETRY)
    return folder / "bin/python"


def run_client(python: Path, *arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program in such an environment, and in a folder."""
    settings = ENVIRONMENT | {"SAGEMAKER_USER_CONFIG_OVERRIDE": str(python.parents[1] / "config.yaml")}
    return subprocess.run(
        [python, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | settings,
        timeout=900,
    )
