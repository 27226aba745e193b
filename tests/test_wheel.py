"""The wheel holds what the package reads."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package_and_the_configuration_and_makes_a_report(tmp_path):
    line = [sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", str(tmp_path), str(ROOT)]
    subprocess.run(line, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        file.extractall(tmp_path / "site")
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "adbench").rglob("*.*") if path.suffix != ".pyc"}
    conf = {f"adbench/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert package | conf <= names
    assert "adbench/report/templates/page.html" in names
    code = (
        "import adbench, sys; from adbench.report import rendering as r; print(adbench.__file__); r.md_table('a', 'b')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(tmp_path / "site"))
