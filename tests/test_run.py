import json
import subprocess
import sys
import time

import pytest

from adbench.run import GROUPS, choices, help_text, main, unknown_choice, values_for_the_jobs


def test_help_lists_every_choice_of_every_group():
    text = help_text()
    for group in GROUPS:
        for name in choices(group):
            assert name in text


def test_help_answers_without_importing_torch_or_hydra():
    code = (
        "import sys; from adbench.run import main; main(['--help']); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'hydra', 'omegaconf')))"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("python -m adbench.run ") >= 5
    assert time.perf_counter() - started < 30  # a hang, not a speed: it takes a tenth of a second


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("method=cbigann", "method=cbigann does not exist; did you mean cbigan"),
        ("data=mvtec/botle", "did you mean mvtec/bottle"),
        ("logger=csv,wnadb", "logger=wnadb does not exist; did you mean wandb"),
        ("budget=xyzzy", "there are paper, quick, smoke"),
    ],
)
def test_a_mistyped_choice_is_told_before_anything_is_imported(argument, message, capsys):
    assert main([argument]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["method=choice(cbigan,egbad)", "seed=range(3)", "method.alpha=0.1", "+extra=1"])
def test_what_is_not_a_plain_choice_is_left_to_hydra(argument):
    assert unknown_choice([argument]) is None


def test_a_value_for_swept_methods_is_left_to_the_jobs_and_other_arguments_are_as_they_were():
    arguments = ["-m", "method=cbigan,egbad", "data=digits", "method.latent=16", "method.alpha=0,1", "+method.a=[1,4]",
                 "data.normal_class=3", "seed=1", "~method.b", "data.root=/a b/c"]  # fmt: skip
    expected = list(arguments)
    expected[3], expected[5] = "method.latent=choice(16)", "+method.a=choice([1,4])"
    assert values_for_the_jobs(arguments) == expected


def test_a_sweep_over_methods_takes_a_value_that_the_default_method_does_not_know(tmp_path, monkeypatch):
    monkeypatch.setenv("ADBENCH_RESULTS", str(tmp_path))
    monkeypatch.setenv("ADBENCH_CACHE", str(tmp_path / "cache"))
    assert main(["-m", "method=cbigan/small,egbad/small", "data=digits", "method.latent=8", "trainer=smoke"]) == 0
    found = [json.loads(p.read_text()) for p in tmp_path.rglob("metrics.json")]
    assert sorted(record["method"] for record in found) == ["cbigan/small", "egbad/small"]
    assert all(record["changed"]["method.latent"] == 8 for record in found)


def test_help_says_of_every_method_what_it_is_for():
    from adbench.experiment.advice import purpose, table

    text = help_text()
    assert "\n".join(table()) in text
    for name in choices("method"):
        assert purpose(name), name
    assert purpose("somebody/elses") is None


def test_help_names_a_small_preset_of_methods_that_have_one_alone():
    from adbench.experiment.advice import PURPOSES

    promised = [method for method, (_, cost) in PURPOSES.items() if "NAME/small" in cost]
    assert "ssae" in promised
    assert [method for method in promised if f"{method}/small" not in choices("method")] == []
