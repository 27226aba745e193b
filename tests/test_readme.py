"""Every command in the README runs, at smoke size."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from conftest import metrics_of

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
LINES = [line.split("  #")[0].strip() for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
RUNS = sorted({line for line in LINES if line.startswith("python -m adbench.run")})
COMMANDS = list(dict.fromkeys(line for line in LINES if line.startswith("python -m adbench.") and line not in RUNS))
TARGETS = sorted({line.split("#")[0].strip() for line in LINES if line.startswith("make ")})


def test_the_readme_shows_commands():
    assert len(RUNS) >= 5
    unknown = [
        line for line in LINES if line and not line.startswith(("python -m ", "make ", "#", "source ", "python tests/"))
    ]
    assert unknown == []


@pytest.mark.parametrize("line", TARGETS)
def test_a_make_target_of_the_readme_exists(line):
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("line", RUNS)
def test_a_run_command_of_the_readme_runs(line, run, data_root, tmp_path):
    place = data_root / "mvtec/bottle" if "data=folder" in line else data_root
    arguments = [a.replace("=DIR", f"={place}") for a in shlex.split(line)[3:]]
    if "--help" in arguments:
        pytest.skip("tests/test_run.py does this")
    # Smoke size and few jobs, wherever the command says otherwise; launchers have tests of their own.
    arguments = [a for a in arguments if not a.startswith(("budget", "trainer=", "hydra/launcher", "hydra.launcher"))]
    if "-m" in arguments:
        arguments.append("hydra.sweeper.n_trials=2" if "sweeper=tuning" in line else "hydra.sweeper.at_most=1")
    code, _ = run(*arguments)
    records = list((tmp_path / "results").rglob("metrics.json"))
    assert [metrics_of(path.parent)["error"] for path in records] == [None] * len(records)
    assert code == 0
    assert records


def test_what_the_readme_does_with_a_finished_run_works(run, data_root, tmp_path, monkeypatch, capsys):
    """Export, predict, evaluate, report, in the README's order, on one run."""
    code, folder = run("method=cbigan/small", "data=mvtec/bottle")
    assert code == 0
    monkeypatch.chdir(tmp_path)
    places = {"RUN": str(folder), "IMAGES": str(data_root / "mvtec/bottle/test"), "DIR": str(data_root)}
    names = set()
    for line in (line for line in COMMANDS if "adbench.figures" not in line):  # several runs: tests/test_figures.py
        module, *arguments = shlex.split(line)[2:]
        arguments = [places.get(a, a.replace("=DIR", f"={data_root}")) for a in arguments]
        package = "adbench.report.__main__" if module == "adbench.report" else module
        assert importlib.import_module(package).main(arguments) == 0, (line, capsys.readouterr())
        names.add(module.removeprefix("adbench."))
    assert names >= {"export", "predict", "evaluate", "report"}
    assert (tmp_path / "scored" / "scores.csv").exists()
    assert (tmp_path / "results" / "report" / "report.html").exists()
