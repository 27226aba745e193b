"""The code behind a run as one name: its sources and what they import, read and never run."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

PACKAGE = Path(__file__).parent.parent


def code_of(targets: Iterable[str], length: int = 12) -> str:
    """A hash of the source files that define `targets` and of the modules that these import, directly or not.

    Of a package outside adbench the modules below its first name count too; other libraries have versions instead.

    Args:
        targets: dotted names of classes or functions, such as `adbench.methods.cbigan.CBiGAN`.
        length: hexadecimal digits.
    """
    found: dict[str, Path] = {}
    waiting = sorted({target.rpartition(".")[0] for target in targets})
    own = {"adbench", *(name.split(".")[0] for name in waiting)} - {"torch", "pytorch_lightning", "functools", ""}
    while waiting:
        name = waiting.pop()
        path = _file(name) if name not in found and name.split(".")[0] in own else None
        if path is not None:
            found[name] = path
            stamp = path.stat()
            waiting += _read(path, stamp.st_mtime_ns, stamp.st_size, name)[1]
    parts = ((name, _read(p, p.stat().st_mtime_ns, p.stat().st_size, name)[0]) for name, p in sorted(found.items()))
    return hashlib.sha256(repr(list(parts)).encode()).hexdigest()[:length]


def targets_of(*nodes: object) -> set[str]:
    """Every `_target_` in nested plain values."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, dict):
            names |= {node["_target_"]} if isinstance(node.get("_target_"), str) else set()
            names |= targets_of(*node.values())
        elif isinstance(node, list):
            names |= targets_of(*node)
    return names


def _file(name: str) -> Path | None:
    """The source file of a module; None if there is none, and for adbench itself, which only loads others late."""
    if name == "adbench":
        return None
    if name.startswith("adbench."):
        base = PACKAGE.joinpath(*name.split(".")[1:])
        return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)
    try:
        spec = find_spec(name)
    except (ImportError, AttributeError, ValueError):
        return None
    origin = None if spec is None or spec.origin is None else Path(spec.origin)
    return origin if origin is not None and origin.suffix == ".py" else None


@lru_cache(maxsize=1024)
def _read(path: Path, changed: int, size: int, name: str) -> tuple[str, tuple[str, ...]]:
    """A file's hash, the same with either kind of line ending, and the modules that it imports."""
    text = path.read_text(encoding="utf-8")
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return hashlib.sha256(text.encode()).hexdigest(), tuple(_imports(text, package))


def _imports(text: str, package: str) -> Iterator[str]:
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)  # which may be modules
