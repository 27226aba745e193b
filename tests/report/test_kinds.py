"""Rows that are no paper's method: trivial baselines and reference detectors."""

import importlib
import re

import pytest
import yaml

from adbench.experiment.groups import choices, conf_dir
from adbench.methods.reference import Reference
from adbench.methods.trivial import Brightness, PCAResidual
from adbench.report.collect import kind_of

WEIGHTS = {"backbone": {"name": "net.in1k", "origin": "package weights 0.1.0", "sha256": "ab" * 32}}


def class_of(name):
    """The class that a method's file names, or those that it is based on."""
    text = (conf_dir() / "method" / f"{name}.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    for base in [d for d in values.get("defaults", []) if isinstance(d, str) and d != "_self_"]:
        if "_target_" not in values:
            path = base.split("@")[0].removeprefix("/method/")
            return class_of(path if base.startswith("/") else f"{name.rpartition('/')[0]}/{path}".lstrip("/"))
    module, _, cls = values["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), cls)


@pytest.mark.parametrize("name", choices("method"))
def test_a_methods_kind_is_that_of_its_class(name):
    cls = class_of(name)
    assert (kind_of(name) == "reference") == issubclass(cls, Reference)
    if cls in (Brightness, PCAResidual):
        assert kind_of(name) == "trivial"


@pytest.fixture
def contents(results, gather):
    for method, value in (("pca", 0.6), ("patchcore/small", 0.9), ("ssae", 0.8), ("knn", 0.7)):
        pretraining = "imagenet" if "/" in method or method == "knn" else "none"
        weights = WEIGHTS if pretraining == "imagenet" else None
        results.run(method, "mvtec/bottle", metrics={"image_auroc": value}, pretraining=pretraining,
                    pretraining_weights=weights)  # fmt: skip
    return gather(results)


def test_reference_detectors_stand_between_the_papers_methods_and_the_trivial_baselines(contents):
    names = ["ssae", "knn + imagenet", "patchcore/small + imagenet", "pca"]
    assert [line.variant.label for line in contents.lines] == names
    assert list(contents.best_known()) == names
    assert list(contents.colours) == names


def test_a_paper_table_has_the_reference_detectors_beside_its_values_and_answers_the_row_of_one_that_it_prints(
    contents,
):
    cells = {cell.variant.method: cell for cell in contents.answers["SSAE", "3"] if cell.category == "bottle"}
    assert {method: cell.kind for method, cell in cells.items()} == {
        "ssae": "paper", "patchcore/small": "small", "knn": "reference", "pca": "trivial",
    }  # fmt: skip
    assert (cells["knn"].row, cells["knn"].difference) == (None, None)
    assert {"reference", "small preset", "our implementation of a cited baseline"} >= {
        mark for mark in cells["patchcore/small"].marks if "held out" not in mark
    }
    assert cells["patchcore/small"].row.method == "PatchCore"
    assert cells["knn"].marks[0] == "reference"


def test_rows_of_reference_detectors_are_in_italics_and_say_what_they_are_everywhere(contents, results, report):
    _, out, _ = report(results)
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "| *knn + imagenet (reference)* | 0.700 |" in text
    assert "| *pca (trivial baseline)* | 0.600 |" in text
    assert "| ssae (paper) | 0.800 |" in text
    assert "\\textit{knn + imagenet (reference)} & 0.700" in (out / "tables.tex").read_text()
    page = (out / "report.html").read_text(encoding="utf-8")
    for row, kind in (("knn \\+ imagenet", "reference"), ("pca", "trivial")):
        assert len(re.findall(rf'<tr class="{kind}"><td[^>]*>{row}<', page)) >= 2  # overview, all settings
    assert re.search(r"tr\.reference td[^}]*\{font-style:italic\}", page)
    assert ",reference," in next(line for line in (out / "runs.csv").read_text().splitlines() if "knn" in line)


def test_a_reference_detector_is_not_listed_as_a_method_that_no_paper_has(contents, results, report):
    _, out, _ = report(results)
    assert "## Beside no published row" not in (out / "report.md").read_text()


def test_the_report_says_which_weights_the_runs_began_with(contents, results, report):
    _, out, _ = report(results)
    row = (
        "| net.in1k | package weights 0.1.0 | "
        + "ab" * 32
        + " | backbone | knn + imagenet, patchcore/small + imagenet | 2 |"
    )
    assert row in (out / "report.md").read_text()
    page = (out / "report.html").read_text()
    assert '<section id="pretrained-weights">' in page and "ab" * 32 in page
    line = next(line for line in (out / "runs.csv").read_text().splitlines() if "knn" in line)
    assert "net.in1k (package weights 0.1.0, sha256 abababababab)" in line


@pytest.mark.parametrize("weights", [None, [], "x", 3, {"a": 1}, {"a": {"name": [1], "origin": None}}])
def test_weights_that_a_record_tells_oddly_or_not_at_all_stop_nothing(results, report, weights):
    results.run(pretraining_weights=weights)
    assert report(results)[0] == 0
