"""The experiment file: what it may hold, what overrides it, and what each mistake is told."""

import ast
import copy
import dataclasses
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import robosat_pink
from robosat_pink.config import Config, class_values, load_config, shared_groups, to_tree
from robosat_pink.config.keys import keys_of, leaf_keys, spelling
from robosat_pink.errors import ConfigError

REQUIRED = "required"

# Every key as the file spells it: its default, and another value that it may have. A new key is a line here.
KEYS: dict[str, tuple[Any, Any]] = {
    "dataset.image_bucket": (REQUIRED, "planet-snowcover-imagery"),
    "dataset.mask_bucket": (REQUIRED, "s3://planet-snowcover-snow/masks"),
    "dataset.imagery_directory_regex": (".*", r"(?P<day>2018\d{4})_.*_tiled$"),
    "dataset.mask_directory_regex": (".*", r"ASO_3M_SD_USCATE_(?P<day>2018\d{4})_binary$"),
    "dataset.train_percent": (0.7, 0.6),
    "dataset.cache.dir": (None, "/cache"),
    "dataset.cache.max_gb": (None, 5.0),
    "dataset.verify_md5": ("auto", True),
    "dataset.if_changed": ("error", "relist"),
    "dataset.aws_profile": (None, "esip"),
    "dataset.endpoint_url": (None, "http://127.0.0.1:9000"),
    "dataset.split.by": ("tile", "block"),
    "dataset.split.seed": (0, 3),
    "dataset.split.test_percent": (0.0, 0.1),
    "dataset.split.zoom": (None, 8),
    "dataset.split.folds": (None, None),  # together with from it is refused
    "dataset.split.fold": (0, 0),  # acts with folds only
    "dataset.split.from": (None, "s3://models/run-1/test_ids.txt"),
    "dataset.missing": ("auto", "declared"),
    "dataset.ignore_values": ((), [255, 254]),
    "classes[].name": (REQUIRED, "snow"),
    "classes[].color": ("white", "#00ff7f"),
    "classes[].values": (None, [2, 3]),
    "classes[].weight": (1.0, 2.5),
    "channels[].bands": (REQUIRED, [3, 1]),
    "channels[].mean": (None, [0.25, -0.5]),
    "channels[].std": (None, [0.5, 2.0]),
    "channels[].scale": (None, 4096.0),
    "model.name": (REQUIRED, "albunet"),
    "model.encoder": (None, "resnet18"),
    "model.num_filters": (None, 16),
    "model.pixel_steps": (None, 0),
    "model.is_deconv": (False, False),  # true is for ternausnetv2 only
    "model.pretrained": (False, "channel:weights/resnet18.pth"),
    "model.pretrained_bands": (None, [2, 1]),
    "model.loss": ("lovasz", {"lovasz": 0.5, "cross_entropy": 1.0}),
    "model.batch_size": (7, 4),
    "model.tile_size": (512, 256),
    "model.epochs": (50, 9),
    "model.lr": (0.000025, 0.001),
    "model.data_augmentation": (0.75, 0.25),
    "model.decay": (0.0, 0.0001),
    "model.schedule": ("constant", "cosine"),
    "model.patience": (None, 5),
    "model.ema": (None, 0.99),
    "model.recipe": ("original", "strong"),
    "model.batch_norm": ("batch", "frozen"),
    "model.symmetries": (False, True),
    "sampling.tiles_per_epoch": (None, "auto"),
    "checkpoint.path": (None, None),  # together with resume it is refused
    "checkpoint.resume": (None, "channel:weights/resume-00001-000000.pth"),
    "checkpoint.every_minutes": (10.0, 2.5),
    "checkpoint.if_different": ("refuse", "continue"),
    "predict.model": (None, "channel:model"),
    "predict.images": (None, "other-imagery"),
    "predict.images_regex": (None, "2019.*"),
    "predict.tiles": ("all", "val"),
    "predict.output": (None, "s3://maps/2019"),
    "predict.probability": (True, False),
    "predict.mosaic": (True, False),
    "predict.threshold": (0.5, "chosen"),
    "predict.buffer": (64, 32),
    "predict.symmetries": (False, True),
    "predict.if_damaged": ("error", "skip"),
    "runtime.seed": (0, 5),
    "runtime.workers": ("auto", 2),
    "runtime.precision": ("auto", "fp32"),
    "runtime.device": ("auto", "cpu"),
    "runtime.upsampling": ("auto", "plain"),
    "runtime.recompute": ("auto", "blocks"),
    "runtime.accumulation": (1, 2),
    "runtime.compile": (False, True),
    "runtime.max_seconds": (None, 3600.0),
    "runtime.skipped_batches": (3, 0),
    "runtime.processes": ("auto", 2),
    "runtime.peer_timeout_s": (600.0, 60.0),
    "runtime.loggers": ((), ["tensorboard"]),
}

SMALLEST: dict[str, Any] = {
    "dataset": {"image_bucket": "imagery", "mask_bucket": "snow"},
    "classes": [{"name": "snow"}],
    "channels": [{"bands": [1, 2]}],
    "model": {"name": "albunet"},
}

YAML = """
dataset:
  image_bucket: imagery
  mask_bucket: snow
  imagery_directory_regex: '20180528_.*_tiled$'
  split: {seed: 3}
classes:
  - {name: rock, values: [0]}
  - {name: snow, color: red, values: [1, 2]}
channels: [{bands: [3, 1], mean: [0.5, 0.25], std: [1, 2], scale: raw}]
model: {name: albunet, lr: 1e-3, epochs: 4}
"""

JSON = """{
  "dataset": {
    "image_bucket": "imagery",
    "mask_bucket": "snow",
    "imagery_directory_regex": "20180528_.*_tiled$",
    "split": {"seed": 3}
  },
  "classes": [{"name": "rock", "values": [0]}, {"name": "snow", "color": "red", "values": [1, 2]}],
  "channels": [{"bands": [3, 1], "mean": [0.5, 0.25], "std": [1, 2], "scale": "raw"}],
  "model": {"name": "albunet", "lr": 1e-3, "epochs": 4}
}"""

TOML = r"""
[dataset]
image_bucket = 'imagery'
mask_bucket = 'snow'
imagery_directory_regex = '20180528_.*_tiled$'
split.seed = 3
[[classes]]
name = 'rock'
values = [0]
[[classes]]
name = 'snow'
color = 'red'
values = [1, 2]
[[channels]]
bands = [3, 1]
mean = [0.5, 0.25]
std = [1, 2]
scale = 'raw'
[model]
name = 'albunet'
lr = 1e-3
epochs = 4
"""


def tree_of(values: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts from keys spelt like those of KEYS; a list has one entry."""
    tree: dict[str, Any] = {}
    for dotted, value in values.items():
        *parents, last = dotted.split(".")
        place = tree
        for name in parents:
            place = place.setdefault(name[:-2], [{}])[0] if name.endswith("[]") else place.setdefault(name, {})
        place[last] = value
    return tree


def write_experiment(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """The smallest experiment with some values changed, by dotted keys such as channels.0.mean, as a.yml."""
    tree = copy.deepcopy(SMALLEST)
    for dotted, value in (changes or {}).items():
        *parents, last = dotted.split(".")
        place: Any = tree
        for name in parents:
            place = place[int(name)] if name.isdecimal() else place.setdefault(name, {})
        place[int(last) if last.isdecimal() else last] = value
    path = folder / "a.yml"
    path.write_text(yaml.safe_dump(tree))
    return path


def problems_of(path: Path, *overrides: dict[str, str]) -> list[str]:
    """The lines that a file, with hyperparameters and command-line arguments, is refused with."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, *overrides)
    return str(caught.value).split("\n")


def at(config: Config, dotted: str) -> Any:
    """The value at a key such as channels.0.scale."""
    place: Any = to_tree(config)
    for name in dotted.split("."):
        place = place[int(name)] if name.isdecimal() else place[name]
    return place


def sections() -> Iterator[tuple[str, type]]:
    """Every section of an experiment with its dotted name, the whole of it first; a list as channels[]."""
    waiting: list[tuple[str, type]] = [("", Config)]
    for prefix, section in waiting:
        yield prefix, section
        nested = [key for key in keys_of(section) if key.section is not None]
        waiting += [(f"{prefix}{key.name}{'[]' if key.is_list else ''}.", key.section) for key in nested]


def test_keys_and_defaults_are_frozen() -> None:
    defaults = {name: REQUIRED if key.is_required else key.default for name, key in leaf_keys(Config)}
    assert defaults == {key: default for key, (default, _) in KEYS.items()}


def test_every_key_reaches_the_config_and_is_written_back_as_it_stood(tmp_path: Path) -> None:
    tree = tree_of({key: value for key, (_, value) in KEYS.items()})
    (tmp_path / "a.json").write_text(json.dumps(tree))
    assert to_tree(load_config(tmp_path / "a.json")) == tree


def test_written_config_loads_as_the_same_config(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text(yaml.safe_dump(tree_of({key: value for key, (_, value) in KEYS.items()})))
    for config in (load_config(tmp_path / "a.yml"), load_config(write_experiment(tmp_path))):
        (tmp_path / "b.yml").write_text(yaml.safe_dump(to_tree(config)))
        assert load_config(tmp_path / "b.yml") == config


def test_yaml_json_and_toml_give_the_same_config(tmp_path: Path) -> None:
    configs = []
    for name, text in {"a.yml": YAML, "a.yaml": YAML, "a.JSON": JSON, "a.toml": TOML}.items():
        (tmp_path / name).write_text(text)
        configs.append(load_config(tmp_path / name))
    assert all(config == configs[0] for config in configs)
    assert [(each.name, each.color, each.values) for each in configs[0].classes] == [
        ("rock", "white", (0,)),
        ("snow", "red", (1, 2)),
    ]
    assert configs[0].channels[0].std == (1.0, 2.0)
    assert configs[0].model.lr == 0.001
    assert configs[0].dataset.split.seed == 3


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1E-3", 0.001), ("+1e-03", 0.001), ("1.e-3", 0.001), (".1e-2", 0.001), ("1e3", 1000.0)],
)
def test_number_with_an_exponent_is_a_number_in_yaml(tmp_path: Path, text: str, value: float) -> None:
    path = write_experiment(tmp_path)
    path.write_text(path.read_text().replace("name: albunet", f"name: albunet\n  lr: {text}"))
    assert load_config(path).model.lr == value


def test_what_looks_like_an_exponent_between_other_letters_stays_text_in_yaml(tmp_path: Path) -> None:
    path = write_experiment(tmp_path)
    path.write_text(path.read_text().replace("mask_bucket: snow", "mask_bucket: 1e-3b"))
    assert load_config(path).dataset.mask_bucket == "1e-3b"


def test_config_and_all_in_it_cannot_be_changed(tmp_path: Path) -> None:
    config = load_config(write_experiment(tmp_path, {"channels.0.mean": [0, 1], "classes.0.values": [1]}))
    for _, section in sections():
        assert section.__dataclass_params__.frozen, section  # type: ignore[attr-defined]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model.epochs = 3  # type: ignore[misc]
    hash(config)  # no list nor dict anywhere


def test_reading_an_experiment_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from robosat_pink.config import load_config, to_tree; to_tree(load_config(sys.argv[1])); "
        "print([name for name in sys.modules if name.startswith('torch')])"
    )
    command = [sys.executable, "-c", code, str(write_experiment(tmp_path))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_classes_without_values_take_their_number_and_a_single_class_takes_one(tmp_path: Path) -> None:
    one = load_config(write_experiment(tmp_path))
    three = load_config(
        write_experiment(tmp_path, {"classes": [{"name": "a"}, {"name": "b", "values": [7, 9]}, {"name": "c"}]})
    )
    assert class_values(one.classes) == ((1,),)
    assert class_values(three.classes) == ((0,), (7, 9), (2,))
    assert (one.num_classes, three.num_classes) == (1, 3)


def test_channels_are_counted_by_their_bands(tmp_path: Path) -> None:
    config = load_config(write_experiment(tmp_path, {"channels": [{"bands": [4, 1]}, {"bands": [2, 2, 3]}]}))
    assert config.num_channels == 5


def test_shared_groups_are_those_named_in_both_expressions(tmp_path: Path) -> None:
    expressions = {
        "dataset.imagery_directory_regex": r"(?P<scene>.*)_(?P<day>\d{8})_(?P<part>.)",
        "dataset.mask_directory_regex": r"(?P<day>\d{8})_(?P<kind>.*)_(?P<scene>.*)",
    }
    assert shared_groups(load_config(write_experiment(tmp_path, expressions)).dataset) == ("scene", "day")
    assert shared_groups(load_config(write_experiment(tmp_path)).dataset) == ()


# To check a key or to copy it is not to use it.
NO_USE = {"check", "take_out_misplaced", "to_tree", "plain"}


class Reader(ast.NodeVisitor):
    """Collects which fields of which classes some code reads.

    Types come from annotations, and from what is assigned or looped over; a container passes for its entries. So
    `path.name` is no read of ModelConfig.name, nor is `model.name` where `model` is a network.
    """

    def __init__(self, sources: Iterable[str]) -> None:
        trees = [ast.parse(source) for source in sources]
        self.attributes: dict[str, dict[str, str | None]] = {
            node.name: {} for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
        }
        self.found: set[tuple[str, str]] = set()
        for _ in range(2):  # the first time to learn what the attributes of classes are
            for tree in trees:
                self.names: dict[str, str | None] = {}
                self.owner: str | None = None
                self.visit(tree)

    def annotated(self, annotation: ast.expr | None) -> str | None:
        words = re.findall(r"\w+", ast.unparse(annotation)) if annotation else []
        return next((word for word in words if word in self.attributes), None)

    def type_of(self, node: ast.expr) -> str | None:
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            return self.attributes.get(self.type_of(node.value) or "", {}).get(node.attr)
        if isinstance(node, ast.Subscript | ast.Starred):
            return self.type_of(node.value)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("list", "tuple", "sorted", "reversed"):
                return self.type_of(node.args[0])
            return node.func.id if node.func.id in self.attributes else None
        return None

    def bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = self.type_of(value)
        elif isinstance(target, ast.Attribute) and (owner := self.type_of(target.value)):
            self.attributes[owner].setdefault(target.attr, self.type_of(value))
        elif isinstance(target, ast.Tuple):
            parts = value.elts if isinstance(value, ast.Tuple) else value.args if isinstance(value, ast.Call) else []
            if isinstance(value, ast.Call) and ast.unparse(value.func) == "enumerate":
                parts = [ast.Constant(0), *parts]
            for each, part in zip(target.elts, parts, strict=False):
                self.bind(each, part)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer, self.owner = self.owner, node.name
        for each in node.body:
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                self.attributes[node.name][each.target.id] = self.annotated(each.annotation)
            elif isinstance(each, ast.FunctionDef) and each.decorator_list:
                self.attributes[node.name][each.name] = self.annotated(each.returns)
        self.generic_visit(node)
        self.owner = outer

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in NO_USE:
            return
        outer, self.names = self.names, dict(self.names)
        for argument in (*node.args.args, *node.args.kwonlyargs):
            self.names[argument.arg] = self.owner if argument.arg == "self" else self.annotated(argument.annotation)
        self.generic_visit(node)
        self.names = outer

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            if self.type_of(target) is None or self.type_of(node.value) is not None:  # a variable keeps its type
                self.bind(target, node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.names[node.target.id] = self.annotated(node.annotation)
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        self.bind(node.target, node.iter)
        self.generic_visit(node)

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        for generator in node.generators:
            self.bind(generator.target, generator.iter)
        self.generic_visit(node)

    visit_SetComp = visit_GeneratorExp = visit_DictComp = visit_ListComp  # noqa: N815 - ast calls them so

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = self.type_of(node.value)
        if owner is not None and isinstance(node.ctx, ast.Load):
            self.found.add((owner, node.attr))
        self.generic_visit(node)


def read_by(*sources: str) -> set[tuple[str, str]]:
    return Reader(sources).found


def product_sources() -> list[str]:
    files = sorted(Path(robosat_pink.__path__[0]).rglob("*.py"))
    return [path.read_text() for path in files]


def declared() -> dict[tuple[str, str], str]:
    """(class, field) of every key and section, with its dotted name."""
    return {
        (section.__name__, field.name): prefix + spelling(field.name)
        for prefix, section in sections()
        for field in dataclasses.fields(section)
    }


def test_every_key_is_read_by_the_product() -> None:
    read = read_by(*product_sources())
    unread = [dotted for field, dotted in declared().items() if field not in read]
    assert not unread, (
        f"nothing reads these keys from a variable that is annotated or assigned as their section: {unread}"
    )


def test_key_that_nobody_reads_is_noticed() -> None:
    read = read_by(*product_sources())
    invented = {("ModelConfig", "momentum"), ("CheckpointConfig", "name"), ("RuntimeConfig", "epochs")}
    assert (set(declared()) | invented) - read == invented

    silenced = [re.sub(r"\bmodel\.decay\b", "model.lr", source) for source in product_sources()]
    assert set(declared()) - read_by(*silenced) == {("ModelConfig", "decay")}


def test_reads_are_told_from_other_attributes_of_the_same_name() -> None:
    declarations = "class RuntimeConfig:\n  seed: int\n  workers: int\nclass Config:\n  runtime: RuntimeConfig\n"
    use = (
        "class Task:\n"
        "  def __init__(self, config: Config, random: Random) -> None:\n"
        "    self.config = config\n"
        "    random.seed = 3\n"
        "  def start(self) -> None:\n"
        "    return random.seed, self.config.runtime.workers\n"
    )
    assert read_by(declarations, use) == {("Task", "config"), ("Config", "runtime"), ("RuntimeConfig", "workers")}


def test_missing_keys_are_named_with_what_they_accept(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("model: {epochs: 3}")
    found = problems_of(tmp_path / "a.yml")
    keys = ["dataset.image_bucket", "dataset.mask_bucket", "classes", "channels", "model.name"]
    assert [line.split("; accepted: ")[0] for line in found] == [f"a.yml: {key}: missing" for key in keys]
    assert re.search(r"; accepted: .*\balbunet\b", found[-1])


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [
        ("modle", {"name": "albunet"}, "model"),
        ("model.epoch", 3, "model.epochs"),
        ("dataset.image_buckets", "a", "dataset.image_bucket"),
        ("dataset.split.form", "a", "dataset.split.from"),
        ("channels.0.band", [1], "channels.0.bands"),
        ("classes.0.colour", "red", "classes.0.color"),
    ],
)
def test_unknown_key_is_told_with_the_nearest_name_and_all_there_are(
    tmp_path: Path, key: str, value: Any, nearest: str
) -> None:
    [line] = problems_of(write_experiment(tmp_path, {key: value}))
    assert re.match(rf"a\.yml: {re.escape(key)}( = .*)?: no such key; did you mean {re.escape(nearest)}\?", line)
    pattern = re.sub(r"\.\d+", "[]", key.rpartition(".")[0])
    siblings = [each.rpartition(".")[2] for each in KEYS if pattern and each.rpartition(".")[0] == pattern]
    for name in siblings or list(SMALLEST):
        assert re.search(rf"accepted: .*\b{name}\b", line)


def test_unknown_key_that_resembles_none_gets_no_guess(tmp_path: Path) -> None:
    [line] = problems_of(write_experiment(tmp_path, {"model.zzz": 3}))
    assert line.startswith("a.yml: model.zzz = 3: no such key; accepted: name, ")


@pytest.mark.parametrize(
    ("key", "value", "home"),
    [
        ("epochs", 3, "model.epochs"),
        ("path", "a.pth", "checkpoint.path"),
        ("image_bucket", "a", "dataset.image_bucket"),
    ],
)
def test_key_outside_its_section_is_pointed_there(tmp_path: Path, key: str, value: Any, home: str) -> None:
    [line] = problems_of(write_experiment(tmp_path, {key: value}))
    assert line == f"a.yml: {key} = {json.dumps(value)}: no such key; did you mean {home}?"


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        ("model.epochs", True, "a whole number, from 1 to 99,999"),
        ("model.epochs", 3.5, "a whole number, from 1 to 99,999"),
        ("model.epochs", "3", "a whole number, from 1 to 99,999"),
        ("model.epochs", None, "a whole number, from 1 to 99,999"),
        ("model.lr", "fast", "a number, above 0 to 1,000"),
        ("model.lr", True, "a number, above 0 to 1,000"),
        ("model.lr", [0.1], "a number, above 0 to 1,000"),
        ("model.decay", False, "a number, from 0 to 100"),
        ("dataset.image_bucket", 3, "text"),
        ("dataset.image_bucket", False, "text"),
        ("dataset.aws_profile", 7, "text"),
        ("dataset.split.by", 3, "tile or block or group"),
        ("dataset.split.zoom", 3.0, "a whole number"),
        ("classes.0.name", 3, "text"),
        ("classes.0.values", 1, "a list of: a whole number"),
        ("classes.0.values", [1.0], "a whole number"),
        ("channels.0.bands", 1, "a list of: a whole number, from 1 to 65,535"),
        ("channels.0.bands", [], "a list of: a whole number, from 1 to 65,535"),
        ("channels.0.scale", True, "a number, above 0 to 1,000,000,000,000 or auto or raw"),
        ("runtime.workers", "many", "a whole number, from 0 to 1,024 or auto"),
        ("dataset", [1], "a section with the keys image_bucket, "),
        ("model", "albunet", "a section with the keys name, "),
        ("classes", {"name": "snow"}, "a list of sections, at least one"),
        ("classes", [], "a list of sections, at least one"),
        ("classes.0", "snow", "a section with the keys name, color, "),
    ],
)
def test_value_of_a_wrong_type_is_told_with_what_is_accepted(
    tmp_path: Path, key: str, value: Any, accepted: str
) -> None:
    [line] = problems_of(write_experiment(tmp_path, {key: value}))
    assert line.startswith(f"a.yml: {key} = {json.dumps(value)}: accepted: ")
    assert accepted in line


@pytest.mark.parametrize("text", [".nan", ".inf", "-.inf", "1" + "0" * 400])
def test_number_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = write_experiment(tmp_path)
    smallest = path.read_text()
    for section, key in (("name: albunet", "lr"), ("name: albunet", "decay")):
        path.write_text(smallest.replace(section, f"{section}\n  {key}: {text}"))
        [line] = problems_of(path)
        assert line.startswith(f"a.yml: model.{key} = ")
    path.write_text(smallest.replace("channels:\n- bands:", f"channels:\n- mean: [0, {text}]\n  bands:"))
    [line] = problems_of(path)
    assert line.startswith("a.yml: channels.0.mean = [0, ")


def test_whole_number_is_accepted_where_any_number_is(tmp_path: Path) -> None:
    config = load_config(write_experiment(tmp_path, {"model.lr": 1, "channels.0.scale": 255}))
    assert (config.model.lr, type(config.model.lr)) == (1.0, float)
    assert (config.channels[0].scale, type(config.channels[0].scale)) == (255.0, float)


@pytest.mark.parametrize(
    ("key", "value", "advice"),
    [
        ("dataset.train_percent", 0, "above 0 and below 1"),
        ("dataset.train_percent", 1.0, "above 0 and below 1"),
        ("dataset.train_percent", 1.5, "above 0 and below 1"),
        ("dataset.split.test_percent", -0.1, "from 0 and below 1"),
        ("dataset.split.test_percent", 1.0, "from 0 and below 1"),
        ("dataset.split.test_percent", 0.3, "less than 1 - train_percent = 0.3"),
        ("dataset.split.test_percent", 0.5, "less than 1 - train_percent = 0.3"),
        ("dataset.split.zoom", 3, "split.by: block"),
        ("dataset.split.zoom", -1, "from 0 to 30"),
        ("dataset.split.zoom", 31, "from 0 to 30"),
        ("dataset.split.folds", 1, "from 2 to 10,000"),
        ("dataset.split.fold", 1, "acts with split.folds only; set that or leave fold out"),
        ("dataset.split.fold", -1, "from 0 to 9,999"),
        ("dataset.split.by", "blok", "tile or block or group; did you mean block?"),
        ("dataset.split.by", "group", "named group in common, such as (?P<day>"),
        ("dataset.image_bucket", "", "not empty"),
        (
            "dataset.imagery_directory_regex",
            "(2018",
            "names; in this one: missing ), unterminated subpattern at position 0",
        ),
        ("dataset.mask_directory_regex", "*_binary", "in this one: nothing to repeat at position 0"),
        ("classes.0.color", "whit", "a color name or #rrggbb"),
        ("classes.0.values", [0, 1], "0 is the background of a single class"),
        ("channels.0.bands", [0, 1], "from 1 to 65,535"),
        ("channels.0.mean", [0.5], "one number for each of the 2 bands"),
        ("channels.0.std", [0.5, 1.0, 2.0], "one number for each of the 2 bands"),
        ("channels.0.std", [0.5, 0], "above 0"),
        ("channels.0.scale", 0, "a number, above 0 to 1,000,000,000,000 or auto or raw"),
        ("channels.0.scale", "row", "did you mean raw?"),
        ("model.name", "albunett", "did you mean albunet?"),
        ("model.encoder", "resnet51", "albunet accepts: resnet50, resnet18, resnet34, resnet101, resnet152"),
        ("model.loss", "lovas", "did you mean lovasz?"),
        ("model.pretrained_bands", [3, 2], "acts with model.pretrained only"),
        ("model.pretrained_bands", [0, 1], "from 1 to 65,535"),
        ("model.tile_size", 96, "albunet needs a multiple of 64; try 128"),
        ("model.tile_size", 513, "albunet needs a multiple of 64; try 576"),
        ("model.tile_size", 0, "from 1 to 16,384"),
        ("model.batch_size", -7, "from 1 to 10,000"),
        ("model.epochs", 0, "from 1 to 99,999"),
        ("model.lr", 0, "above 0"),
        ("model.decay", -0.1, "from 0 to 100"),
        ("model.data_augmentation", 1.5, "from 0 to 1"),
        ("model.schedule", "cosin", "constant or cosine; did you mean cosine?"),
        ("runtime.workers", -1, "from 0 to 1,024 or auto"),
        ("runtime.precision", "fp8", "auto or fp32 or bf16 or fp16"),
    ],
)
def test_impossible_value_is_told_with_what_is_possible(tmp_path: Path, key: str, value: Any, advice: str) -> None:
    [line] = problems_of(write_experiment(tmp_path, {key: value}))
    assert line.startswith(f"a.yml: {key} = {json.dumps(value)}: ")
    assert advice in line


@pytest.mark.parametrize(
    ("changes", "key", "advice"),
    [
        ({"classes": [{"name": "snow"}, {"name": "snow"}]}, "classes", "two classes have one name"),
        (
            {"classes": [{"name": "rock", "values": [1, 2]}, {"name": "snow", "values": [2]}]},
            "classes",
            "one mask value stands twice",
        ),
        # Without values the second class is the value 1.
        ({"classes": [{"name": "rock", "values": [1]}, {"name": "snow"}]}, "classes", "one mask value stands twice"),
        ({"dataset.split.by": "block"}, "dataset.split.zoom", "split.by: block needs the zoom"),
        (
            {"dataset.split.by": "group", "dataset.imagery_directory_regex": "(?P<day>.)"},
            "dataset.split.by",
            "both directory expressions must have a named group in common",
        ),
        (
            {"model.pretrained": True, "model.pretrained_bands": [3, 2, 1]},
            "model.pretrained_bands",
            "one number for each of the 2 bands",
        ),
        ({"model.pretrained": True, "model.pretrained_bands": [3, 4]}, "model.pretrained_bands", "red, green and blue"),
        ({"dataset.split": {"folds": 5, "fold": 5}}, "dataset.split.fold", "counted from 0; accepted: from 0 to 4"),
        (
            {"dataset.split": {"folds": 5, "from": "test_ids.txt"}},
            "dataset.split.folds",
            "split.from names the val tiles itself; leave one of the two out",
        ),
        ({"channels": [{"bands": [1], "mean": [0.5]}, {"bands": [2], "std": [1, 2]}]}, "channels.1.std", "the 1 bands"),
    ],
)
def test_values_that_do_not_go_together_are_refused(
    tmp_path: Path, changes: dict[str, Any], key: str, advice: str
) -> None:
    [line] = problems_of(write_experiment(tmp_path, changes))
    assert line.startswith(f"a.yml: {key} = ")
    assert advice in line


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset.train_percent": 0.001},
        {"dataset.train_percent": 0.999},
        {"dataset.split.test_percent": 0.29},
        {"dataset.split.by": "block", "dataset.split.zoom": 0},
        {"dataset.split": {"folds": 5, "fold": 4, "test_percent": 0.3}},  # train_percent does not act
        {"dataset.split": {"folds": 2}},
        {
            "dataset.split.by": "group",
            "dataset.imagery_directory_regex": "i_(?P<day>.)",
            "dataset.mask_directory_regex": "m_(?P<day>.)",
        },
        {"classes": [{"name": "rock"}, {"name": "snow"}]},
        {"classes": [{"name": "rock", "values": [3]}, {"name": "snow", "values": [0]}]},
        {"model.data_augmentation": 1},
        {"model.data_augmentation": 0},
        {"model.tile_size": 64},
        {"model.name": "ternausnetv2", "model.is_deconv": True, "model.tile_size": 32},
        {"checkpoint": None, "runtime": None},
    ],
)
def test_values_at_the_edge_of_what_is_possible_are_accepted(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert isinstance(load_config(write_experiment(tmp_path, changes)), Config)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    changes = {
        "dataset.train_percent": 1.0,
        "dataset.split.by": "block",
        "classes.0.values": [0],
        "channels.0.mean": [0.5],
        "channels.0.scale": "atuo",
        "model.epoch": 3,
        "model.lr": "fast",
        "model.tile_size": 96,
        "epochs": 3,
        "modle": {},
    }
    found = {line.split(" = ")[0].split(": ")[1] for line in problems_of(write_experiment(tmp_path, changes))}
    assert found == set(changes) - {"dataset.split.by"} | {"dataset.split.zoom"}


def test_problem_in_one_section_does_not_hide_what_does_not_go_together_in_another(tmp_path: Path) -> None:
    changes = {"model.name": "albunett", "channels.0.mean": [0.5], "dataset.split.test_percent": 0.5}
    found = {line.split(" = ")[0] for line in problems_of(write_experiment(tmp_path, changes))}
    assert found == {f"a.yml: {key}" for key in changes}


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("model.lr", "0.001", 0.001),
        ("model.lr", "1e-3", 0.001),
        ("model.lr", "1", 1.0),
        ("model.epochs", "3", 3),
        ("model.epochs", "3.0", 3),
        ("model.schedule", "cosine", "cosine"),
        ("model.schedule", '"cosine"', "cosine"),
        ("model.encoder", '"resnet18"', "resnet18"),
        ("channels.0.scale", "255", 255.0),
        ("channels.0.scale", "raw", "raw"),
        ("channels.0.scale", '"raw"', "raw"),
        ("channels.0.bands", "[4, 1]", [4, 1]),
        ("channels.0.mean", "[0.5, 1]", [0.5, 1.0]),
        ("channels.0.bands.1", "4", 4),
        ("classes.0.values", "[2, 3]", [2, 3]),
        ("classes.0.name", "ice", "ice"),
        ("runtime.workers", "auto", "auto"),
        ("runtime.workers", "2", 2),
        ("model.pretrained", "true", True),
        ("model.pretrained", "False", False),
        ("model.pretrained", "./resnet50.pth", "./resnet50.pth"),
        ("dataset.aws_profile", "null", None),
        ("dataset.split.zoom", "null", None),
        ("dataset.split.from", "s3://models/test_ids.txt", "s3://models/test_ids.txt"),
        ("dataset.mask_directory_regex", r"ASO_\d{8}$", r"ASO_\d{8}$"),
    ],
)
def test_hyperparameter_is_read_as_what_its_key_holds(tmp_path: Path, key: str, text: str, value: Any) -> None:
    found = at(load_config(write_experiment(tmp_path), {key: text}), key)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "encode", [str, json.dumps, lambda value: value if isinstance(value, str) else json.dumps(value)]
)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.lr", 1e-05),
        ("model.epochs", 3),
        ("model.symmetries", True),
        ("model.ema", None),
        ("model.loss", "dice"),
        ("model.loss", {"dice": 0.5, "focal": 1.0}),
        ("dataset.imagery_directory_regex", "20180528"),
        ("dataset.ignore_values", [255, 254]),
        ("channels", [{"bands": [2, 1], "mean": [0.5, 0.25], "std": [1.0, 2.0], "scale": "tags"}]),
    ],
)
def test_value_is_read_as_each_client_of_sagemaker_writes_it(
    tmp_path: Path, encode: Callable[[Any], str], key: str, value: Any
) -> None:
    """A tuner writes str(value), an Estimator JSON, a ModelTrainer JSON except for text."""
    assert at(load_config(write_experiment(tmp_path), {key: encode(value)}), key) == value


@pytest.mark.parametrize("text", ["['dice'", "{'dice': b'1'}", "{1, 2}", "[" * 9999, "[" + "-" * 99999 + "1]", "[len]"])
def test_text_that_only_begins_like_a_python_value_is_refused_in_words(tmp_path: Path, text: str) -> None:
    for key in ("model.loss", "dataset.ignore_values", "channels"):
        [line] = problems_of(write_experiment(tmp_path), {key: text})
        assert line.startswith(f"hyperparameters.json: {key} = ")
        assert ": accepted: " in line


def test_hyperparameter_may_be_a_whole_list_of_sections(tmp_path: Path) -> None:
    config = load_config(
        write_experiment(tmp_path), {"classes": '[{"name": "rock"}, {"name": "snow", "color": "red"}]'}
    )
    assert [(each.name, each.color) for each in config.classes] == [("rock", "white"), ("snow", "red")]


@pytest.mark.parametrize("text", ["1", "0", "yes", "on", '"t"'])
def test_only_true_and_false_are_read_as_such(tmp_path: Path, text: str) -> None:
    path = write_experiment(tmp_path, {"model.name": "ternausnetv2"})
    assert load_config(path, {"model.is_deconv": "true"}).model.is_deconv is True
    assert load_config(path, {"model.is_deconv": "false"}).model.is_deconv is False
    [line] = problems_of(path, {"model.is_deconv": text})
    assert line == f"hyperparameters.json: model.is_deconv = {json.dumps(text)}: accepted: true or false"


@pytest.mark.parametrize("text", ["123", "1e3", "true", "[1]", "0.5", "nan"])
@pytest.mark.parametrize("key", ["dataset.image_bucket", "dataset.aws_profile", "classes.0.name", "checkpoint.path"])
def test_text_stays_text_whatever_it_looks_like(tmp_path: Path, key: str, text: str) -> None:
    for given in (text, json.dumps(text)):
        assert at(load_config(write_experiment(tmp_path), {key: given}), key) == text


def test_command_line_goes_before_hyperparameters_before_file_before_defaults(tmp_path: Path) -> None:
    hyperparameters, arguments = {"model.epochs": "3"}, {"model.epochs": "4"}
    assert load_config(write_experiment(tmp_path)).model.epochs == 50
    path = write_experiment(tmp_path, {"model.epochs": 2, "model.lr": 0.5})
    assert load_config(path).model.epochs == 2
    assert load_config(path, hyperparameters).model.epochs == 3
    assert load_config(path, hyperparameters, arguments).model.epochs == 4
    assert load_config(path, None, arguments).model.epochs == 4
    assert load_config(path, hyperparameters, arguments).model.lr == 0.5


def test_override_may_give_what_the_file_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("model: {name: albunet}\nclasses: [{name: snow}]\nchannels: [{bands: [1]}]")
    buckets = {"dataset.image_bucket": "imagery", "dataset.mask_bucket": "snow", "dataset.split.seed": "4"}
    config = load_config(tmp_path / "a.yml", buckets)
    assert (config.dataset.mask_bucket, config.dataset.split.seed) == ("snow", 4)


def test_override_mends_what_the_file_has_wrong(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, {"model.lr": "fast", "model.tile_size": 96})
    assert load_config(path, {"model.lr": "0.1", "model.tile_size": "128"}).model.tile_size == 128


@pytest.mark.parametrize(
    ("key", "text", "advice"),
    [
        ("model.epoch", "3", "no such key; did you mean model.epochs?"),
        ("epochs", "3", "no such key; did you mean model.epochs?"),
        ("dataset.split.from_", "a", "no such key; did you mean dataset.split.from?"),
        ("model.epochs", "3.5", "a whole number, from 1 to 99,999"),
        ("model.epochs", "true", "a whole number, from 1 to 99,999"),
        ("model.lr", "nan", "a number, above 0 to 1,000"),
        ("model.lr", "Infinity", "a number, above 0 to 1,000"),
        ("model.schedule", "cosin", "did you mean cosine?"),
        ("channels.0.bands", "1,2", "a list of"),
        ("classes.1.name", "ice", "nothing at this key"),
        ("classes.first.name", "ice", "nothing at this key"),
        ("dataset.cache.dir", "a\0b", "it holds a null character or a lone surrogate; remove that"),
        ("checkpoint.path", "a\0b", "it holds a null character or a lone surrogate; remove that"),
        ("dataset.endpoint_url", "https://host:port/x", "accepted: an address such as"),
        ("dataset.endpoint_url", "http://127.0.0.1:99999", "accepted: an address such as"),
        ("dataset.endpoint_url", "http://a%zz", "accepted: an address such as"),
        ("dataset.endpoint_url", "https://?x", "accepted: an address such as"),
        ("dataset.endpoint_url", "http://[::1", "accepted: an address such as"),
        ("model", "albunet", "a section with the keys name"),
    ],
)
def test_problem_of_an_override_names_where_it_came_from(tmp_path: Path, key: str, text: str, advice: str) -> None:
    path = write_experiment(tmp_path)
    for source, overrides in (("hyperparameters.json", [{key: text}]), ("command line", [{}, {key: text}])):
        [line] = problems_of(path, *overrides)
        assert line.startswith(f"{source}: {key} = {json.dumps(text)}: ")
        assert advice in line


@pytest.mark.parametrize(
    ("key", "text", "advice"),
    [
        ("model.tile_size", "96", "try 128"),
        ("model.encoder", "resnet51", "albunet accepts"),
        ("dataset.split.test_percent", "0.5", "less than 1 - train_percent"),
        ("channels.0.mean", "[0.5]", "one number for each of the 2 bands"),
        ("modle.epochs", "3", "did you mean model"),
        ("classes", '[{"name": 3}]', "accepted: text"),
    ],
)
def test_file_is_not_blamed_for_what_an_override_says(tmp_path: Path, key: str, text: str, advice: str) -> None:
    [line] = problems_of(write_experiment(tmp_path), {key: text})
    assert line.startswith("hyperparameters.json: ")
    assert advice in line


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yml", "", "a.yml: holds no sections; accepted at the top level: dataset, classes, channels, model, "),
        ("a.yml", "# only a comment\n", "a.yml: holds no sections"),
        ("a.yml", "- dataset\n- model\n", "a.yml: holds no sections"),
        ("a.json", "[1, 2]", "a.json: holds no sections"),
        ("a.json", '"model"', "a.json: holds no sections"),
        ("a.json", "", "a.json: not readable as JSON: Expecting value: line 1 column 1"),
        ("a.json", '{"model": {},}', "a.json: not readable as JSON: .*line 1"),
        ("a.yml", "model: [1\nclasses: }", "a.yml: not readable as YML: .*line 2"),
        ("a.yml", "model: {name: a}\n---\nmodel: {name: b}\n", "a.yml: not readable as YML: .*another document"),
        ("a.yml", "model: !!python/object/apply:os.getcwd []", "a.yml: not readable as YML: .* the tag … at line 1"),
        ("a.toml", "[model\nname = 'a'", r"a.toml: not readable as TOML: .*line 1"),
        ("a.yml", "model: {name: albunet}\nmodel: {lr: 1}\n", "a.yml: .*: the key 'model' stands twice at line 2, "),
        ("a.yml", "model: {name: albunet, lr: 1, lr: 1}\n", "a.yml: not readable as YML: the key 'lr' stands twice"),
        ("a.yml", "classes: [{name: a, name: b}]\n", "a.yml: not readable as YML: the key 'name' stands twice"),
        ("a.json", '{"model": {"lr": 1, "lr": 2}}', "a.json: not readable as JSON: the key 'lr' stands twice"),
        ("a.toml", "[model]\nlr = 1\nlr = 2\n", "a.toml: not readable as TOML: Cannot overwrite a value .*line 3"),
        ("a.txt", "model: {}", "a.txt: not an experiment file; accepted suffixes: .yml, .yaml, .json, .toml"),
        ("experiment", "model: {}", "experiment: not an experiment file; accepted suffixes"),
    ],
)  # fmt: skip
def test_file_that_is_no_experiment_is_refused_in_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    [line] = problems_of(tmp_path / name)
    assert re.match(message, line), line


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_bytes(b"\xff\xfa\x00\x01")
    [line] = problems_of(tmp_path / "a.yml")
    assert line.startswith("a.yml: not readable as YML: ")


def test_missing_file_of_a_relative_path_is_told_with_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [line] = problems_of(Path("a.yml"))
    assert line == f"a.yml: cannot be read: No such file or directory; it was looked for at {tmp_path}/a.yml"


def test_missing_file_and_folder_are_refused_by_their_path(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "a.yml") == [f"{tmp_path}/a.yml: cannot be read: No such file or directory"]
    assert problems_of((tmp_path / "b.yml").mkdir() or tmp_path / "b.yml") == [
        f"{tmp_path}/b.yml: cannot be read: Is a directory"
    ]


def test_empty_toml_misses_every_required_key(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("")
    found = problems_of(tmp_path / "a.toml")
    assert len(found) == 5
    assert all(line.startswith("a.toml: ") and ": missing; accepted: " in line for line in found)


def test_position_of_thousands_of_digits_is_nothing(tmp_path: Path) -> None:
    [line] = problems_of(write_experiment(tmp_path), {f"classes.{'1' * 5000}.name": "ice"})
    assert "there is nothing at this key to set" in line


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("dataset.image_bucket", "AKIA:hemlock@bucket/x"),
        ("dataset.image_bucket", "AKIA:hem/hemlock@bucket/x"),
        ("dataset.mask_bucket", "s3://hemlock@bucket"),
        ("checkpoint.path", "AKIA:hemlock@bucket/best.pth"),
        ("checkpoint.resume", "hemlock@bucket/best.pth"),
        ("model.pretrained", "s3://AKIA:hemlock@bucket/best.pth"),
        ("dataset.images", "AKIA:hemlock@bucket/x"),
    ],
)
def test_user_before_a_bucket_is_refused_and_not_shown(tmp_path: Path, key: str, text: str) -> None:
    [line] = problems_of(write_experiment(tmp_path), {key: text})
    assert line.startswith(f"hyperparameters.json: {key}")
    assert "hemlock" not in line
    assert "it holds a user or a password, which belong into environment" in line or key == "dataset.images"


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("dataset.image_bucket", "/data/a:b@2x"),
        ("dataset.image_bucket", "./a@b/c"),
        ("dataset.image_bucket", "bucket/day@2x"),
        ("dataset.image_bucket", "channel:images/a@b"),
        ("checkpoint.path", "best@2.pth"),
        ("checkpoint.path", ""),
        ("model.pretrained", "/weights@2.pth"),
    ],
)
def test_at_sign_in_a_name_is_no_user(tmp_path: Path, key: str, text: str) -> None:
    assert at(load_config(write_experiment(tmp_path), {key: text}), key) == text


def test_many_unknown_keys_are_counted_soon(tmp_path: Path) -> None:
    path, started = write_experiment(tmp_path), time.monotonic()
    lines = problems_of(path, {f"k{number}": "1" for number in range(90_000)})
    assert lines[40] == "and 89,960 more"
    assert time.monotonic() - started < 10


def test_more_bands_than_a_tiff_may_have_are_refused(tmp_path: Path) -> None:
    channels = [{"bands": [1] * 40_000}, {"bands": [1] * 40_000}]
    [line] = problems_of(write_experiment(tmp_path), {"channels": json.dumps(channels)})
    assert line == 'hyperparameters.json: channels = "80,000 bands": accepted: at most 65,535 bands in all'
