"""Imports point down only; a peer never imports a peer."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "adbench"
BASE = {"errors", "types", "streams", "files", "imports", "__init__", "__version__"}
CORE = BASE | {"losses", "networks", "transforms"}
ROOMS = CORE | {"data", "methods", "pretraining", "evaluation", "experiment"}
MAY_IMPORT = {
    "errors": set(), "types": {"errors"}, "streams": set(), "files": set(), "imports": set(),
    "losses": BASE, "networks": BASE | {"networks"}, "transforms": BASE,
    "data": CORE, "methods": CORE, "pretraining": CORE | {"data"}, "evaluation": CORE,
    "experiment": ROOMS, "detection": ROOMS, "report": ROOMS, "testing": ROOMS,
    "studies": ROOMS | {"detection", "run", "report"},
    "completion": {"experiment"},
    "run": ROOMS, "predict": ROOMS | {"detection"}, "export": ROOMS | {"detection"}, "evaluate": ROOMS | {"api"},
    "serving": ROOMS | {"detection"}, "serve": ROOMS | {"serving"},
    "api": ROOMS | {"detection", "report"},
}  # fmt: skip
COMMANDS = {
    "__main__",
    "corruptions",
    "figures",
    "fuse",
    "orthogonality",
    "proof",
    "reproduce",
}  # which import one thing each
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


def functions():
    """(file, name, number of lines) of every function."""
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield str(path.relative_to(PACKAGE)), node.name, node.end_lineno - node.lineno + 1


def test_no_function_is_longer_than_sixty_lines():
    assert [one for one in functions() if one[2] > 60] == []


def test_methods_reach_the_trainers_private_side_and_the_data_module_in_the_base_alone():
    for path in (PACKAGE / "methods").glob("*.py"):
        text = path.read_text()
        assert path.name == "base.py" or ("_trainer" not in text and ".datamodule" not in text), path


def test_every_room_has_a_row():
    assert {home(path) for path in modules()} - COMMANDS - {"__init__"} == set(MAY_IMPORT)


def named(path):
    return ".".join(("adbench", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def imported_at_once(path):
    """What a module imports when it is imported itself: neither inside functions nor for type checkers alone."""
    nodes = ast.parse(path.read_text()).body
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_modules_import_each_other_in_a_circle():
    files = {named(path): path for path in modules()}
    graph = {name: {other for other in imported_at_once(path) if other in files} for name, path in files.items()}
    while leaves := {name for name, others in graph.items() if not others & graph.keys()}:
        graph = {name: others for name, others in graph.items() if name not in leaves}
    assert graph == {}


LONGEST = 60  # lines, the docstring not counted


@pytest.mark.parametrize("room", ["experiment", "evaluation"])
def test_no_function_is_longer_than_a_screen(room):
    lengths = {}
    for path in (PACKAGE / room).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                first, described = node.body[0], ast.get_docstring(node) is not None
                docstring = first.end_lineno - first.lineno + 1 if described else 0
                lengths[f"{path.name}:{node.name}"] = node.end_lineno - node.lineno + 1 - docstring
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
