"""Just enough HTML: text is escaped unless it says that it is markup."""

import html
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[([^\]]+)\]\((/[^)\s]*)\)")  # to places of this service only


class Html(NamedTuple):
    """Markup."""

    text: str


def raw(markup: str) -> Html:
    """Markup that was written here."""
    return Html(markup)


def escaped(content: Html | str) -> str:
    return content.text if isinstance(content, Html) else html.escape(content)


def joined(*parts: Html | str) -> Html:
    """One after the other."""
    return Html("".join(escaped(part) for part in parts))


def element(tag: str, content: Html | str, **attributes: str | None) -> Html:
    """An element. An attribute's underscores are hyphens, one at its end is dropped; None leaves it out."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{written}>{escaped(content)}</{tag}>")


def inline(text: str) -> Html:
    """A sentence with `code` and [links](/to/here)."""
    marked = CODE.sub(r"<code>\1</code>", html.escape(text, quote=False))
    return Html(LINK.sub(r'<a href="\2">\1</a>', marked))


def table(head: Sequence[str], rows: Iterable[Sequence[Html | str]]) -> Html:
    """A table that scrolls by itself where it is too wide, also by keyboard. Each cell knows the name of its column."""
    heads = joined(*(element("th", name, scope="col") for name in head))
    lines = [
        element("tr", joined(*(element("td", cell, data_name=name) for name, cell in zip(head, row, strict=True))))
        for row in rows
    ]
    body = joined(element("thead", element("tr", heads)), element("tbody", joined(*lines)))
    return element("div", element("table", body), class_="scroll", tabindex="0")


def anchor(schema: str) -> str:
    """Where a schema stands on the page."""
    return f"shape-{schema}"
