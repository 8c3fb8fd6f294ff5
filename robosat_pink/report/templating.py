"""Jinja2 for the report (HTML) and the model card (Markdown): it escapes all printed values that are not marked safe.

Called by `page` and `model_card`. Jinja2 is imported at the first rendering, so that training does not wait for it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from robosat_pink.container.quantities import count

if TYPE_CHECKING:
    from jinja2 import Environment


def html_environment() -> Environment:
    environment = _environment()
    environment.filters["counted"] = count
    return environment


def markdown_environment() -> Environment:
    from markupsafe import Markup

    environment = _environment(finalize=_escaped_unless_safe)
    environment.filters["code"] = lambda text: Markup(code_span(text))  # noqa: S704 - escaped for Markdown
    environment.filters["one_line"] = one_line
    return environment


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def escape_markdown(text: str) -> str:
    """Escape text so that Markdown shows it literally in a paragraph or a table: as no HTML, link, code or column."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*|]|\](?=[(\[]))", r"\\\1", text)


def code_span(text: str) -> str:
    """Text as a code span, fenced by more backticks than it has in a row. CommonMark 0.31, section 6.1."""
    text = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def _environment(**options: Any) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    return Environment(
        autoescape=select_autoescape(["html.j2"]),
        loader=PackageLoader("robosat_pink.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )


def _escaped_unless_safe(value: Any) -> str:
    return str(value) if hasattr(value, "__html__") else escape_markdown(str(value))
