"""The reference: configuration keys, commands, Python modules. It is written when the site is built."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from adbench.__main__ import COMMANDS
from adbench.experiment.groups import GROUPS
from pages import ROOT
from pages.equations import escaped, head

CONF = ROOT / "conf"
WHAT = {
    "method": "what is trained", "data": "what it is trained and tested on", "protocol": "which rows train",
    "pretraining": "how its encoder begins", "budget": "how long it trains", "trainer": "where and how it computes",
    "logger": "where loss terms are written", "callbacks": "further Lightning callbacks",
    "experiment": "tables and figures of the papers, as sweeps",
}  # fmt: skip
#: Packages whose modules have a page, in the order of the reference.
PUBLIC = ("detection", "losses", "methods", "networks", "transforms", "data", "pretraining", "evaluation")


class Key(NamedTuple):
    """A key of a configuration file."""

    name: str  # dotted
    value: str
    meaning: str


def slug(text: str) -> str:
    """A heading's anchor, as a code host makes it."""
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


# -- configuration ----------------------------------------------------------------------------------------------------


def keys(path: Path) -> Iterator[Key]:
    """The keys of a YAML file of this project, with what its comments say of them."""
    above: list[tuple[int, str]] = []  # (indent, key) of the mappings that a line is in
    waiting: list[str] = []  # comments on lines of their own belong to the next key
    lines = path.read_text(encoding="utf-8").splitlines()
    lines = lines[next((at for at, line in enumerate(lines) if not line.startswith("#")), len(lines)) :]
    for at, line in enumerate(lines):
        if line.strip().startswith("#"):
            waiting.append(line.strip(" #"))
            continue
        found = re.match(r"( *)([\w./-]+):(?: (.*?))?(?: +# (.*))?$", line)
        if not found:
            continue
        indent, name, value, comment = len(found[1]), found[2], (found[3] or "").strip(), found[4] or ""
        above = [(depth, key) for depth, key in above if depth < indent]
        dotted = ".".join([*(key for _, key in above), name])
        above.append((indent, name))
        meaning = " ".join([*waiting, comment]).strip()
        waiting = []
        if value in (">-", ">", "|"):
            value = " ".join(_block(lines[at + 1 :], indent))
        if dotted.split(".")[0] in ("defaults", "hydra") or dotted.endswith("_partial_") or not (value or meaning):
            continue
        yield Key(dotted, value, meaning)


def _block(lines: list[str], indent: int) -> Iterator[str]:
    for line in lines:
        if line.strip() and len(line) - len(line.lstrip()) <= indent:
            return
        yield line.strip()


def target_of(path: Path) -> str:
    """What a file builds, its own or that of the file it starts from; "" where it builds nothing."""
    text = path.read_text(encoding="utf-8")
    if own := re.search(r"^_target_: *(\S+)", text, re.MULTILINE):
        return own[1]
    group = path.relative_to(CONF).parts[0]
    for name in re.findall(r"^(?: +- |defaults: \[)/?([\w/.-]+?)(?:@_here_)?(?:,.*)?\]?$", text, re.MULTILINE):
        for base in (CONF / f"{name}.yaml", CONF / group / f"{name}.yaml", path.parent / f"{name}.yaml"):
            if name != "_self_" and base.is_file() and base != path and (found := target_of(base)):
                return found
    return ""


@cache
def arguments(target: str) -> dict[str, str]:
    """Argument -> meaning, by the docstring of a class or function, those of its bases where it says nothing."""
    module, _, name = target.rpartition(".")
    file = ROOT / (module.replace(".", "/") + ".py")
    if not file.is_file():
        return {}
    tree = ast.parse(file.read_text(encoding="utf-8"))
    node = next((n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name), None)
    if node is None:
        return {}
    section = re.search(r"^Args:\n((?: +.*\n?|\n)*)", (ast.get_docstring(node) or "") + "\n", re.MULTILINE)
    found: dict[str, str] = {}
    for entry in re.split(r"^    (?=\S)", section[1], flags=re.MULTILINE)[1:] if section else ():
        names, _, meaning = entry.partition(":")
        for one in names.split(","):
            found[one.strip().lstrip("*")] = " ".join(meaning.split())
    return found


def _text(comment: str) -> str:
    return escaped(comment).replace("<", "&lt;")


def _heading(path: Path, level: str = "##") -> str:
    name = path.relative_to(CONF)
    return f"{level} {name.relative_to(name.parts[0]).with_suffix('').as_posix() if len(name.parts) > 1 else name.stem}"


def _prose(path: Path) -> str:
    """A file's head: lines that stand in by three spaces are commands."""
    parts: list[tuple[bool, list[str]]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if line.startswith("# @"):
            continue
        text = line[1:]
        code = text.startswith("   ")
        if not text.strip() or not parts or parts[-1][0] != code:
            parts.append((code, []))
        if text.strip():
            parts[-1][1].append(text.strip())
    blocks = [("```bash\n" + "\n".join(ls) + "\n```") if code else _text(" ".join(ls)) for code, ls in parts if ls]
    return "\n\n".join(blocks)


def _file(path: Path) -> str:
    """A file's section: what it is, what it builds, its keys."""
    parts = [_heading(path), _prose(path)]
    target = target_of(path)
    own = list(keys(path))
    meanings = arguments(target) | _of_parts(own)
    if target.startswith("adbench."):
        parts.append(f"Builds [`{target}`][{target}].")
    if path.relative_to(CONF).parts[0] == "experiment":
        parts.append("```yaml\n" + _without_head(path) + "\n```")
    elif own:
        rows = [
            f"| `{key.name}` | {f'`{_cell(key.value)}`' if key.value else ''} | "
            f"{_text(key.meaning or meanings.get(key.name, ''))} |"
            for key in own
            if key.name != "_target_"
        ]
        if rows:
            parts.append("\n".join(["| key | value | meaning |", "|---|---|---|", *rows]))
    return "\n\n".join(part for part in parts if part)


def _of_parts(found: list[Key]) -> dict[str, str]:
    """Meanings of the keys of objects within a file, by the arguments of what they build."""
    parts = {key.name.removesuffix("._target_"): key.value for key in found if key.name.endswith("._target_")}
    return {
        f"{part}.{argument}": meaning
        for part, target in parts.items()
        for argument, meaning in arguments(target).items()
    }


def _cell(value: str) -> str:
    return value.replace("|", "\\|")


def _without_head(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(lines[next(at for at, line in enumerate(lines) if not line.startswith("#")) :])


def configuration(group: str) -> str:
    """A group's page."""
    paths = [p for p in (CONF / group).rglob("*.yaml") if not p.stem.startswith("_") or list(keys(p))]
    paths.sort(key=lambda p: (p.relative_to(CONF / group).parts[0].removesuffix(".yaml"), len(p.parts), p.name))
    intro = (
        f"`{group}=NAME`: {WHAT[group]}. Every key below is one of `{group}.KEY=VALUE` on the command line. "
        "A file that starts from another one lists what it changes. `${...}` takes its value from elsewhere: "
        "`${by_data:NAME}` from `recipe`, by the kind or the id of the data."
    )
    if group == "experiment":
        intro = f"`-m experiment=NAME`: {WHAT[group]}. Further words change what a file sets."
    return "\n\n".join([f"# {group}", intro, *map(_file, paths)])


def top_level() -> str:
    """The page of conf/config.yaml."""
    path = CONF / "config.yaml"
    rows = [f"| `{k.name}` | {f'`{_cell(k.value)}`' if k.value else ''} | {_text(k.meaning)} |" for k in keys(path)]
    groups = [f"- [`{group}`]({group}.md): {WHAT[group]}" for group in GROUPS if (CONF / group).is_dir()]
    return "\n\n".join(
        [
            "# Configuration",
            _text(head(path)),
            "A command is `python -m adbench.run GROUP=NAME ... KEY=VALUE ...`. The groups are:",
            "\n".join(groups),
            "Keys outside groups:",
            "\n".join(["| key | default | meaning |", "|---|---|---|", *rows]),
        ]
    )


# -- commands ---------------------------------------------------------------------------------------------------------

#: Further commands, which have no name of their own behind `adbench`.
OTHERS = {
    "fuse": ("adbench.studies.fuse", "the sum of the scores of two runs"),
    "figures": ("adbench.studies.figures", "the papers' figures, of finished runs"),
}


def help_of(module: str) -> str:
    """What `--help` prints, 100 columns wide."""
    out = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            importlib.import_module(module).main(["--help"])
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return out.getvalue().rstrip()


def commands() -> str:
    """The page of all commands."""
    parts = [
        "# Commands",
        "`adbench train` is `python -m adbench.run`, and every other `adbench NAME` is `python -m adbench.NAME`. "
        "`fuse` and `figures` have the second form alone.",
    ]
    for name, (module, what) in {**COMMANDS, **OTHERS}.items():
        parts += [f"## {name}", what[0].upper() + what[1:] + ".", f"```text\n{help_of(module)}\n```"]
    return "\n\n".join(parts)


# -- Python -----------------------------------------------------------------------------------------------------------


def modules() -> list[str]:
    """Dotted names of the public modules."""
    names = ["adbench", "adbench.api", "adbench.testing", "adbench.types", "adbench.errors"]
    for package in PUBLIC:
        folder = ROOT / "adbench" / package
        names += [f"adbench.{package}.{path.stem}" for path in sorted(folder.glob("*.py")) if path.stem != "__init__"]
    return names


def python_index() -> str:
    """The first page of the Python reference: every module with the first sentence of its documentation."""
    parts = ["# Python", "`import adbench` gives what most programs need; the modules below are what it is made of."]
    last = ""
    for name in modules():
        package = name.split(".")[1] if name.count(".") > 1 else "adbench"
        if package != last:
            parts.append(f"\n## {package}\n")
            last = package
        file = ROOT / (name.replace(".", "/") + ".py")
        file = file if file.is_file() else ROOT / name.replace(".", "/") / "__init__.py"
        text = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
        parts.append(f"- [`{name}`]({name}.md): {_text(' '.join(text.split()))}")
    return "\n".join(parts)


def python_page(module: str) -> str:
    """A module's page, filled in by mkdocstrings."""
    return f"# {module}\n\n::: {module}\n"


def pages() -> dict[str, str]:
    """Address in the site -> Markdown of every page of the generated reference."""
    found = {"reference/configuration/index.md": top_level(), "reference/commands.md": commands()}
    found |= {
        f"reference/configuration/{group}.md": configuration(group) for group in GROUPS if (CONF / group).is_dir()
    }
    found["reference/python/index.md"] = python_index()
    return found | {f"reference/python/{name}.md": python_page(name) for name in modules()}
