import re
import xml.etree.ElementTree as xml

import numpy as np
import pytest

from adbench.report import charts
from adbench.report.rendering import md, tex


def test_markdown_text_stays_text():
    assert md("a|b <script> *c* `d` [e](f)\ng & h") == r"a\|b &lt;script&gt; \*c\* \`d\` \[e\](f) g &amp; h"


def test_latex_text_stays_text():
    assert tex(r"50% of {a_b} & $c^2$ #1 ~ \d ± –") == (
        r"50\% of \{a\_b\} \& \$c\textasciicircum{}2\$ \#1 \textasciitilde{} \textbackslash{}d $\pm$ --"
    )
    assert tex("é") == "?"


def test_the_markdown_report_shows_tables_marks_and_failures(results, report):
    results.run("cbigan/small", "mvtec/bottle", metrics={"image_auroc": 0.8}, budget="quick")
    results.run("vae", "digits/3")
    results.run("egbad", status="failed", error="RuntimeError: a|b <b>")
    _, out, _ = report(results)
    text = (out / "report.md").read_text()
    assert "| bottle | CBiGAN (ours) | cbigan/small | 0.800 | 1 | 0.87 | -0.070 | budget quick; small preset |" in text
    assert r"RuntimeError: a\|b &lt;b&gt;" in text
    assert "## Beside no published row" in text and "digits/3" in text
    assert "No run belongs to:" in text and "IGD 1" in text


def test_a_transductive_method_is_marked_beside_its_figures_and_the_mark_is_told(results, report):
    results.run("pyod/sos", "odds/cardio", metrics={"image_auroc": 0.8}, transductive=True)
    results.run("pyod/ecod", "odds/cardio", metrics={"image_auroc": 0.7})
    _, out, _ = report(results)
    text = (out / "report.md").read_text()
    assert "pyod/sos†" in text and "pyod/ecod†" not in text
    told = "transductive: the score of a row depends on the rows that were scored with it"
    assert f"† {told}." in text
    page = (out / "report.html").read_text()
    assert "pyod/sos†" in page and f"† {told}." in page
    tables = (out / "tables.tex").read_text()
    assert r"pyod/sos\textdagger{}" in tables and told in tables and tables.isascii()
    assert told in (out / "runs.csv").read_text()


def test_latex_is_balanced_and_has_booktabs(results, report):
    for seed in (0, 1):
        results.run("cbigan/small", "mvtec/bottle", seed, {"image_auroc": 0.8, "image_balanced_accuracy_max": 0.7})
    results.run("pwae", "mvtec/leather", metrics={"image_auroc": 0.8, "image_balanced_accuracy_max": 0.7})
    _, out, _ = report(results)
    text = (out / "tables.tex").read_text()
    assert text.isascii()
    assert text.count("\\begin{longtable}") == text.count("\\end{longtable}") >= 3
    assert text.rstrip().endswith("\\end{document}")
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    for block in re.findall(r"\\toprule\n(.*?)\\bottomrule", text, re.DOTALL):
        lines = [line for line in block.splitlines() if line.endswith("\\\\")]
        assert len({len(re.findall(r"(?<!\\)&", line)) for line in lines}) == 1
    assert "$\\pm$" in text
    assert "published value breaks a bound" in text


CURVE = charts.Series('<i>&"name"', np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.9, 1.0]), "c0", spread=np.full(3, 0.1))


@pytest.mark.parametrize(
    "svg",
    [
        charts.lines([CURVE], 'a <b> & "c"', "x", "y", diagonal=True),
        charts.histogram(np.array([0.0, 1.0, np.inf, 2.0]), np.array([0, 1, 1, 0]), 0.5, "<x>"),
        charts.histogram(np.array([np.inf]), np.array([1]), None, "no finite"),
        charts.histogram(np.array([3.0, 3.0]), np.array([1, 0]), None, "one value"),
        charts.critical_difference(["<a>", "b" * 60, "c"], np.array([1.2, 2.0, 2.8]), 0.9, "ranks"),
        charts.critical_difference(["a", "b"], np.array([1.0, 2.0]), 5.0, "wide"),
    ],
)
def test_every_chart_is_well_formed_and_escapes_names(svg):
    for text in (svg, charts.standalone(svg)):
        assert xml.fromstring(text).tag.endswith("svg")
    assert "nan" not in svg.lower()


def test_methods_within_the_critical_difference_are_joined_and_others_are_not():
    assert charts._groups(np.array([1.0, 1.5, 2.8, 4.0]), 1.4) == [(0, 1), (1, 2), (2, 3)]
    assert charts._groups(np.array([1.0, 1.2, 1.4, 4.0]), 1.0) == [(0, 2)]
    assert charts._groups(np.array([1.0, 3.0]), 1.0) == []


def test_a_thinned_curve_keeps_its_ends_and_its_shape():
    x = np.linspace(0, 1, 5000)
    thin_x, thin_y = charts.thinned(x, np.sqrt(x), 100)
    assert len(thin_x) <= 100
    assert (thin_x[0], thin_x[-1]) == (0, 1)
    assert np.interp(x, thin_x, thin_y) == pytest.approx(np.sqrt(x), abs=0.01)
