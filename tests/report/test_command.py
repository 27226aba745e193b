import subprocess
import sys

import pytest


def test_an_empty_or_missing_folder_ends_in_one_message(results, report, tmp_path):
    code, out, said = report(results)
    assert code == 1
    assert "holds no runs" in said and len(said.strip().splitlines()) == 1
    assert not out.exists()
    results.path = tmp_path / "nowhere"
    code, _, said = report(results)
    assert code == 1
    assert "is no folder" in said


@pytest.mark.parametrize(
    ("options", "message"), [(("--pictures", "-1"), "at least 0"), (("--out", "FILE"), "is a file")]
)
def test_wrong_options_end_in_one_message(results, report, tmp_path, options, message):
    results.run()
    (tmp_path / "file").write_text("")
    code, _, said = report(results, *(str(tmp_path / "file") if o == "FILE" else o for o in options))
    assert code == 1
    assert message in said


def test_the_report_has_all_its_files_and_no_leftovers(results, report, tmp_path):
    results.run()
    results.run("pca", "digits/0")
    out = tmp_path / "elsewhere"
    code, default, said = report(results, "--out", str(out))
    assert code == 0 and not default.exists()
    names = {path.name for path in out.iterdir()}
    assert names - {"charts", "runs.parquet"} == {"report.html", "report.md", "runs.csv", "tables.tex"}
    assert str(out / "report.html") in said


def test_a_report_made_twice_is_the_same(results, report):
    for seed in (0, 1):
        results.run(seed=seed)
        results.run("pca", seed=seed)
    made = []
    for _ in range(2):
        _, out, _ = report(results)
        made.append({path.name: path.read_bytes() for path in out.glob("r*.[hmc]*")})
    assert set(made[0]) == {"report.html", "report.md", "runs.csv"}
    assert made[0] == made[1]


def test_charts_of_an_earlier_report_do_not_linger(results, report):
    for method in ("cbigan", "pca"):
        for data in ("digits/0", "digits/1"):
            results.run(method, data)
    _, out, _ = report(results)
    assert [path.name for path in (out / "charts").iterdir()] == ["ranks-0.svg"]
    for path in list(results.path.glob("pca/**/metrics.json")):
        path.unlink()
    report(results)
    assert list((out / "charts").iterdir()) == []


def test_nothing_of_the_training_stack_is_imported(results):
    results.run()
    code = (
        "import sys; from adbench.report.__main__ import main; assert main([sys.argv[1]]) == 0; "
        "heavy = {'torch', 'pytorch_lightning', 'hydra', 'omegaconf', 'matplotlib', 'wandb'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(results.path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_full_disk_leaves_the_earlier_report(results, report, monkeypatch):
    results.run()
    _, out, _ = report(results)
    before = (out / "report.html").read_bytes()
    from adbench.report import page

    def broken(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(page, "html", broken)
    with pytest.raises(OSError, match="no space"):
        report(results)
    assert (out / "report.html").read_bytes() == before
