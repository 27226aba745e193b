"""The report's templates. Each language escapes every value by itself: HTML, Markdown, LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "–": "--", "…": r"\dots{}", "≤": r"$\leq$",
    "†": r"\textdagger{}", "λ": r"$\lambda$", "γ": r"$\gamma$",
}  # fmt: skip


class Emphasis(str):
    """Text that a table sets in italics."""

    __slots__ = ()


def md(text: Any) -> str:
    """Text that Markdown and the HTML inside it take as text."""
    flat = " ".join(str(text).split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    flat = re.sub(r"([\\`*_\[\]|])", r"\\\1", flat)
    return f"*{flat}*" if isinstance(text, Emphasis) and flat else flat


def tex(text: Any) -> str:
    """Text that LaTeX takes as text; a character that pdflatex does not know becomes a question mark."""
    flat = " ".join(str(text).split())
    flat = "".join(_TEX.get(c, c if c.isascii() else "?") for c in flat)
    return rf"\textit{{{flat}}}" if isinstance(text, Emphasis) else flat


def file_name(text: str) -> str:
    """Lower-case letters, digits and hyphens: for names of files and of places on the page."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


@cache
def environment(escape: Callable[[Any], str] | None = None, **syntax: Any) -> Environment:
    """Templates whose values pass through `escape`; None: through Jinja's escape for HTML.

    A value that is markup already (a macro's, a filter `safe`'s) passes as it is.
    """

    def once(value: Any) -> Any:
        return value if escape is None or hasattr(value, "__html__") else Markup(escape(value))  # noqa: S704 (escaped)

    templates = Environment(
        loader=PackageLoader(__package__), autoescape=True, finalize=once, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, auto_reload=False, **syntax,
    )  # fmt: skip
    templates.filters["file_name"] = file_name
    return templates


def html(template: str, **values: Any) -> str:
    """A template of HTML, filled."""
    return environment().get_template(template).render(values)


def markdown(template: str, **values: Any) -> str:
    """A template of Markdown, filled."""
    return environment(md).get_template(template).render(values)


def md_table(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown, without a line's end behind it."""
    module: Any = environment(md).get_template("table.md").module
    return str(module.table(header, list(rows))).rstrip("\n")


def latex(template: str, **values: Any) -> str:
    """A template of LaTeX, filled. Its values stand in << >>, its statements in <% %>."""
    syntax = {"block_start_string": "<%", "block_end_string": "%>", "variable_start_string": "<<",
              "variable_end_string": ">>", "comment_start_string": "<#", "comment_end_string": "#>"}  # fmt: skip
    return environment(tex, **syntax).get_template(template).render(values)


def asset(name: str) -> str:
    """A file beside the templates that is taken as it is."""
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")
