"""Every command in the README runs, at smoke size."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import metrics_of

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
LINES = [line.split("  #")[0].strip() for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
RUNS = sorted({line for line in LINES if line.startswith("python -m adbench.run")})
TARGETS = sorted({line.split("#")[0].strip() for line in LINES if line.startswith("make ")})


def test_the_readme_shows_commands():
    assert len(RUNS) >= 5
    unknown = [line for line in LINES if line and not line.startswith(("python -m ", "make ", "#", "source "))]
    assert unknown == []


@pytest.mark.parametrize("line", TARGETS)
def test_a_make_target_of_the_readme_exists(line):
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("line", RUNS)
def test_a_run_command_of_the_readme_runs(line, run, data_root, tmp_path):
    arguments = [str(data_root) if a == "DIR" else a for a in shlex.split(line)[3:]]
    arguments = [a.replace("=DIR", f"={data_root}") for a in arguments]
    if "--help" in arguments:
        pytest.skip("tests/test_run.py does this")
    # Smoke size, wherever the command says how long it would really train.
    arguments = [a for a in arguments if not a.startswith(("budget", "trainer="))]
    code, _ = run(*arguments)
    records = list((tmp_path / "results").rglob("metrics.json"))
    assert [metrics_of(path.parent)["error"] for path in records] == [None] * len(records)
    assert code == 0
    assert records
