"""What a control group leaves of a machine, and what is said of a GPU or a disk that will not do."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from robosat_pink.container import hardware
from robosat_pink.container.contract import Container
from robosat_pink.errors import ContractError


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 8 cores, on which no group sets a limit."""
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    return tmp_path


@pytest.mark.parametrize(
    ("limit", "cores"), [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("", 8)]
)
def test_cores_are_those_that_the_group_allows(cgroup: Path, limit: str, cores: int) -> None:
    (cgroup / "cpu.max").write_text(limit)
    assert hardware.cpu_count() == cores


@pytest.mark.parametrize(("quota", "cores"), [("300000", 3), ("-1", 8)])
def test_groups_of_the_first_version_count_too(cgroup: Path, quota: str, cores: int) -> None:
    (cgroup / "cpu").mkdir()
    (cgroup / "cpu/cpu.cfs_quota_us").write_text(quota)
    (cgroup / "cpu/cpu.cfs_period_us").write_text("100000")
    assert hardware.cpu_count() == cores


def test_without_groups_cores_are_those_of_the_process(cgroup: Path) -> None:
    assert hardware.cpu_count() == 8


@pytest.mark.parametrize(
    ("limit", "processes", "neighbours", "threads"),
    [
        ("max 100000", 1, 1, 8),
        ("max 100000", 2, 2, 4),  # on one host
        ("max 100000", 1, 2, 4),  # in two containers, each of which sees the whole machine
        ("200000 100000", 1, 2, 2),  # in two that may use two cores each
        ("max 100000", 2, 6, 1),
        ("max 100000", 1, 20, 1),
    ],
)
def test_threads_of_all_processes_on_a_machine_are_no_more_than_its_cores(
    cgroup: Path, monkeypatch: pytest.MonkeyPatch, limit: str, processes: int, neighbours: int, threads: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    (cgroup / "cpu.max").write_text(limit)
    assert hardware.thread_count(processes, neighbours) == threads


@pytest.mark.parametrize(("limit", "expected"), [("1048576\n", 1048576), ("max\n", None)])
def test_memory_is_what_the_group_allows(cgroup: Path, limit: str, expected: int | None) -> None:
    (cgroup / "memory.max").write_text(limit)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert hardware.memory_bytes() == (expected or whole)


@pytest.fixture
def host_with_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host whose old driver every container sees; the folder is /dev."""
    monkeypatch.setattr(hardware, "NVIDIA_DRIVER", tmp_path / "version")
    monkeypatch.setattr(hardware, "DEVICES", tmp_path)
    hardware.check_gpu(is_usable=False)
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.182.03\n")
    return tmp_path


def test_gpu_that_torch_cannot_use_is_an_error_with_the_driver_s_version(host_with_a_gpu: Path) -> None:
    (host_with_a_gpu / "nvidia0").touch()
    with pytest.raises(ContractError, match=r"cannot use it: NVRM .* 470\.182\.03\. .*or set runtime\.device=cpu"):
        hardware.check_gpu(is_usable=False)
    hardware.check_gpu(is_usable=True)


def test_gpu_that_the_container_was_not_given_is_a_warning(
    host_with_a_gpu: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hardware.check_gpu(is_usable=False)
    assert "which this container was not given: docker run --gpus all" in caplog.text


def test_disk_without_room_is_an_error_with_the_numbers_and_old_checkpoints_count_as_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2 << 30))
    with pytest.raises(ContractError, match=f"{tmp_path} has room for 2.1 GB; two files need 3.2 GB; make room"):
        hardware.check_disk(tmp_path, 3 << 30, "two files")
    with (tmp_path / "old.pth").open("wb") as file:
        file.truncate(1 << 30)
    hardware.check_disk(tmp_path, 3 << 30, "two files")


def test_report_names_versions_cores_memory_disk_channels_and_hosts(opt_ml: Path) -> None:
    text = "\n".join(hardware.report(Container.here()))
    for word in ("robosat_pink ", "Python 3.", "torch 2.", " CPU core", "GB memory", "shared memory", "GB free in"):
        assert word in text
    assert f"channels: config {opt_ml}/input/data/config; host localhost of localhost; checkpoints: None" in text
    assert "\r" not in text
    assert "\x1b" not in text


@pytest.mark.slow
@pytest.mark.parametrize(("chosen", "left"), [(hardware.TUNABLES, None), ("glibc.malloc.hugetlb=1",) * 2])
def test_what_start_sh_asks_of_the_c_library_later_processes_do_not(chosen: str, left: str | None) -> None:
    script = """
import multiprocessing, os
import torch
from robosat_pink.container import device

device.prepare(torch.device("cpu"))
with multiprocessing.get_context("forkserver").Pool(1) as pool:
    print(pool.apply(os.getenv, ["GLIBC_TUNABLES"]))
"""
    command = [sys.executable, "-c", script]
    environment = os.environ | {"GLIBC_TUNABLES": chosen}
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert run.stdout.strip() == str(left)


def test_links_to_nowhere_or_to_themselves_count_as_no_room(tmp_path: Path) -> None:
    (tmp_path / "loop.pth").symlink_to("loop.pth")
    (tmp_path / "gone.pth").symlink_to("nowhere")
    hardware.check_disk(tmp_path, 1, "a byte")


@pytest.mark.parametrize(
    ("busy", "environment", "policy"),
    [
        (0.0, {}, None),
        (0.4, {}, None),
        (1.0, {}, "PASSIVE"),
        (1.0, {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        (1.0, {"GOMP_SPINCOUNT": "9"}, None),
        (1.0, {"OMP_NUM_THREADS": "1"}, None),
    ],
)
def test_threads_wait_passively_beside_other_programs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, busy: float, environment: dict[str, str], policy: str | None
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(hardware, "cpu_count", lambda: 2)
    worked = iter([100.0, 100.0 + busy * hardware.LOOK_S])
    monkeypatch.setattr(hardware, "_busy_seconds", lambda: next(worked))
    monkeypatch.setattr(hardware, "NVIDIA_DRIVER", tmp_path / "none")
    hardware.share_cores()
    assert os.environ.get("OMP_WAIT_POLICY") == policy
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)


def test_time_that_all_cores_have_worked_grows() -> None:
    before, worked_s = hardware._busy_seconds(), time.process_time()
    if not before:
        pytest.skip("this system does not say how long its cores have worked")
    while time.process_time() < worked_s + 0.2:
        pass
    assert hardware._busy_seconds() > before


def test_core_that_is_idle_somewhere_else_is_not_missed(monkeypatch: pytest.MonkeyPatch, cgroup: Path) -> None:
    (cgroup / "cpu.max").write_text("100000 100000")  # one core of all
    worked = iter([0.0, hardware.LOOK_S])
    monkeypatch.setattr(hardware, "_busy_seconds", lambda: next(worked))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(hardware, "NVIDIA_DRIVER", cgroup / "none")
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    hardware.share_cores()
    assert "OMP_WAIT_POLICY" not in os.environ
