"""`trainer.precision=auto`: what it takes, and that nothing but the record depends on it."""

import json

import pytest
import torch
from compositions import composed, folder_of
from conftest import metrics_of

from adbench.experiment import precision, values
from adbench.experiment.identity import config_hash
from adbench.experiment.record import keys
from adbench.report.collect import variant_of

FLOAT32, BFLOAT16 = precision.FLOAT32, precision.BFLOAT16


@pytest.fixture
def processor(monkeypatch):
    """`processor(True)` makes this machine one without a GPU whose processor has bfloat16, `False` one without."""

    def be(has_it, cost=16.0):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: has_it)
        monkeypatch.setattr(precision, "bfloat16_cost", lambda: cost)
        precision.cpu_capability.cache_clear()

    yield be
    precision.cpu_capability.cache_clear()


@pytest.mark.parametrize("accelerator", ["auto", "cpu"])
def test_auto_takes_bfloat16_where_the_processor_has_it_and_float32_elsewhere(processor, accelerator):
    processor(True)
    assert precision.chosen("auto", accelerator, trains=True, tabular=False) == BFLOAT16
    processor(False)
    assert precision.chosen("auto", accelerator, trains=True, tabular=False) == FLOAT32


def test_auto_is_float32_for_tables_and_for_methods_that_do_not_learn_by_gradients(processor):
    processor(True)
    assert precision.chosen("auto", "cpu", trains=True, tabular=True) == FLOAT32
    assert precision.chosen("auto", "cpu", trains=False, tabular=False) == FLOAT32


@pytest.mark.parametrize("asked", [FLOAT32, BFLOAT16, "64-true", "16-mixed"])
def test_an_explicit_precision_is_taken_as_it_is(processor, asked):
    processor(False)
    assert precision.chosen(asked, "cpu", trains=True, tabular=True, begun=FLOAT32) == asked


@pytest.mark.parametrize("here", [True, False])
def test_a_run_goes_on_in_the_precision_that_it_began_with_on_any_machine(processor, here):
    processor(here)
    for begun in (FLOAT32, BFLOAT16):
        assert precision.chosen("auto", "cpu", trains=True, tabular=False, begun=begun) == begun


def test_a_gpu_is_asked_for_bfloat16_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for native in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, n=native: n)
        assert precision.has_bfloat16("gpu") is native
        assert precision.has_bfloat16("auto") is native


@pytest.mark.parametrize("capability, instructions, expected", [
    ("AVX512", {"_is_avx512_bf16_supported": True, "_is_amx_tile_supported": False}, True),
    ("AVX512", {"_is_avx512_bf16_supported": False, "_is_amx_tile_supported": True}, True),
    ("AVX512", {"_is_avx512_bf16_supported": False, "_is_amx_tile_supported": False}, False),
    ("AVX2", {"_is_avx512_bf16_supported": True, "_is_amx_tile_supported": True}, False),
    ("AVX512", {"_is_avx512_bf16_supported": None, "_is_amx_tile_supported": None}, None),
])  # fmt: skip
def test_torch_is_asked_for_the_instructions_and_not_for_what_it_emulates(
    monkeypatch, capability, instructions, expected
):
    monkeypatch.setattr(precision.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for name, answer in instructions.items():
        monkeypatch.setattr(torch.cpu, name, None if answer is None else lambda a=answer: a, raising=False)
    assert precision._said_of_the_cpu() is expected


@pytest.mark.parametrize("cost, expected", [(0.8, True), (2.9, False), (16.0, False)])
def test_where_torch_is_silent_the_time_of_a_convolution_decides(monkeypatch, cost, expected):
    monkeypatch.setattr(precision, "_said_of_the_cpu", lambda: None)
    monkeypatch.setattr(precision, "bfloat16_cost", lambda: cost)
    assert precision.cpu_has_bfloat16.__wrapped__() is expected


def test_what_torch_says_of_this_processor_is_what_a_convolution_shows():
    said = precision._said_of_the_cpu()
    shown = precision.bfloat16_cost.__wrapped__() < precision.EMULATED_FROM
    assert said is None or said == shown


def test_timing_a_convolution_leaves_the_random_stream_and_gradients_as_they_were():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with torch.no_grad():
        precision.bfloat16_cost.__wrapped__()
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)


def test_an_emulated_precision_is_named_with_its_price_in_one_line_and_others_are_not(processor):
    processor(False, cost=16.2)
    word = precision.word_on_emulation(BFLOAT16, "cpu")
    assert "16 times as long" in word
    assert "trainer.precision=32-true" in word
    assert "\n" not in word
    assert precision.word_on_emulation(FLOAT32, "cpu") is None
    processor(True)
    assert precision.word_on_emulation(BFLOAT16, "cpu") is None


@pytest.mark.parametrize("trainer", ["default", "cpu", "gpu", "ddp", "smoke"])
def test_auto_is_the_default_of_every_trainer(trainer):
    assert composed(f"trainer={trainer}").trainer.precision == "auto"


def test_folder_and_hash_do_not_depend_on_what_auto_finds(processor):
    found = set()
    for here in (True, False):
        processor(here)
        found.add((folder_of("method=ssae/small"), config_hash(composed("method=ssae/small"))))
    assert len(found) == 1


def test_a_trainer_takes_the_word_auto_and_refuses_others_as_before():
    values.refuse_absent_devices({"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "auto"})
    hint = values.hints_of(values.TRAINER)["precision"]
    assert values.fits("auto", hint)
    assert not values.fits("bf17", hint)


def test_the_record_says_what_was_used():
    assert {"precision", "hardware.cpu_capability"} <= set(keys())


def test_a_report_tells_runs_apart_by_what_they_trained_in_and_not_by_who_chose_it():
    def variant(used, **changed):
        record = {"method": "ssae/small", "pretraining": "none", "protocol": "one_class", "changed": changed}
        return variant_of(record | ({"precision": used} if used else {}), {}, "digits")

    explicit = {"trainer.precision": BFLOAT16}
    assert variant(FLOAT32) == variant(None) == variant(FLOAT32, **{"trainer.precision": FLOAT32})
    assert variant(BFLOAT16) == variant(BFLOAT16, **explicit) == variant(None, **explicit)
    assert variant(BFLOAT16) != variant(FLOAT32)


def test_a_run_records_its_precision_and_goes_on_in_it_where_auto_would_find_another(run, processor):
    line = ("method=esad/small", "data=mvtec/bottle", "data.batch_size=4")
    processor(True)
    code, folder = run(*line)
    record = metrics_of(folder)
    assert code == 0
    assert record["precision"] == BFLOAT16
    assert record["hardware"]["cpu_capability"].endswith("+bf16")

    interrupted(folder)
    processor(False)
    code, again = run(*line)
    assert (code, again) == (0, folder)
    assert metrics_of(folder)["precision"] == BFLOAT16
    assert "has no bfloat16 and emulates it" in (folder / "run.log").read_text()


def test_a_run_of_before_auto_goes_on_and_is_answered_as_the_float32_that_it_is(run, processor):
    line = ("method=esad/small", "data=mvtec/bottle", "data.batch_size=4", "seed=1")
    processor(False)
    _, folder = run(*line)
    config = folder / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("precision: auto", "precision: 32-true"))
    interrupted(folder, precision=None, config_hash="of another default")
    processor(True)
    code, again = run(*line)
    assert (code, again) == (0, folder)
    assert metrics_of(folder)["precision"] == FLOAT32
    scores = (folder / "scores.csv").stat().st_mtime_ns
    assert run(*line) == (0, folder)  # answered
    assert (folder / "scores.csv").stat().st_mtime_ns == scores


def interrupted(folder, **changes):
    """Make a finished run one that was stopped; a change to None removes a key of its record."""
    record = metrics_of(folder) | {"status": "interrupted"} | changes
    record = {key: value for key, value in record.items() if value is not None}
    (folder / "metrics.json").write_text(json.dumps(record))
