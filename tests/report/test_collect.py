import csv
import json

import pytest

from adbench.report.collect import protocol_of, read_rows

WHOLE = {
    "method": "m",
    "data": "d",
    "protocol": "p",
    "pretraining": "n",
    "seed": 0,
    "status": "finished",
    "metrics": {},
}


def tidy_rows(folder):
    with (folder / "runs.csv").open(newline="", encoding="utf-8") as file:
        return {row["folder"].split("/")[0] + row["folder"].rsplit("/", 1)[1]: row for row in csv.DictReader(file)}


def test_every_run_is_a_row_whatever_became_of_it(results, report):
    results.run("cbigan", seed=0, metrics={"image_auroc": 0.75, "pixel_auroc": None})
    results.run("egbad", seed=1, status="failed", error="ValueError: loss became nan")
    results.run("pca", seed=2, status="interrupted", error="stopped by a signal")
    results.run("igd", seed=3, status="running")
    code, out, said = report(results)
    assert code == 0
    assert "4 runs (1 finished, 1 failed, 1 interrupted, 1 running)" in said
    rows = tidy_rows(out)
    assert {name: row["status"] for name, row in rows.items()} == {
        "cbiganseed0": "finished", "egbadseed1": "failed", "pcaseed2": "interrupted", "igdseed3": "running",
    }  # fmt: skip
    assert rows["egbadseed1"]["error"] == "ValueError: loss became nan"
    assert rows["cbiganseed0"]["image_auroc"] == "0.75"
    assert rows["cbiganseed0"]["total_s"] == "12.5"
    assert rows["cbiganseed0"]["train"] == "10"


def test_a_null_stays_empty_and_is_never_made_up(results, report):
    results.run("cbigan", metrics={"image_auroc": 0.75, "pixel_auroc": None, "pixel_pro": float("nan")})
    _, out, _ = report(results)
    row = tidy_rows(out)["cbiganseed0"]
    assert row["pixel_auroc"] == row["pixel_pro"] == ""
    assert "nan" not in (out / "report.md").read_text().lower()


def test_the_code_behind_runs_is_hashed_once_for_all_that_share_it(results, report, monkeypatch):
    import yaml

    from adbench.report import collect

    for seed in range(5):
        config = results.run("brightness", seed=seed, code="0123456789ab") / ".hydra" / "config.yaml"
        values = yaml.safe_load(config.read_text())
        values["method"]["_target_"] = "adbench.methods.trivial.Brightness"
        config.write_text(yaml.safe_dump(values))
    hashed, original = [], collect.code_of
    monkeypatch.setattr(collect, "code_of", lambda targets: hashed.append(targets) or original(targets))
    _, out, _ = report(results)
    assert len(hashed) == 1 and {row["stale"] for row in tidy_rows(out).values()} == {"True"}


def test_a_run_of_other_code_is_marked_as_stale_on_every_page(results, report):
    import yaml

    from adbench.experiment.codehash import code_of

    target = "adbench.methods.trivial.Brightness"
    for seed, code in ((0, code_of([target])), (1, "0123456789ab")):
        config = results.run("brightness", seed=seed, code=code) / ".hydra" / "config.yaml"
        values = yaml.safe_load(config.read_text())
        values["method"]["_target_"] = target
        config.write_text(yaml.safe_dump(values))
    _, out, _ = report(results)
    assert {name: row["stale"] for name, row in tidy_rows(out).items()} == {
        "brightnessseed0": "False",
        "brightnessseed1": "True",
    }
    for page in ("report.md", "report.html"):
        text = (out / page).read_text(encoding="utf-8")
        assert "1 runs are stale" in text
        assert text.count("stale: the code has changed since") == 1


def test_parquet_holds_the_same_table_where_pyarrow_is(results, report):
    parquet = pytest.importorskip("pyarrow.parquet")
    results.run("cbigan", metrics={"image_auroc": 0.75, "pixel_auroc": None})
    results.run("egbad", status="failed", error="no")
    _, out, _ = report(results)
    table = parquet.read_table(out / "runs.parquet").to_pylist()
    assert [row["image_auroc"] for row in table] == [0.75, None]
    assert [row["error"] for row in table] == [None, "no"]


def test_without_pyarrow_the_command_says_which_extra_to_install(results, report, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    results.run()
    code, out, said = report(results)
    assert code == 0
    assert "adbench-vision[report]" in said
    assert not (out / "runs.parquet").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"method": "cbigan", "sta', "cannot be read"),
        ("", "cannot be read"),
        ("[1, 2]", "expected an object"),
        ('{"loss": 3}', "method, data"),
        (json.dumps(WHOLE | {"method": 1}), "method missing or of the wrong kind"),
        (json.dumps(WHOLE | {"budget": 3}), "budget is not an object"),
    ],
)
def test_a_torn_or_foreign_folder_is_listed_with_its_reason_and_stops_nothing(results, report, text, reason):
    results.run()
    (results.path / "odd" / "run").mkdir(parents=True)
    (results.path / "odd" / "run" / "metrics.json").write_text(text)
    code, out, said = report(results)
    assert code == 0
    assert "skipped odd/run:" in said and reason in said
    assert "odd/run" in (out / "report.md").read_text()
    assert len(tidy_rows(out)) == 1


def test_a_folder_with_scores_and_no_metrics_is_skipped_aloud(results, report):
    results.run()
    folder = results.run("egbad")
    (folder / "metrics.json").unlink()
    _, _, said = report(results)
    assert "skipped egbad/mvtec/bottle/one_class/none/seed0: no metrics.json" in said


@pytest.mark.parametrize(
    ("scores", "note"),
    [
        ("index,path,label,defect,score\n0,a,0,good,0.1\n1,b,1", "torn"),
        ("index,path,label,defect,score\n0,a,0,good,nan\n", "NaN"),
        ("what is this\n", "header"),
        ("index,path,label,defect,score\n0,a,7,good,1\n", "label"),
    ],
)
def test_unusable_scores_cost_a_run_its_curves_and_nothing_else(results, report, scores, note):
    folder = results.run(metrics={"image_auroc": 0.8})
    (folder / "scores.csv").write_text(scores)
    code, out, _ = report(results)
    assert code == 0
    (row,) = tidy_rows(out).values()
    assert note in row["notes"]
    assert (row["image_auroc"], row["image_auroc_low"]) == ("0.8", "")


def test_scores_of_another_test_than_metrics_json_are_noticed(results, gather):
    results.run(metrics={"image_auroc": 0.1})
    (run,) = gather(results).runs
    assert any("not of one test" in note for note in run.notes)


def test_paths_with_commas_quotes_and_newlines_are_read_back(results):
    strange = 'a,"b"\nc.png'
    folder = results.run(rows=[(strange, 0, "good", 0.5), ("d", 1, "x", 1.5)])
    rows = read_rows(folder / "scores.csv")
    assert rows.label.tolist() == [0, 1]
    assert rows.score.tolist() == [0.5, 1.5]


def test_the_data_id_comes_from_the_configuration_and_else_from_the_folder(results, gather):
    first, second = results.run(data="cifar10/3"), results.run("egbad", data="mnist/7")
    (second / ".hydra" / "config.yaml").unlink()
    assert {run.path: run.data for run in gather(results).runs} == {first: "cifar10/3", second: "mnist/7"}


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("one_class", {}, {"protocol": "one_class"}),
        ("small_train", {"fraction": 0.2}, {"protocol": "small_train", "fraction": 0.2}),
        ("small_train", {"fraction": 1.0}, {"protocol": "one_class"}),
        ("contaminated", {"ratio": 0.0}, {"protocol": "one_class"}),
        ("contaminated", {"ratio": 0.1}, {"protocol": "contaminated", "ratio": 0.1}),
        ("semi_supervised", {"labelled_ratio": 0.0, "labelled_classes": ["3"]}, {"protocol": "one_class"}),
        ("semi_supervised", {"labelled_ratio": 0.05, "labelled_classes": [3, 4], "pollution_ratio": 0.1},
         {"protocol": "semi_supervised", "labelled_ratio": 0.05, "labelled_classes": 2, "pollution_ratio": 0.1}),
        ("semi_supervised", {"labelled_ratio": 0.05, "labelled_classes": 0}, {"protocol": "one_class"}),
    ],
)  # fmt: skip
def test_a_protocol_is_what_it_does_and_its_limits_are_one_class(name, values, expected):
    assert dict(protocol_of(name, values)) == expected


def test_every_value_of_a_protocol_from_elsewhere_tells_runs_apart(results, gather):
    for k, (share, kind) in enumerate(((0.1, "near"), (0.4, "near"), (0.4, "far"))):
        values = {"_target_": "theirs.split", "share": share, "kind": kind, "sides": [1, k > 1]}
        values |= {"_partial_": True}
        results.run("cbigan", metrics={"image_auroc": 0.5 + 0.1 * k}, protocol="theirs", values=values, suffix=f"-{k}")
    contents = gather(results)
    assert sorted(line.values["image_auroc"].mean for line in contents.lines) == [0.5, 0.6, 0.7]
    assert {line.variant.protocol_label for line in contents.lines} == {
        "theirs kind=near share=0.1 sides=[1, false]", "theirs kind=near share=0.4 sides=[1, false]",
        "theirs kind=far share=0.4 sides=[1, true]",
    }  # fmt: skip


@pytest.mark.parametrize("values", [{"_target_": "theirs.contaminated", "ratio": 0.0}, {"ratio": 0.0, "kind": "near"}])
def test_a_protocol_that_only_shares_a_name_or_values_with_ours_has_none_of_its_limits(results, gather, values):
    results.run("cbigan", protocol="contaminated", values=values)
    assert dict(gather(results).runs[0].variant.protocol)["protocol"] == "contaminated"


def test_a_protocol_from_elsewhere_has_a_curve_without_the_end_that_ours_have(results, gather):
    results.run("cbigan", metrics={"image_auroc": 0.9})
    for k, share in enumerate((0.1, 0.4)):
        values = {"_target_": "theirs.split", "share": share, "kind": "near"}
        results.run("cbigan", metrics={"image_auroc": 0.5}, protocol="theirs", values=values, suffix=f"-{k}")
    (chart,) = gather(results).robustness
    assert (chart.key, [x for x, _ in chart.counts[0][1]]) == ("share", [0.1, 0.4])


@pytest.mark.parametrize(
    ("budget", "length", "expected"),
    [
        ("paper", None, "paper"),
        ("paper", {"max_batches": 10}, "paper, 10 batches"),
        ("quick", None, "quick"),
        ("quick", {"max_epochs": 3}, "quick, 3 epochs"),
        ("smoke", {"max_batches": 2}, "smoke"),
    ],
)
def test_a_budget_whose_length_was_changed_does_not_go_by_its_name_alone(results, gather, budget, length, expected):
    results.run(budget=budget, length=length)
    assert gather(results).runs[0].variant.budget == expected


# -- a user's own data ---------------------------------------------------------------------------------------------


def own(results, data, root, fingerprint, seed=0, value=0.5, suffix="", group="folder", draws=None):
    """A run on a user's own data; `draws`: the seed that the source draws its test rows with, if it does."""
    place = {"root": root, "source": {"seed": draws}}
    results.run("cbigan", data, seed, {"image_auroc": value}, suffix=suffix, place=place, data_id=data,
                data_fingerprint=fingerprint)  # fmt: skip
    folder = next(path for path in results.path.rglob(f"seed{seed}{suffix}") if data.split("/")[-1] in path.parts)
    record = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(record | {"data": group}))


def test_a_users_folders_go_by_their_own_names(results, gather):
    own(results, "pill", "/a/pill", "11", value=0.6)
    own(results, "screw", "/a/screw", "22", value=0.8)
    assert {line.data: line.values["image_auroc"].mean for line in gather(results).lines} == {"pill": 0.6, "screw": 0.8}


def test_two_users_folders_of_one_name_are_two_sets_and_the_report_says_where_each_lay(results, gather, report):
    own(results, "parts", "/a/parts", "1111119", value=0.6)
    own(results, "parts", "/b/parts", "2222229", seed=1, value=0.8, suffix="-b")
    contents = gather(results)
    assert {line.data: line.values["image_auroc"] for line in contents.lines} == {
        "parts (contents 111111)": (0.6, None, 1), "parts (contents 222222)": (0.8, None, 1),
    }  # fmt: skip
    (note,) = contents.notes
    assert "parts (contents 111111) from /a/parts" in note and "parts (contents 222222) from /b/parts" in note
    _, out, _ = report(results)
    assert {row["data"] for row in tidy_rows(out).values()} == {"parts (contents 111111)", "parts (contents 222222)"}


def test_one_folder_that_was_moved_stays_one_set(results, gather):
    own(results, "parts", "/a/parts", "11", value=0.6)
    own(results, "parts", "/b/parts", "11", seed=1, value=0.8, suffix="-b")
    (line,) = gather(results).lines
    assert (line.data, line.values["image_auroc"].n) == ("parts", 2)


def test_a_table_whose_test_rows_each_seed_draws_stays_one_set_and_two_such_tables_are_two(results, gather):
    for seed in (0, 1):
        own(results, "table", "/a.csv", f"{seed}1", seed, 0.6, group="tabular", draws=seed)
    (line,) = gather(results).lines
    assert (line.data, len(line.runs)) == ("table", 2)
    for seed in (0, 1):
        own(results, "table", "/b.csv", f"{seed}2", seed, 0.8, "-b", group="tabular", draws=seed)
    assert sorted((len(line.runs), line.values["image_auroc"].mean) for line in gather(results).lines) == [
        (2, 0.6), (2, 0.8),
    ]  # fmt: skip


def test_a_published_set_with_other_contents_keeps_its_name_and_is_noticed(results, gather):
    for seed in (0, 1):
        results.run("cbigan", seed=seed, data_fingerprint=f"{seed}1")
    contents = gather(results)
    assert {line.data for line in contents.lines} == {"mvtec/bottle"}
    assert "2 different contents" in contents.notes[0]


def test_smoke_runs_are_listed_and_count_in_no_table(results, gather):
    results.run(budget="smoke")
    contents = gather(results)
    assert len(contents.runs) == 1
    assert contents.lines == []
    assert not any(contents.answers.values())
    assert "1 smoke runs" in contents.notes[0]


def test_earlier_reports_are_not_taken_for_runs(results, report):
    results.run()
    report(results)
    (results.path / "report" / "metrics.json").write_text(json.dumps({}))
    code, _, said = report(results)
    assert (code, "skipped" in said) == (0, False)
