"""Equations and presets of a method's page, from docstrings of `adbench/losses` and heads of files in `conf/method`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from adbench.experiment.advice import PURPOSES
from pages import ROOT

#: Page in docs/methods -> modules of its equations, and the methods whose presets stand on it.
PAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cbigan": (("cbigan",), ("cbigan", "egbad")),
    "igd": (("igd",), ("igd",)),
    "pwae": (("pwae",), ("pwae",)),
    "ssae": (("ssae",), ("ssae",)),
    "esad": (("esad",), ("esad",)),
    "baselines": (
        ("hypersphere", "reconstruction"),
        ("deep_svdd", "deep_sad", "autoencoder", "vae", "ocsvm", "isolation_forest", "kde", "nearest_neighbour", "pca",
         "brightness"),
    ),
    "reference": (("patchcore", "padim", "neighbours"), ("patchcore", "padim", "knn")),
}  # fmt: skip


class Equation(NamedTuple):
    """One documented equation."""

    name: str
    module: str  # path in the repository
    what: str
    source: str


def escaped(text: str) -> str:
    """Text as Markdown shows it in a table: what stands in backticks stays."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\|_*])", r"\\\1", part) for part in parts)


def sentence(text: str) -> str:
    """The first sentence, without its full stop. A stop within brackets or after an abbreviation ends none."""
    text = " ".join(text.split())
    for stop in re.finditer(r"\.(?= [A-Z(]|$)", text):
        before = text[: stop.start()]
        if before.count("(") == before.count(")") and not re.search(r"\b(al|Eq|Eqs|Fig|vs|e\.g|i\.e)$", before):
            return before
    return text


def equations(module: str) -> Iterator[Equation]:
    """The functions of a module of `adbench/losses` whose docstrings name a source."""
    path = f"adbench/losses/{module}.py"
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
        source = re.search(r"Source: (.+?)(?:\n\n|\Z)", text or "", re.DOTALL)
        if text and source and isinstance(node, ast.FunctionDef):
            what = sentence(text.split("\n\n")[0].split("Source: ")[0].strip())
            yield Equation(node.name, path, _without_shapes(what), sentence(source[1]))


def _without_shapes(text: str) -> str:
    """What a function computes, without the shapes before or after it, which stand in its documentation."""
    text = re.sub(r"^\(.*-> \([^()]*\): ", "", text)
    return re.sub(r"(: (\w+ )?\(.*->.*|, \([^()]*\) -> .*|: \([^()]*\))$", "", text)


def equation_table(page: str) -> str:
    """Markdown: function, what it computes, where it is printed."""
    rows = [
        f"| [`{one.name}`](../../{one.module}) | {escaped(one.what)} | {escaped(one.source.rstrip('.'))} |"
        for module in PAGES[page][0]
        for one in equations(module)
    ]
    return "\n".join(["| function | what | where |", "|---|---|---|", *rows])


def head(path: Path) -> str:
    """The comment at the top of a configuration file, as one text."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):  # Hydra's own
            lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def presets(method: str) -> list[str]:
    """A method's names, its own first."""
    folder = ROOT / "conf" / "method"
    found = [folder / f"{method}.yaml", *sorted((folder / method).glob("*.yaml"))]
    return [path.relative_to(folder).with_suffix("").as_posix() for path in found if path.stem[0] != "_"]


def preset_table(page: str) -> str:
    """Markdown: preset, and the first sentence of its file."""
    rows = [
        f"| [`{name}`](../../conf/method/{name}.yaml) | "
        f"{escaped(sentence(head(ROOT / 'conf' / 'method' / f'{name}.yaml')))} |"
        for method in PAGES[page][1]
        for name in presets(method)
    ]
    return "\n".join(["| preset | what |", "|---|---|", *rows])


def purpose_table() -> str:
    """Markdown: what each method is for and what it costs, as `--help` says it."""
    page_of = {method: page for page, (_, methods) in PAGES.items() for method in methods}
    rows = []
    for method, (what, cost) in PURPOSES.items():
        place = f"methods/{page_of[method]}.md" if method in page_of else f"adapters.md#{method.partition('/')[0]}"
        cost = cost.replace("docs/adapters.md", "[that page](../adapters.md)")
        rows.append(f"| [`{method}`](../{place}) | {what} | {cost} |")
    return "\n".join(["| `method=` | for | cost |", "|---|---|---|", *rows])
