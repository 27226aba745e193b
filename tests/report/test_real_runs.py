"""From the run command to the report, nothing made by hand."""

import json


def test_a_run_leaves_what_the_report_draws(run, tmp_path, report, results):
    for method in ("cbigan/small", "pca"):
        options = ["data.batch_size=4", "budget.max_batches=2"] if method != "pca" else []
        code, folder = run(f"method={method}", "data=mvtec/bottle", "trainer=cpu", *options, smoke=False)
        assert code == 0
        curves = json.loads((folder / "curves.json").read_text())["pixel"]
        assert len({len(points) for points in curves.values()}) == 1 and 2 <= len(curves["fpr"]) <= 200
        assert (curves["fpr"][0], curves["pro"][-1]) == (0, 1)
        entries = json.loads((folder / "figures" / "gallery.json").read_text())
        assert {entry["role"] for entry in entries} == {"found", "passed", "missed", "false_alarm", "borderline"}
        assert all((folder / "figures" / entry["file"]).exists() for entry in entries)
    results.path = tmp_path / "results"
    code, out, said = report(results)
    assert code == 0 and "2 runs (2 finished)" in said
    page = (out / "report.html").read_text()
    assert "ROC of images" in page and "PRO of pixels" in page
    assert page.count("data:image/jpeg") == 2 * 15
    assert "budget quick, 2 batches" in page and "small preset" in page and "trivial baseline" in page


def test_overwriting_a_run_leaves_nothing_of_the_old_one(run):
    options = ("method=pca", "data=mvtec/bottle", "trainer=cpu")
    _, folder = run(*options, smoke=False)
    (folder / "figures" / "gallery-found-99.jpg").write_bytes(b"old")
    (folder / "curves.json").write_text("old")
    run(*options, "overwrite=true", "evaluation.gallery=0", smoke=False)
    assert not list((folder / "figures").glob("gallery*"))
    assert json.loads((folder / "curves.json").read_text())["pixel"]
