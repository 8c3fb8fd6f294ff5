"""Parts of an HTML page as text: numbers, tables, pictures. Called by `page`; knows nothing of training.

Everything given as text is escaped here, once; what is given as `Html` stands as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape


class Html(str):
    """Text that is HTML already."""


Cell = str | int | float | None


def html(value: Cell) -> Html:
    """What a reader sees of a value, and for whoever reads the page by program the value itself to its last digit."""
    if isinstance(value, Html):
        return value
    if isinstance(value, str):
        return Html(escape(value))
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Html('<data value=""><abbr title="undefined: nothing to divide by">&ndash;</abbr></data>')
    shown = f"{value:,}".replace(",", "\u202f") if isinstance(value, int) else f"{value:.4f}"
    return Html(f'<data value="{value!r}">{shown}</data>')


def table(
    caption: str,
    head: Sequence[Cell],
    rows: Iterable[Sequence[Cell]],
    *,
    foot: Sequence[Cell] | None = None,
    kind: str = "tight",
) -> Html:
    """The first column names the rows. It scrolls by itself where the page is narrow, by keyboard too."""
    columns = "".join(f'<th scope="col">{html(each)}</th>' for each in head)
    body = "".join(_row(row) for row in rows)
    last = f"<tfoot>{_row(foot)}</tfoot>" if foot else ""
    return Html(
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0"><table class="{kind}">'
        f"<caption><span>{escape(caption)}</span></caption>"
        f"<thead><tr>{columns}</tr></thead><tbody>{body}</tbody>{last}</table></div>"
    )


def section(identity: str, title: str, *parts: str) -> Html:
    return Html(f'<section id="{identity}" aria-labelledby="{identity}-title">'
                f'<h2 id="{identity}-title">{escape(title)}</h2>{"".join(parts)}</section>')  # fmt: skip


def paragraph(text: str, kind: str = "") -> Html:
    return Html(f"<p{f' class={kind}' if kind else ''}>{html(text)}</p>")


def picture(source: str, words: str, caption: str = "", kind: str = "") -> Html:
    """An image of which `words` tell those who do not see it."""
    below = f"<figcaption>{html(caption)}</figcaption>" if caption else ""
    image = f'<img src="{source}" alt="{escape(words)}">'
    return Html(f"<figure{f' class={kind}' if kind else ''}>{image}{below}</figure>")


def swatch(color: str, words: str) -> Html:
    return Html(f'<span class="key"><i style="background:{escape(color)}"></i>{html(words)}</span>')


def anchor(address: str, words: str) -> Html:
    """To another page, which is asked for only when it is followed."""
    return Html(f'<a href="{escape(address)}" rel="noreferrer">{escape(words)}</a>')


def _row(cells: Sequence[Cell]) -> str:
    first, *rest = cells
    numbers = "".join(f"<td>{html(each)}</td>" for each in rest)
    return f'<tr><th scope="row">{html(first)}</th>{numbers}</tr>'
