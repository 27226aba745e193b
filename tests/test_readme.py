"""README and pages: every command runs, at smoke size, every link leads somewhere, and no method is left out."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
from conftest import metrics_of
from joblib.externals.loky import get_reusable_executor

from adbench.experiment.groups import conf_dir
from adbench.serve import _parser as serve_parser

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
TOP = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
FIRST = [page for page in PAGES if page == README or page.parent.name in ("docs", "guide")]  # what a reader types first


def _lines(pages: list[Path]) -> list[str]:
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]


LINES = _lines([*PAGES, *TOP])
# A command that stands on several pages runs once.
RUNS = sorted({line for line in LINES if line.startswith("python -m adbench.run")})
COMMANDS = list(dict.fromkeys(line for line in LINES if line.startswith("python -m adbench.") and line not in RUNS))
TARGETS = sorted({line.split("#")[0].strip() for line in LINES if line.startswith("make ")})


def test_the_pages_show_commands():
    assert len(RUNS) >= 5
    unknown = [
        line for line in LINES if line and not line.startswith(("python -m ", "make ", "#", "source ", "python tests/"))
    ]
    assert unknown == []


@pytest.mark.parametrize("line", TARGETS)
def test_a_make_target_of_the_pages_exists(line):
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE)


@pytest.mark.parametrize(
    "line",
    [
        line if line in _lines(FIRST) and "experiment=" not in line else pytest.param(line, marks=pytest.mark.slow)
        for line in RUNS
    ],
)
def test_a_run_command_of_the_pages_runs(line, run, data_root, tmp_path):
    place = data_root / "mvtec/bottle" if "data=folder" in line else data_root
    arguments = [a.replace("=DIR", f"={place}") for a in shlex.split(line)[3:]]
    if "--help" in arguments:
        pytest.skip("tests/test_run.py does this")
    # Smoke size and few jobs, wherever the command says otherwise; launchers have tests of their own.
    arguments = [a for a in arguments if not a.startswith(("budget", "trainer=", "hydra/launcher", "hydra.launcher"))]
    if "-m" in arguments:
        arguments.append("hydra.sweeper.n_trials=2" if "sweeper=tuning" in line else "hydra.sweeper.at_most=1")
    get_reusable_executor().shutdown(wait=True)  # a worker that an earlier test has left has its environment
    code, _ = run(*arguments)
    records = list((tmp_path / "results").rglob("metrics.json"))
    if "--dry-run" in arguments:
        assert code == 0
        assert not records
        return
    assert [metrics_of(path.parent)["error"] for path in records] == [None] * len(records)
    assert code == 0
    assert records


def test_what_the_pages_do_with_a_finished_run_works(run, data_root, tmp_path, monkeypatch, capsys):
    """Predict, export, evaluate, report, in the pages' order, on one run."""
    code, folder = run("method=cbigan/small", "data=mvtec/bottle")
    assert code == 0
    monkeypatch.chdir(tmp_path)
    places = {"RUN": str(folder), "IMAGES": str(data_root / "mvtec/bottle/test"), "DIR": str(data_root)}
    names = set()
    for line in COMMANDS:
        module, *arguments = shlex.split(line)[2:]
        arguments = [places.get(a, a.replace("=DIR", f"={data_root}")) for a in arguments]
        names.add(module.removeprefix("adbench."))
        if module == "adbench.figures":  # of several runs: tests/test_figures.py
            continue
        if module == "adbench.serve":  # it runs until it is told to end: tests/serving
            assert serve_parser().parse_args(arguments).model == folder
            continue
        package = "adbench.report.__main__" if module == "adbench.report" else module
        assert importlib.import_module(package).main(arguments) == 0, (line, capsys.readouterr())
    assert names >= {"export", "predict", "evaluate", "report", "serve", "figures"}
    assert (tmp_path / "scored" / "scores.csv").exists()
    assert (tmp_path / "detector.onnx").exists()
    assert (tmp_path / "results" / "report" / "report.html").exists()


# -- pages -------------------------------------------------------------------------------------------------------------


def prose(page):
    """A page's text without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """What `page#...` can lead to: its headings in lower case, without punctuation, spaces as hyphens."""
    found = []
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.append(anchor + (f"-{found.count(anchor)}" if anchor in found else ""))
    return found


def links(page):
    """Targets of the links and pictures of a page that lie in the repository."""
    text = re.sub(
        r"`[^`\n]*`", "", re.sub(r"\[`[^`\n]*`", "[", prose(page))
    )  # no link stands in code, but code in links
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", target)]


@pytest.mark.parametrize("page", [*PAGES, *TOP], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_link_of_a_page_leads_to_a_file_and_a_heading(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), target
        assert place == ROOT or ROOT in place.parents, target
        if anchor:
            assert anchor in anchors(place), f"{target}: {anchors(place)}"


def test_every_page_can_be_reached_from_the_readme():
    seen, waiting = set(), [README]
    while waiting:
        page = waiting.pop()
        if page not in seen and page.suffix == ".md":
            seen.add(page)
            waiting += [
                (page.parent / target.partition("#")[0]).resolve() for target in links(page) if target[0] != "#"
            ]
    assert {*PAGES, *TOP} <= seen


def test_the_readme_has_at_most_a_hundred_lines():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 100


METHODS = "\n".join(
    page.read_text(encoding="utf-8")
    for page in [*(ROOT / "docs" / "methods").glob("*.md"), ROOT / "docs" / "adapters.md"]
)


def test_every_preset_stands_on_a_methods_page():
    folder = conf_dir() / "method"
    names = [
        path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml") if path.stem[0] != "_"
    ]
    assert [name for name in names if f"[`{name}`]" not in METHODS] == []
    assert [name for name in re.findall(r"\(../../conf/method/(.+?)\.yaml\)", METHODS) if name not in names] == []


@pytest.mark.parametrize(
    "name",
    ["cbigan", "igd", "pwae", "ssae", "esad", "hypersphere", "reconstruction", "neighbours", "patchcore", "padim"],
)
def test_every_equation_with_a_source_stands_on_a_methods_page(name):
    path = f"adbench/losses/{name}.py"
    equations = [
        node.name
        for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and "Source: " in (ast.get_docstring(node) or "")
    ]
    assert equations
    assert [word for word in equations if f"[`{word}`](../../{path})" not in METHODS] == []
