"""Imports point down only; a peer never imports a peer."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "adbench"
BASE = {"errors", "types", "streams", "files", "__init__", "__version__"}
CORE = BASE | {"losses", "networks", "transforms"}
ROOMS = CORE | {"data", "methods", "pretraining", "evaluation", "experiment"}
MAY_IMPORT = {
    "errors": set(), "types": {"errors"}, "streams": set(), "files": set(),
    "losses": BASE, "networks": BASE | {"networks"}, "transforms": BASE,
    "data": CORE, "methods": CORE, "pretraining": CORE | {"data"}, "evaluation": CORE,
    "experiment": ROOMS, "detection": ROOMS, "report": ROOMS, "testing": ROOMS,
    "studies": ROOMS | {"detection", "run", "report"},
    "completion": {"experiment"},
    "run": ROOMS, "predict": ROOMS | {"detection"}, "export": ROOMS | {"detection"}, "evaluate": ROOMS | {"api"},
    "serving": ROOMS | {"detection"}, "serve": ROOMS | {"serving"},
    "api": ROOMS | {"detection", "report"},
}  # fmt: skip
COMMANDS = {"__main__", "corruptions", "figures", "fuse", "orthogonality", "reproduce"}  # which import one thing each
KNOW_HYDRA = {"experiment", "run", "studies"}


def modules():
    return [p for p in PACKAGE.rglob("*.py") if "conf" not in p.parts]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ([f"{node.module}.{a.name}" for a in node.names] if node.module == "adbench" else [node.module])


def home(path):
    """The package or module of the first level that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    here = home(path)
    allowed = MAY_IMPORT.get(here)
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "adbench" and rest and allowed is not None:
            assert rest[0] in allowed | {here}, f"{path} imports {name}"
        if top in ("hydra", "omegaconf"):
            assert here in KNOW_HYDRA, f"{path} imports {name}: methods take plain arguments"
        if top == "wandb":
            pytest.fail(f"{path} imports wandb: Lightning's logger reaches it")


def test_every_room_has_a_row():
    assert {home(path) for path in modules()} - COMMANDS - {"__init__"} == set(MAY_IMPORT)
