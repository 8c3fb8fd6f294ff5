"""Experiment files that are no such thing, or made to burst a reader: refused soon, and in few words."""

import json
import os
import socket
import time
from pathlib import Path

import pytest

from robosat_pink.config import Config, load_config
from robosat_pink.config.constraints import between
from robosat_pink.config.keys import leaf_keys
from robosat_pink.container.failure_file import failure_text
from robosat_pink.errors import ConfigError

YAML = "dataset: {image_bucket: a, mask_bucket: b}\nclasses: [{name: snow}]\nchannels: [{bands: [1]}]\n"
SMALLEST = YAML + "model: {name: albunet}\n"
SOON_S = 30  # a machine may be busy; without a limit each of these takes minutes, hours or all memory


def refusal(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert time.monotonic() - started < SOON_S
    assert len(str(caught.value)) < 5000
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yml", SMALLEST),
        ("a.toml", "model.name = 'albunet'\nclasses = [{name = 'snow'}]\nchannels = [{bands = [1]}]\n"
                   "[dataset]\nimage_bucket = 'a'\nmask_bucket = 'b'\n"),
        ("a.json", json.dumps({"dataset": {"image_bucket": "a", "mask_bucket": "b"}, "classes": [{"name": "snow"}],
                               "channels": [{"bands": [1]}], "model": {"name": "albunet"}})),
    ],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    (tmp_path / name).write_bytes(text.replace("\n", "\r\n").encode(encoding))
    assert load_config(tmp_path / name).classes[0].name == "snow"


def test_what_is_no_regular_file_is_refused_without_a_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.yml")
    os.symlink("/dev/zero", "device.yml")
    os.mkdir("folder.yml")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.yml")
        for name, reason in (
            ("pipe", "it is a pipe or a device; accepted: a regular file"),
            ("device", "it is a pipe or a device; accepted: a regular file"),
            ("folder", "Is a directory"),
            ("socket", "No such device or address"),
        ):
            with pytest.raises(ConfigError, match=f"^{name}.yml: cannot be read: {reason}; it was looked for"):
                load_config(f"{name}.yml")


def test_file_of_more_than_a_megabyte_is_refused_before_it_is_read(tmp_path: Path) -> None:
    assert "longer than the 1,000,000 bytes" in refusal(tmp_path, "a.yml", SMALLEST + "#" * 10**6)
    with (tmp_path / "b.yml").open("wb") as file:
        file.truncate(10**13)
    with pytest.raises(ConfigError, match="longer than the 1,000,000 bytes"):
        load_config(tmp_path / "b.yml")


def test_aliases_are_expanded_to_a_size_that_is_told(tmp_path: Path) -> None:
    lists = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12))
    merges = "\n".join(f"m{n}: &m{n}\n  <<: [{', '.join([f'*m{n - 1}'] * 9)}]" for n in range(1, 12))
    for text in (f"l0: &l0 [x]\n{lists}", f"m0: &m0 {{x: 1}}\n{merges}", f"l0: &l0 [x]\n{lists}\nmodel: *l11"):
        assert "more than 20,000 values, counting what aliases stand for" in refusal(tmp_path, "a.yml", text)
    assert "nested deeper than 50 levels" in refusal(tmp_path, "a.yml", "model: &a [*a]")
    assert "nested deeper than 50 levels" in refusal(tmp_path, "a.yml", "model: &a {x: *a}")


def test_alias_and_merge_of_usual_size_serve(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text(YAML + "model: &m {name: albunet}\ncheckpoint: &c {path: a.pth}\nruntime: {<<: {}}")
    assert load_config(tmp_path / "a.yml").checkpoint.path == "a.pth"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yml", "model: " + "[" * 100_000),
        ("a.yml", "- " * 100_000),
        ("a.yml", "model: " + "{a: " * 60 + "}" * 60),
        ("a.json", '{"model": ' * 100_000),
        ("a.json", '{"model": ' * 60 + "1" + "}" * 60),
        ("a.toml", "model = " + "[" * 100_000),
        ("a.toml", "a." * 300_000 + "b = 1"),
        ("a.toml", "model = {" + "'a' . \"b\".c ." * 50_000 + "b = 1}"),
        ("a.toml", "[" + "a." * 300_000 + "b]"),
    ],
)  # fmt: skip
def test_deep_nesting_is_told(tmp_path: Path, name: str, text: str) -> None:
    assert refusal(tmp_path, name, text).endswith("it is nested deeper than 50 levels")


def test_comments_and_texts_of_many_dots_are_no_deep_keys(tmp_path: Path) -> None:
    text = f"# {'.' * 200}\nmodel.name = 'albunet' # {'. ' * 200}\nclasses = [{{name = '{'.' * 60}'}}]\n"
    (tmp_path / "a.toml").write_text(
        f"{text}channels = [{{bands = [1]}}]\n[dataset]\nimage_bucket = 'a'\nmask_bucket = 'b'\n"
    )
    assert load_config(tmp_path / "a.toml").classes[0].name == "." * 60


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yml", SMALLEST + "runtime: {seed: [" + "1, " * 100_000 + "]}"),
        ("a.yml", "".join(f"k{number}: 1\n" for number in range(60_000))),
        ("a.json", '{"classes": [' + "1, " * 100_000 + "1]}"),
        ("a.toml", "classes = [" + "1, " * 100_000 + "1]"),
        ("a.toml", "".join(f"[[classes]]\nname = '{number}'\n" for number in range(25_000))),
    ],
)  # fmt: skip
def test_more_values_than_are_accepted_are_told(tmp_path: Path, name: str, text: str) -> None:
    assert "it holds more than 20,000 values" in refusal(tmp_path, name, text)


@pytest.mark.parametrize(
    "value",
    [
        "!!int ''",
        "!!float ''",
        "!!bool maybe",
        "!!timestamp yesterday",
        "!!python/object:os.system x",
        "{[1]: 2}",
        "{? {a: 1} : 2}",
        "1:" * 400_000 + "1",
        "1:" * 400_000 + "1.0",
        "0x" + "f" * 400_000,
        "0x" + "f" * 900,
        "2018-99-99",
        "\\x00",
        "*nobody",
        "&a &b c",
    ],
)
def test_whatever_a_parser_stumbles_over_is_told(tmp_path: Path, value: str) -> None:
    assert refusal(tmp_path, "a.yml", f"{SMALLEST}runtime: {{seed: {value}}}").startswith("a.yml: ")


def test_numbers_too_long_to_be_written_are_refused(tmp_path: Path) -> None:
    text = "model.name = 'albunet'\nmodel.lr = 0x" + "f" * 5000
    assert "a.toml: model.lr = (int): accepted: a number, above 0 to 1,000" in refusal(tmp_path, "a.toml", text)


def test_value_and_list_of_problems_are_cut_and_counted(tmp_path: Path) -> None:
    message = refusal(tmp_path, "a.yml", SMALLEST + "checkpoint: {if_different: " + "x" * 300 + "}")
    assert f'"{"x" * 99}… (302 characters): accepted: refuse or continue' in message
    message = refusal(tmp_path, "a.yml", SMALLEST + "".join(f"key{n}: 1\n" for n in range(1000)))
    assert len(message.splitlines()) == 41
    assert message.endswith("\nand 960 more")
    message = refusal(tmp_path, "a.yml", SMALLEST + "checkpoint: {path: " + "x" * 5000 + "}")
    assert message.endswith("; no text may be longer than 4,096 characters here; shorten it")


def test_expression_may_list_thousands_of_directories(tmp_path: Path) -> None:
    for letters, is_refused in ((100_000, False), (100_001, True)):
        text = SMALLEST.replace("mask_bucket: b", f"mask_bucket: b, imagery_directory_regex: {'x' * letters}")
        if is_refused:
            assert "longer than 100,000 characters" in refusal(tmp_path, "a.yml", text)
        else:
            (tmp_path / "a.yml").write_text(text)
            assert len(load_config(tmp_path / "a.yml").dataset.imagery_directory_regex) == letters


def test_expression_that_python_cannot_take_is_told(tmp_path: Path) -> None:
    for expression, reason in (("(" * 3000 + ")" * 1000, "nested too deeply"), ("a{99999999999999}", "too large")):
        text = SMALLEST.replace("mask_bucket: b", f"mask_bucket: b, imagery_directory_regex: '{expression}'")
        assert reason in refusal(tmp_path, "a.yml", text)


def test_every_number_has_an_upper_bound_that_is_told() -> None:
    """Of those that stand once in a file; a list has its rule by entry."""
    unbounded = [
        name
        for name, key in leaf_keys(Config)
        if {int, float} & set(key.types)
        and "[]" not in name
        and not (key.rule and key.rule.high < 2**63 and f"to {key.rule.high:,}" in key.accepts)
    ]
    assert unbounded == ["dataset.train_percent", "dataset.split.test_percent", "model.ema"]  # all below 1
    assert between(1, 65_535).accepts == "from 1 to 65,535"


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "batch_size", 10_001),
        ("model", "tile_size", 2**40),
        ("model", "epochs", 100_000),
        ("model", "num_filters", 1025),
        ("model", "lr", 1001.0),
        ("model", "decay", 1e9),
        ("model", "loss", {"lovasz": 1e7}),
        ("runtime", "workers", 10**6),
        ("runtime", "processes", 1025),
        ("runtime", "accumulation", 10_001),
        ("runtime", "peer_timeout_s", 86_401),
        ("runtime", "max_seconds", 1e300),
        ("checkpoint", "every_minutes", 1e300),
        ("dataset", "cache", {"max_gb": 1e300}),
    ],
)
def test_number_above_its_bound_is_refused(tmp_path: Path, section: str, key: str, value: object) -> None:
    tree = {
        "dataset": {"image_bucket": "a", "mask_bucket": "b"},
        "classes": [{"name": "snow"}],
        "channels": [{"bands": [1]}],
        "model": {"name": "albunet"},
    }
    tree.setdefault(section, {})[key] = value  # type: ignore[index, call-overload]
    assert f"{section}.{key}" in refusal(tmp_path, "a.json", json.dumps(tree))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("a.yml", "password: *hemlock"),
        ("a.yml", "password: !hemlock x"),
        ("a.yml", "password: !hem!lock hemlock"),
        ("a.yml", "password: a,hemlock: x"),
        ("a.yml", "token: abc hemlock: x"),
        ("a.yml", "token: !!int hemlock"),
        ("a.yml", "token: !!bool hemlock"),
        ("a.yml", "token: !!timestamp hemlock"),
        ("a.yml", "token: |\n  hemlock\n x: ["),
        ("a.yml", 'token: "hemlock'),
        ("a.yml", "token: @hemlock"),
        ("a.json", '{"token": hemlock}'),
        ("a.json", '{"token": "hemlock\n"}'),
        ("a.toml", "token = hemlock"),
        ("a.toml", 'token = "hemlock\\q"'),
        ("a.toml", "[hemlock]\n[hemlock]"),
    ],
)
def test_file_that_cannot_be_read_is_refused_without_a_word_of_what_stands_there(
    tmp_path: Path, name: str, line: str
) -> None:
    (tmp_path / name).write_text(line)
    with pytest.raises(ConfigError, match=r"line [123]") as caught:
        load_config(tmp_path / name)
    assert "hemlock" not in str(caught.value) + failure_text(caught.value)


def test_what_a_parser_expected_is_told_with_where(tmp_path: Path) -> None:
    assert refusal(tmp_path, "a.yml", "model: [a b: c, d}") == (
        "a.yml: not readable as YML: expected ',' or ']', but got '}' at line 1, column 18"
    )
    assert refusal(tmp_path, "a.yml", "a: !!int b").endswith(
        "the value is no int at line 1, column 4; quote it if it is text"
    )


def test_text_that_no_encoding_has_is_refused(tmp_path: Path) -> None:
    text = json.dumps({"dataset": {"image_bucket": "/\ud800", "mask_bucket": "b"}})
    message = refusal(tmp_path, "a.json", text)
    assert "dataset.image_bucket = " in message
    assert "a null character or a lone surrogate; remove that" in message
