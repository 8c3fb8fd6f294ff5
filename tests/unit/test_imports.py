"""Imports point one way between rooms, each library has its place, and what is told within a second loads no torch."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import robosat_pink

FOLDER = Path(robosat_pink.__path__[0])

# What each room, or module on top, may import of ours besides itself and `errors`, which every one may.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": {"container"},
    "container": set(),
    "losses": set(),
    "models": set(),
    "config": {"container", "losses", "models"},
    "storage": {"config", "container"},
    "distributed": {"config", "container"},
    "checkpoint": {"container", "models", "storage"},
    "datasets": {"config", "container", "distributed", "losses", "storage"},
    "training": {"checkpoint", "config", "container", "datasets", "distributed", "losses", "models"},
    "report": {"config", "container", "datasets", "distributed", "losses", "training"},
    "prediction": {
        *("checkpoint", "config", "container", "datasets", "distributed", "losses", "models", "report", "storage"),
        "training",
    },
    "drafting": {"config", "container", "datasets", "models", "storage"},
    "survey": {"config", "container", "datasets", "losses"},
    "check": {
        "config",
        "container",
        "datasets",
        "distributed",
        "losses",
        "models",
        "report",
        "survey",
        "training",
    },
    "command": {"config", "container", "distributed"},
    "train": {"check", "command", "config", "container", "distributed", "report", "training"},
    "predict": {"command", "config", "container", "distributed", "prediction"},
    "evaluate": {"command", "config", "container", "distributed", "prediction"},
    "init": {"check", "command", "config", "container", "drafting"},
    "trained": {"checkpoint", "config", "datasets", "export", "models"},
    "export": {"config", "container", "datasets", "models"},
    "sagemaker": {"config", "training"},
    "reference": {"config", "models", "sagemaker"},
    "sample": {"datasets"},
}

# Libraries that only these modules, or rooms, may import.
BELONGS_TO = {
    "obstore": {"storage"},
    "boto3": {"storage.credentials", "storage.refused_keys"},
    "botocore": {"storage.credentials", "storage.refused_keys"},
    "rasterio": {"datasets.rasters", "prediction.mosaic", "prediction.rasters", "sample"},
    "matplotlib": {"report.plots"},
    "jinja2": {"report"},
    "markupsafe": {"report.templating"},
    "tifffile": {"datasets.rasters.geotiff"},
    "imagecodecs": {"datasets.rasters.geotiff"},
    "yaml": {"config.formats", "training.outputs"},
    "tomllib": {"config.formats"},
    "argparse": {"command", "init", "trained", "sample", "sagemaker", "reference"},
}

WITHOUT_TORCH = (
    "",
    ".errors",
    ".config",
    ".container.contract",
    ".storage",
    ".datasets",
    ".datasets.neighbours",
    ".datasets.rasters.decode",
    ".datasets.split",
    ".datasets.worker",
    ".sample",
    ".train",
    ".predict",
    ".evaluate",
    ".init",
)


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Every module by its name below the package; a folder by its own."""
    names = {path: ".".join(path.relative_to(FOLDER).with_suffix("").parts) for path in sorted(FOLDER.rglob("*.py"))}
    return {name.removesuffix(".__init__"): ast.parse(path.read_text()) for path, name in names.items()}


def imports(tree: ast.Module) -> set[str]:
    """The dotted names that are imported anywhere in a module: on top, in a function, for the type checker."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: a relative import, write robosat_pink.…"
            found |= {f"{node.module}.{each.name}" for each in node.names}
    return found


def ours(imported: set[str], names: set[str]) -> set[str]:
    """The modules of ours among imported dotted names, which may go on to what is in a module."""
    found = set()
    for dotted in imported:
        package, _, rest = dotted.partition(".")
        while package == "robosat_pink" and rest not in names | {""}:
            rest = rest.rpartition(".")[0]
        found |= {rest or "__init__"} if package == "robosat_pink" else set()
    return found


def outside(imported: set[str]) -> set[str]:
    return {dotted.partition(".")[0] for dotted in imported} - {"robosat_pink"}


def graph() -> dict[str, set[str]]:
    trees = modules()
    return {name: ours(imports(tree), set(trees)) for name, tree in trees.items()}


def cycle(edges: dict[str, set[str]]) -> set[str]:
    """What is left when all that imports nothing that is left has been taken away."""
    left = dict(edges)
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    return set(left)


def loaded_by(module: str) -> list[str]:
    code = f"import sys, {module}; print(*sys.modules)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def room(module: str) -> str:
    return module.partition(".")[0]


def test_table_names_each_room_and_nothing_else() -> None:
    assert {room(module) for module in modules()} - {"__init__"} == set(MAY_IMPORT)


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_imports_point_one_way(name: str) -> None:
    targets = {room(target) for module, imported in graph().items() if room(module) == name for target in imported}
    assert targets <= {*MAY_IMPORT[name], name, "errors"}


def test_table_itself_points_one_way() -> None:
    assert cycle(MAY_IMPORT) == set()


def test_no_modules_import_each_other() -> None:
    assert cycle(graph()) == set()


def test_cycle_is_found_where_there_is_one() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": set()}) == set()
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == {"a", "b", "c"}


def test_import_is_found_however_it_is_written() -> None:
    source = """
import robosat_pink.tiles as arithmetic, numpy.linalg
from robosat_pink import rasters as r, __doc__ as about
from robosat_pink.models.blocks import ConvRelu
from robosat_pink.losses import IGNORE
if TYPE_CHECKING:
    from torch import nn
def run():
    from robosat_pink.storage import read_file
"""
    found = imports(ast.parse(source))
    names = {"__init__", "tiles", "rasters", "models", "models.blocks", "losses", "storage"}
    assert ours(found, names) == names - {"models"}
    assert outside(found) == {"numpy", "torch"}


@pytest.mark.parametrize("library", BELONGS_TO)
def test_library_is_imported_only_where_it_belongs(library: str) -> None:
    users = {name for name, tree in modules().items() if library in outside(imports(tree))}
    assert {
        user for user in users if not any(f"{user}.".startswith(f"{place}.") for place in BELONGS_TO[library])
    } == set()


def test_only_config_reads_experiment_files() -> None:
    assert {name for name, targets in graph().items() if "config.formats" in targets} == {"config.loading"}
    nodes = ast.walk(modules()["training.outputs"])
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "yaml"}
    assert used == {"safe_dump"}  # it writes config.yml


def paths_of_the_contract(tree: ast.Module) -> list[str]:
    """Text with /opt/ml in it that may serve as a path: neither a docstring nor a sentence for people."""
    documentation = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
        if "/opt/ml" in node.value and not any(each.isspace() for each in node.value)
    ]


def test_only_container_knows_the_folder_of_the_contract() -> None:
    found = {name: paths_of_the_contract(tree) for name, tree in modules().items()}
    assert {name: paths for name, paths in found.items() if paths} == {
        "container.contract": ["/opt/ml"],
        # It tells the platform, which knows no SAGEMAKER_BASE_DIR.
        "sagemaker": ["/opt/ml/checkpoints", "/opt/ml/output/tensorboard"],
    }


def test_path_of_the_contract_is_found_in_code_but_not_in_prose() -> None:
    source = '''
"""What a run leaves in /opt/ml/model."""
def model(job, help="made if missing; takes the place of /opt/ml"):
    """Below /opt/ml."""
    return f"/opt/ml/{job}/model", ["file:///opt/ml"]
'''
    assert sorted(paths_of_the_contract(ast.parse(source))) == ["/opt/ml/", "file:///opt/ml"]


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_import_loads_no_torch(module: str) -> None:
    loaded = loaded_by(f"robosat_pink{module}")
    assert f"robosat_pink{module}" in loaded
    assert "torch" not in loaded


@pytest.mark.slow
def test_report_loads_its_libraries_only_when_it_is_made() -> None:
    assert {"jinja2", "matplotlib"} & set(loaded_by("robosat_pink.report.build")) == set()
