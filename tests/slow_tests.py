"""Which tests run: those marked `slow` or `docker` with --all, by a marker expression (-m), or by their own name."""

from typing import Any

import pytest

from robosat_pink.container import hardware

LEFT_OUT = pytest.StashKey[int]()  # how many tests
WORKER_BYTES = 5 * 2**30  # of memory that a process of tests may grow to


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also run the tests marked slow or docker")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Processes for `-n auto`: as many as cores and memory allow."""
    return max(1, min(hardware.cpu_count(), hardware.memory_bytes() // WORKER_BYTES))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.all or config.option.markexpr or any("::" in argument for argument in config.args):
        return
    slow = {item for item in items if item.get_closest_marker("slow") or item.get_closest_marker("docker")}
    if slow:
        config.hook.pytest_deselected(items=list(slow))
        items[:] = [item for item in items if item not in slow]
    config.stash[LEFT_OUT] = len(slow)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of xdist's, which has collected every test, tells how many it has left out."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left out", 0)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    left_out = config.stash.get(LEFT_OUT, 0)
    if left_out and not hasattr(config, "workeroutput"):
        print(f"left out: {left_out} slow tests; `bash start.sh test --all` runs them, too")
