"""Which device a run takes, and in which types it computes there."""

import re
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch

from robosat_pink.container import device
from robosat_pink.errors import ContractError


@pytest.mark.parametrize(
    ("native_bf16", "capability", "dtype"),
    [
        (True, (9, 0), torch.bfloat16),  # H100
        (False, (7, 5), torch.float16),  # T4
        (False, (7, 0), torch.float16),  # V100
        (False, (6, 1), None),
    ],
)
def test_gpu_computes_in_what_it_is_fast_in(
    monkeypatch: pytest.MonkeyPatch, native_bf16: bool, capability: tuple[int, int], dtype: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native_bf16 or including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert device.choose_precision("auto", torch.device("cuda")) == dtype


@pytest.mark.parametrize("native", [True, False])
def test_cpu_computes_in_bf16_where_it_has_instructions_for_it(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert device.choose_precision("auto", torch.device("cpu")) == (torch.bfloat16 if native else None)
    assert device.choose_precision("fp16", torch.device("cpu")) == torch.float16
    assert device.choose_precision("fp32", torch.device("cpu")) is None


def test_layout_is_channels_last_but_for_float32_on_a_cpu() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert device.choose_layout(cpu, None) == torch.contiguous_format
    assert {device.choose_layout(*each) for each in ((cpu, torch.bfloat16), (gpu, None))} == {torch.channels_last}


@pytest.mark.parametrize(("kind", "compiler"), [("cpu", "g++"), ("cuda", "gcc")])
def test_compiling_without_what_it_needs_is_refused_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, compiler: str
) -> None:
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(
        ContractError, match=rf"runtime\.compile = true: a compiler \(.*{re.escape(compiler)}.* missing"
    ):
        device.check_compiler(torch.device(kind))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == compiler else None)
    with pytest.raises(ContractError, match=r"runtime\.compile = true: Python\.h, .* libpython3-dev"):
        device.check_compiler(torch.device(kind))
    (tmp_path / "Python.h").touch()
    device.check_compiler(torch.device(kind))
    for name in ("CC", "CXX"):
        monkeypatch.setenv(name, "/opt/gone")
    with pytest.raises(ContractError, match=r"a compiler \(/opt/gone\) is missing"):
        device.check_compiler(torch.device(kind))
