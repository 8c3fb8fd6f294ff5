"""The model card, made from plain data without a run."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from robosat_pink.config import load_config
from robosat_pink.report import model_card
from robosat_pink.report.model_card import ModelCard
from robosat_pink.report.templating import code_span, escape_markdown
from robosat_pink.training import metrics
from robosat_pink.training.intervals import INTERVAL_METRICS

HOSTILE = "<script>alert('1')</script> | `x` ``` [a](http://b) *c* & \\ {{ 7 * 7 }}"


def card(folder: Path, class_names: list[str], channel: dict[str, Any], scenes: list[str]) -> str:
    experiment = {
        "dataset": {"image_bucket": "channel:images", "mask_bucket": "channel:masks"},
        "classes": [{"name": name} for name in class_names],
        "channels": [channel],
        "model": {"name": "albunet", "encoder": "resnet18", "loss": "cross_entropy" if class_names[1:] else "lovasz"},
    }
    (folder / "experiment.yml").write_text(yaml.safe_dump(experiment))
    size = max(len(class_names), 2)
    scores = metrics.scores(np.ones((size, size)), class_names, 0.5)
    return model_card.render(
        ModelCard(
            config=load_config(folder / "experiment.yml"),
            scenes=scenes,
            zxy=np.array([[15, 5524, 12666], [15, 5525, 12666]]),
            split_sizes={"train": 1, "val": 1, "holdout": 0},
            version="0.1.0",
            epochs=2,
            best_epoch=1,
            metrics={"validation tiles": scores},
            best=scores | {"intervals": {name: [0.25, 0.5] for name in INTERVAL_METRICS}, "at_threshold": scores},
            threshold=None if class_names[1:] else 0.35,
            meanings=["What an interval says.", "What the rest says."],
            baseline=f"Calling every pixel {class_names[0]} would score an IoU of 0.5000.",
            tile_pixels=512,
            finished="2026-01-01 00:00 UTC",
        )
    )


def test_card_of_hostile_names_has_the_lines_and_columns_of_one_of_harmless_names(tmp_path: Path) -> None:
    channel = {"bands": [1, 2, 3]}
    hostile = card(tmp_path, ["ground", f"{HOSTILE}\nimport os"], channel, [HOSTILE])
    harmless = card(tmp_path, ["ground", "snow"], channel, ["scene"])
    assert len(hostile.splitlines()) == len(harmless.splitlines())
    assert [line.replace("\\|", "").count("|") for line in hostile.splitlines() if line.startswith("|")] == [
        line.count("|") for line in harmless.splitlines() if line.startswith("|")
    ]
    before_code, _, rest = hostile.partition("```python\n")
    body = before_code.split("---\n")[2] + rest.partition("\n```")[2].replace(code_span(HOSTILE), "")
    assert "<script" not in body
    assert "](" not in re.sub(r"\\.", "", body)


def test_card_has_intervals_and_the_numbers_above_the_threshold_of_a_single_class(tmp_path: Path) -> None:
    single = card(tmp_path, ["snow"], {"bands": [1]}, ["scene"])
    assert "| validation tiles, best weights | value | 95 % interval | above 0.35 |" in single
    assert "| iou | 0.3333 | 0.2500 to 0.5000 | 0.3333 |" in single
    assert "- What an interval says.\n- What the rest says.\n- `classify(image, threshold=" in single
    several = card(tmp_path, ["ground", "snow"], {"bands": [1]}, ["scene"])
    assert "| iou | 0.3333 | 0.2500 to 0.5000 |\n" in several
    assert "threshold" not in several


def test_card_exports_for_the_dtype_of_images_where_the_scale_depends_on_it(tmp_path: Path) -> None:
    command = "`python -m robosat_pink.trained export best.pth --to model.pt2{}` writes"
    assert command.format("") in card(tmp_path, ["snow"], {"bands": [1], "scale": 255}, ["scene"])
    assert command.format(" --dtype DTYPE_OF_IMAGES") in card(tmp_path, ["snow"], {"bands": [1]}, ["scene"])


def test_head_of_the_card_is_yaml_whatever_the_names(tmp_path: Path) -> None:
    names = ["ground", f"{HOSTILE}\n---\nlicense: mit", 'a "b": [c]']
    head = yaml.safe_load(card(tmp_path, names, {"bands": [1]}, ["scene"]).split("---\n")[1])
    assert head["license"] == "other"
    assert head["tags"] == ["image-segmentation", "remote-sensing", *names]


def test_code_of_the_card_is_python_whatever_the_names(tmp_path: Path) -> None:
    channel = {"bands": [1, "near'infrared\")\nimport os"], "scale": "tags"}
    text = card(tmp_path, [f"{HOSTILE}\nimport os"], channel, ["scene"])
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    code = "".join(blocks)
    lines = code.splitlines()
    assert [line for line in lines if line.startswith(("import", "from"))] == [
        "import rasterio", "from robosat_pink.trained import load_model", "import numpy", "import torch"
    ]  # fmt: skip
    compile(code, "card", "exec")


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("snow_cover (deep)", "snow_cover (deep)"),
        ("less [0.37, 0.38]", "less [0.37, 0.38]"),
        ("a | b", r"a \| b"),
        ("a\n\n# b", "a # b"),
        ("<b>&nbsp;", "&lt;b>&amp;nbsp;"),
        ("[a](http://b)", r"[a\](http://b)"),
        ("![a][b]", r"![a\][b]"),
        ("`a` *b* c\\", r"\`a\` \*b\* c\\"),
    ],
)
def test_markdown_of_a_text_shows_it_as_it_is(text: str, escaped: str) -> None:
    assert escape_markdown(text) == escaped


@pytest.mark.parametrize(
    ("text", "span"),
    [("s3://bucket/a", "`s3://bucket/a`"), ("a`b", "`` a`b ``"), ("``", "``` `` ```"), ("a\nb", "`a b`")],
)
def test_code_span_stands_between_more_backticks_than_it_has(text: str, span: str) -> None:
    assert code_span(text) == span
