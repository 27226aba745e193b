"""Every experiment composes, and has as many runs as its table has cells."""

import re

import pytest
import yaml
from compositions import composed, jobs_of, multirun, resolved
from omegaconf import OmegaConf

from adbench.data.protocols import semi_supervised_counts
from adbench.experiment import heads
from adbench.experiment.groups import conf_dir
from adbench.experiment.identity import config_hash
from adbench.experiment.values import flat

# Counted in the papers' tables: methods of ours x settings x classes or categories x seeds.
RUNS = {
    "compare/robustness": 9 * 5 * 2,
    "compare/robustness_tables": 6 * 5 * 2,
    "cbigan/alpha_textures": 2 * 5 * 3,
    "cbigan/table2": 2 * 15 * 3,
    "cbigan/table3": 2 * 15 * 3,
    "igd/preset": 1,
    "igd/rec_small": 2 * 10,
    "igd/table1": 3 * 3 * 10 * 3,
    "igd/table2": 2 * 15 * 3,
    "igd/table3": 2 * 15 * 3,
    "igd/table4": 2 * 2 * 3,
    "igd/table5": 4 * 3 * 10 * 3,
    "igd/table6": 3 * 3 * 10 * 3,
    "igd/table6_mvtec": 3 * 3 * 15 * 3,
    "igd/table7": 3 * 3 * 10 * 3,
    "igd/table7_mvtec": 3 * 3 * 15 * 3,
    "igd/tableS1": 2 * 15 * 3,
    "igd/tableS2": 10 * 3,
    "igd/tableS3": 2 * 10 * 3,
    "igd/tableS4": 2 * 10 * 3,
    "igd/tableS5": 2 * 15 * 3,
    "pwae/preset": 1,
    "pwae/ablation_small": 5 * 3 * 3,
    "pwae/table1": 15 * 3,
    "pwae/table2": 15 * 3,
    "ssae/sizes": 3 * 2 * 10 * 3,
    "ssae/table2": 2 * 15 * 3,
    "ssae/table3": 2 * 15 * 3,
    "ssae/table4": 3 * 5 * 3,
    "esad/preset": 1,
    "esad/table1": 2 * (10 + 90 * 4),
    "esad/table1_cifar10": 10 + 90 * 4,
    "esad/table1_mnist_small": 3 * 3,
    "esad/table2": 4 * 3,
    "esad/table3": 7 * 6 * 10,
    "esad/table3_pretrained": 2 * 6 * 10,
    "esad/table3_readings": 6 * 6 * 10,
    "esad/figure2": 2 * 90 * 7,
    "esad/figure2_cifar10": 90 * 7,
    "esad/figure5": 90 * 6,
    "esad/table4": 3 * 2 * 10,
    "esad/table5": 2 * (10 + 90 * 4),
    "esad/table8": 2 * (10 + 90),
    "esad/table8_cifar10": 10 + 90,
    "esad/table9": 2 * 90 * 5,
    "esad/table9_cifar10": 90 * 5,
    "esad/table10": 2 * 10 * 5 * 10,
    "esad/table10_cifar10": 10 * 5 * 10,
    "esad/robustness": 2 * 3,
    "first_look": 6 * 5 * 2,
}
FILES = {
    path.relative_to(conf_dir() / "experiment").with_suffix("").as_posix(): path
    for path in (conf_dir() / "experiment").rglob("*.yaml")
}


def test_every_experiment_has_a_count_here():
    assert set(FILES) == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_an_experiment_has_a_run_for_each_cell_of_its_table(name):
    jobs = jobs_of(name)
    assert len(jobs) == len({tuple(job) for job in jobs}) == RUNS[name]


@pytest.mark.parametrize("name", RUNS)
def test_the_first_and_the_last_run_compose_and_are_two_different_runs(name):
    jobs = jobs_of(name)
    hashes = set()
    for overrides in {jobs[0], jobs[-1]}:
        cfg = resolved(*overrides)
        assert [key for key, value in flat(OmegaConf.to_container(cfg)).items() if value == "???"] == []
        assert cfg.data.kind in cfg.method.recipe.input
        hashes.add(config_hash(composed(*overrides)))
    assert len(hashes) == min(2, len(jobs))


@pytest.mark.parametrize("name", RUNS)
def test_the_budget_of_an_experiment_is_a_word_on_the_command_line(name):
    small = name.endswith("_small") or name.startswith("compare/") or name in ("esad/robustness", "first_look")
    assert multirun(name).budget.name == ("quick" if small else "paper")
    # The file chooses a budget among its defaults and sets none of its values, which a word could not take back.
    own = yaml.safe_load(FILES[name].read_text(encoding="utf-8")).get("budget")
    assert own is None or name == "esad/robustness"  # whose charts compare runs of one length
    if not name.startswith("compare/"):  # whose detectors all train equally long
        assert not [word for job in jobs_of(name) for word in job if word.startswith("budget")]


def test_a_budget_on_the_command_line_takes_the_place_of_an_experiments_own():
    assert multirun("igd/table1", "budget=quick").budget.name == "quick"
    assert multirun("first_look", "budget=paper").budget.name == "paper"


@pytest.mark.parametrize("name", [name for name in RUNS if "preset" not in name and "robustness" not in name])
def test_the_header_says_command_runs_cost_and_number(name):
    header = "".join(line for line in FILES[name].read_text().splitlines(keepends=True) if line.startswith("#"))
    assert re.search(rf"python -m adbench\.run -m experiment={name}\s", header)
    assert re.search(rf"\b{RUNS[name]:,}\b|\b{RUNS[name]}\b", header), f"the header does not say {RUNS[name]} runs"
    assert "Cost" in header
    assert "aper" in header or name == "first_look"


QUICK = ("cbigan/table2", "esad/table4", "igd/tableS2", "first_look")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in RUNS])
def test_the_counts_and_lengths_in_a_head_are_those_that_compose(name):
    text = FILES[name].read_text()
    assert heads.rewritten(name, text) == text, "make heads writes them anew"


def test_a_count_or_a_length_that_is_wrong_is_mended_and_the_prose_stays():
    text = FILES["cbigan/table2"].read_text()
    wrong = text.replace("= 90", "= 91").replace("200,000 batches", "2,500 batches")
    assert wrong != text
    assert heads.rewritten("cbigan/table2", wrong) == text
    assert heads.rewritten("esad/preset", FILES["esad/preset"].read_text()) == FILES["esad/preset"].read_text()


def test_a_head_says_the_length_of_each_method_where_they_differ():
    (line,) = [line for line in heads.block("first_look", "").splitlines() if line.startswith("# Length")]
    assert "300 batches of 8 (cbigan/small on object" in heads.block("first_look", "").replace("\n#     ", " ")
    assert line.startswith("# Length at budget=quick: ")


def test_the_commands_of_a_head_are_told_to_be_out_of_date_by_check(tmp_path, monkeypatch, capsys):
    file = tmp_path / "table2.yaml"
    file.write_text(FILES["cbigan/table2"].read_text().replace("= 90", "= 91"))
    monkeypatch.setattr(heads, "files", lambda: {"cbigan/table2": file})
    assert heads.main(["--check"]) == 1
    assert "= 91" in file.read_text()
    assert heads.main([]) == 0
    assert heads.main(["--check"]) == 0
    assert file.read_text() == FILES["cbigan/table2"].read_text()


@pytest.mark.parametrize("name", RUNS)
def test_no_head_tells_hours_that_nobody_measured(name):
    head = "".join(line for line in FILES[name].read_text().splitlines(keepends=True) if line.startswith("#"))
    assert "an assumption" not in head
    assert not re.search(r"\b(hours?|days?|weeks?|minutes?) (of|for)\b", head)


@pytest.mark.parametrize("name", RUNS)
def test_the_commands_of_a_header_compose(name):
    text = FILES[name].read_text().replace("\\\n#", " ")
    for line in re.findall(r"python -m adbench\.run (.*)", text):
        arguments = re.split(r"\s{4,}", line)[0].split()
        overrides = [a for a in arguments if not a.startswith(("-", "experiment="))]
        jobs = jobs_of(name, *overrides)
        cfg = composed(*jobs[0])
        said = {key: value for key, equals, value in (a.partition("=") for a in overrides) if key in ("budget", "seed")}
        assert jobs
        assert str(cfg.budget.name) == said.get("budget", cfg.budget.name)
        assert cfg.method._target_.startswith("adbench.methods.")


HOLDOUT = re.compile(r"\bheld[- ]out\b|\bholds? (\S+ ){1,3}out\b|\bvalidat")


@pytest.mark.parametrize("name", [name for name in RUNS if "/table" in name])
def test_a_table_trains_on_the_papers_rows_or_its_head_says_what_needs_held_out_ones(name):
    jobs = jobs_of(name)
    head = "".join(line for line in FILES[name].read_text().splitlines(keepends=True) if line.startswith("#"))
    for overrides in {jobs[0], jobs[-1]}:
        cfg = resolved(*overrides)
        assert cfg.protocol.holdout == 0 or HOLDOUT.search(head), f"{name} holds out {cfg.protocol.holdout}"


def test_the_capsule_of_p_wae_is_wide_and_the_others_are_square():
    jobs = jobs_of("pwae/table1")
    sizes = {}
    for overrides in jobs[::3]:
        if any(f"data=mvtec/{name}" in overrides for name in ("bottle", "capsule", "carpet")):
            cfg = composed(*overrides)
            sizes[cfg.data.id] = cfg.data.image_size
    assert sizes == {"mvtec/bottle": 300, "mvtec/capsule": [300, 1008], "mvtec/carpet": 300}


@pytest.mark.parametrize("name", ["cbigan/table2", "cbigan/table3", "pwae/table1", "pwae/table2"])
def test_tables_whose_metrics_need_no_held_out_rows_train_on_all_of_them(name):
    jobs = jobs_of(name)
    assert resolved(*jobs[0]).protocol.holdout == 0


def test_ssaes_tables_hold_out_the_papers_share():
    for table in (2, 3, 4):
        assert resolved(*jobs_of(f"ssae/table{table}")[0]).protocol.holdout == 0.05


def test_the_sizes_of_ssaes_objects_are_the_papers():
    runs = [composed(*job) for job in jobs_of("ssae/sizes")[:18:3]]
    assert {(run.data.image_size, run.method.image_size, run.method.kernel) for run in runs} == {
        (side, side, kernel) for side in (256, 384, 512) for kernel in (3, 5)
    }


def test_every_paper_of_the_bench_has_its_tables():
    tables = {name.split("_")[0] for name in RUNS}
    assert {f"cbigan/table{t}" for t in (2, 3)} <= tables
    assert {f"igd/table{t}" for t in (1, 2, 3, 4, 5, 6, 7, "S1", "S2", "S3", "S4", "S5")} <= tables
    assert {f"pwae/table{t}" for t in (1, 2)} | {f"ssae/table{t}" for t in (2, 3, 4)} <= tables
    assert {f"esad/table{t}" for t in (1, 2, 3, 4, 5, 8, 9, 10)} <= tables


def test_the_deep_sad_of_esad_s_table_2_has_esad_s_network_and_sees_what_esad_sees():
    (line,) = re.findall(r"python -m adbench\.run (.*deep_sad.*)", FILES["esad/table2"].read_text())
    overrides = [a for a in line.split() if not a.startswith(("-", "experiment="))]
    jobs = jobs_of("esad/table2", *overrides)
    esads = jobs_of("esad/table2")
    for overrides, others in ((jobs[0], esads[0]), (jobs[-1], esads[-1])):
        cfg, esad = resolved(*overrides), resolved(*others)
        assert (cfg.method.network, cfg.data.image_size, cfg.pretraining.epochs) == ("esad", 64, 150)
        assert (cfg.data.id, cfg.data.image_size, cfg.protocol) == (esad.data.id, esad.data.image_size, esad.protocol)


def test_deep_sad_with_esad_s_network_sees_objects_at_64_px_and_class_sets_at_32():
    sizes = {
        name: composed(f"data={name}", "method=deep_sad/esad").data.image_size for name in ("camelyon16", "cifar10")
    }
    assert sizes == {"camelyon16": 64, "cifar10": 32}


@pytest.mark.parametrize("name", ["esad/table1", "esad/table2", "esad/table5", "esad/table9", "esad/table10"])
def test_the_image_tables_of_deep_sad_pretrain_as_deep_sad_does(name):
    lines = [
        line for line in FILES[name].read_text().splitlines() if "adbench.run" in line and "method=deep_sad" in line
    ]
    assert lines and all("pretraining=autoencoder_deep_sad" in line for line in lines)
    cfg = composed("pretraining=autoencoder_deep_sad")
    found = {
        key: cfg.pretraining[key] for key in ("epochs", "milestones", "batch_size", "lr", "weight_decay", "reduction")
    }
    assert found == {
        "epochs": 150, "milestones": [], "batch_size": 128, "lr": 1e-4, "weight_decay": 0.5e-3, "reduction": "mean",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["esad/table8", "esad/table8_cifar10"])
def test_the_deep_svdd_of_esad_s_table_8_has_images_as_they_are_and_both_of_its_variants(name):
    text = FILES[name].read_text().replace("\\\n#", " ")
    lines = re.findall(r"python -m adbench\.run (.*method=deep_svdd.*)", text)
    assert lines
    for line in lines:
        jobs = jobs_of(name, *[a for a in line.split() if not a.startswith(("-", "experiment="))])
        methods = [composed(*job).method for job in (jobs[0], jobs[1], jobs[-1])]
        assert [m.contrast for m in methods] == [False] * 3
        assert {m.soft_boundary for m in methods} == {False, True}


def test_esad_s_table_2_takes_all_kinds_of_the_sets_whose_known_anomalies_the_paper_only_counts():
    jobs = jobs_of("esad/table2")
    known = {cfg.data.id: cfg.protocol for cfg in (resolved(*job) for job in jobs[::3])}
    kinds = {name: OmegaConf.to_container(protocol)["labelled_classes"] for name, protocol in known.items()}
    assert kinds == {
        "camelyon16": "all", "nih_chest_xray/subset": "all", "nih_chest_xray/pa": ["Infiltration"],
        "nih_chest_xray/ap": ["Infiltration"],
    }  # fmt: skip
    for name, normal, anomalous in (("camelyon16", 7612, 200), ("nih_chest_xray/subset", 5110, 857)):
        assert semi_supervised_counts(normal, known[name].labelled_ratio, 0.0).known_anomalous == anomalous
