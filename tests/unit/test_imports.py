"""Imports point one way, each outside library has its place, and what is told within a second loads no torch."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import robosat_pink

FOLDER = Path(robosat_pink.__path__[0])

# What each module may import of ours, beside `errors`, which everything may. A new file is a line here.
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "errors": {"masking"},
    # The experiment file. It knows the networks and losses by their tables, which load no torch.
    "documents": {"files"},
    "rules": set(),
    "problems": {"masking"},
    "schema": {"problems", "rules"},
    "hints": {"problems"},
    "settings": {"config", "rules", "schema"},
    "config": {"documents", "hints", "problems", "rules", "schema", "models", "losses"},
    # The edges.
    "credentials": set(),
    "files": set(),
    "waiting": set(),
    "endpoints": {"credentials", "rules"},
    "redirects": set(),
    "explanations": {"credentials", "redirects"},
    "objects": set(),
    "keys": {"credentials", "endpoints"},
    "listings": {"keys", "objects"},
    "storage": {"credentials", "endpoints", "explanations", "keys", "listings", "objects", "redirects", "waiting"},
    "container": {"files", "masking"},
    "masking": set(),
    "init": {"container"},
    "machine": {"container"},
    "device": {"machine"},
    "checkpoint": {"files", "storage"},
    "writer": set(),
    "entry": set(),
    "cache": {"entry", "files"},
    "launch": {"config", "container", "machine"},
    "peers": {"container", "launch"},
    "distributed": {"container", "launch", "machine", "peers", "waiting"},
    "watch": {"container", "distributed", "writer"},
    # Tiles. IGNORE, the mask value that counts nowhere, is the losses'.
    "names": set(),
    "tiles": {"names"},
    "expressions": set(),
    "sides": {"explanations", "expressions", "listings", "machine", "names", "storage", "tiles"},
    "tile_file": {"explanations", "names", "storage"},
    "georeference": {"gdal"},
    "band_tags": set(),
    "sidecars": {"band_tags", "georeference"},
    "gdal": set(),
    "tiff": {"band_tags", "georeference"},
    "palettes": set(),
    "rasters": {"band_tags", "gdal", "georeference", "palettes", "sidecars", "tiff"},
    "decoding": {"band_tags", "config", "georeference", "losses", "rasters"},
    "reader": {"cache", "config", "decoding", "losses", "names", "rasters", "storage", "tile_file"},
    "datasets": {"decoding", "cache", "config", "credentials", "explanations", "reader", "sides", "storage", "tiles"},
    "worker": {"reader", "losses"},
    "sources": {"reader", "worker"},
    "loader": {"datasets", "launch", "machine", "reader", "sources"},
    # What computes on the device.
    "transforms": set(),
    "models": {"models.imagenet"},
    "models.albunet": {"models.blocks", "models.recomputation"},
    "models.blocks": {"models.recomputation"},
    "models.imagenet": set(),
    "models.recomputation": {"models.synchronisation"},
    "models.synchronisation": set(),
    "models.ternausnetv2": {"models.blocks", "models.wider_resnet"},
    "models.wider_resnet": {"models.blocks", "models.recomputation"},
    "losses": {"losses.weighted_sum"},
    "losses.bce_jaccard": {"losses", "losses.cross_entropy"},
    "losses.cross_entropy": {"losses"},
    "losses.lovasz": {"losses"},
    "losses.weighted_sum": set(),
    "metrics": {"losses"},
    # The run: `train`, of which `loop` and `results` are parts.
    "memory": {"config"},
    "progress": set(),
    "tally": {"config", "distributed", "metrics", "sources"},
    "state": {"config", "distributed", "loader", "progress", "sources", "tally", "tiles", "transforms", "watch"},
    "step": {"device", "losses", "memory", "models.recomputation", "sources", "state", "transforms"},
    "loop": {"config", "container", "metrics", "progress", "state", "step", "tally"},
    "point": {"checkpoint", "metrics"},
    "resume": {"checkpoint", "config", "datasets", "masking", "point", "problems", "schema", "state", "tiles"},
    "leftovers": {"checkpoint", "config", "container"},
    "results": {
        *("checkpoint", "config", "container", "datasets", "files", "leftovers", "machine", "masking", "metrics"),
        *("resume", "state", "tiles", "writer"),
    },
    "assembly": {
        *("checkpoint", "config", "container", "datasets", "distributed", "launch", "loader", "models"),
        *("models.blocks", "models.synchronisation", "resume", "tiles"),
    },
    # What a person opens.
    "inspection": {"container", "device", "losses", "metrics", "sources", "state", "step"},
    "scenes": {"inspection", "metrics", "tiles"},
    "maps": {"tiles"},
    "pictures": {"losses"},
    "plots": {"inspection", "metrics"},
    "elements": set(),
    "appearance": set(),
    "findings": {"scenes"},
    "page": {"appearance", "elements", "findings", "metrics", "pictures", "plots", "scenes"},
    "card": {"config", "maps", "metrics", "scenes", "tiles"},
    "report": {
        *("card", "container", "distributed", "files", "findings", "inspection", "loader", "machine", "maps"),
        *("masking", "metrics", "page", "pictures", "plots", "scenes", "state", "tiles", "watch", "writer"),
    },
    # What is said before a run.
    "coverage": {"config", "datasets", "decoding", "losses", "rasters", "reader", "tile_file"},
    "survey": {"config", "coverage", "datasets", "losses"},
    "check": {
        *(
            "assembly",
            "config",
            "container",
            "coverage",
            "datasets",
            "device",
            "distributed",
            "launch",
            "losses",
            "masking",
            "memory",
        ),
        *("resume", "scenes", "state", "survey", "tiles"),
    },
    "trained": {"checkpoint", "config", "datasets", "decoding", "models", "problems", "schema", "transforms"},
    # Programs of their own.
    "sample": set(),
    "sagemaker": {"config", "metrics", "settings", "rules", "schema"},
}
MAY_IMPORT["train"] = set(MAY_IMPORT) - {"sagemaker", "sample", "settings", "trained"}

# Modules with a place kept for them, which may not be there yet.
ANNOUNCED: set[str] = set()

# Libraries that only these modules may import.
BELONGS_TO = {
    "obstore": {"storage", "explanations", "credentials", "listings", "objects", "redirects"},
    "boto3": {"credentials", "keys"},
    "botocore": {"credentials", "keys"},
    "rasterio": {"gdal", "georeference", "palettes", "rasters", "sample"},
    "matplotlib": {"plots"},
    "tifffile": {"tiff"},
    "imagecodecs": {"tiff"},
    "yaml": {"documents", "results"},
    "tomllib": {"documents"},
    "argparse": {"train", "sample", "sagemaker"},
}

WITHOUT_TORCH = (
    "",
    ".errors",
    ".config",
    ".container",
    ".storage",
    ".tiles",
    ".rasters",
    ".worker",
    ".sample",
    ".train",
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


def test_every_module_has_its_line_in_the_table() -> None:
    assert set(modules()) - set(MAY_IMPORT) == set()


def test_every_line_of_the_table_has_its_module() -> None:
    assert set(MAY_IMPORT) - set(modules()) <= ANNOUNCED


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_imports_point_one_way(module: str) -> None:
    assert graph().get(module, set()) <= {*MAY_IMPORT[module], "errors"}


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
    assert users <= BELONGS_TO[library]


def test_only_config_reads_experiment_files() -> None:
    assert {name for name, targets in graph().items() if "documents" in targets} == {"config"}
    nodes = ast.walk(modules()["results"])
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
        "container": ["/opt/ml"],
        "sagemaker": ["/opt/ml/checkpoints"],  # it tells the platform, which knows no SAGEMAKER_BASE_DIR
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
