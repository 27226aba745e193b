"""Start-up: what a command imports, how, and how often it composes its configuration."""

import gc
import subprocess
import sys
from types import SimpleNamespace

import pytest

from adbench import imports
from adbench.experiment import overrides
from adbench.imports import import_quickly


@pytest.mark.parametrize("collecting", [True, False])
def test_imports_leave_garbage_collection_as_it_was(monkeypatch, collecting):
    monkeypatch.delitem(sys.modules, "this_is_collected", raising=False)
    monkeypatch.setattr(imports.importlib, "import_module", lambda name: seen.append(gc.isenabled()))
    seen, before = [], gc.isenabled()
    try:
        (gc.enable if collecting else gc.disable)()
        import_quickly("this_is_collected")
        assert seen == [False]
        assert gc.isenabled() == collecting
    finally:
        (gc.enable if before else gc.disable)()


def test_a_failed_import_leaves_garbage_collection_on():
    with pytest.raises(ModuleNotFoundError):
        import_quickly("no_such_module_anywhere")
    assert gc.isenabled()


def test_nothing_of_somebody_elses_program_is_kept_from_collection():
    frozen = gc.get_freeze_count()
    with pytest.raises(ModuleNotFoundError):
        import_quickly("no_such_module_anywhere")
    assert gc.get_freeze_count() == frozen


def test_what_a_command_keeps_from_collection_is_given_back_before_it_ends(monkeypatch):
    """Bindings of other languages report at the end of a process what is still frozen then, as leaked."""
    frozen, at_end = [], []
    monkeypatch.setattr(imports, "_command", lambda: True)
    monkeypatch.setattr(imports.gc, "freeze", lambda: frozen.append(True))
    monkeypatch.setattr(imports.atexit, "register", at_end.append)
    monkeypatch.setattr(imports.importlib, "import_module", lambda name: None)
    import_quickly("this_is_kept")
    assert frozen == [True]
    assert at_end == [gc.unfreeze]


@pytest.mark.parametrize(
    ("main", "kept"),
    [("adbench.run", True), ("joblib.externals.loky.backend.popen_loky_posix", True), ("pytest", False), (None, False)],
)
def test_commands_and_workers_of_sweeps_keep_their_imports_from_collection(monkeypatch, main, kept):
    spec = None if main is None else SimpleNamespace(name=main)
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec))
    assert imports._command() == kept


def test_a_command_line_is_read_without_torch():
    program = (
        "import sys, adbench.run, adbench.experiment.overrides as o;"
        "o.understood(['method=pca', 'data=digits', 'results=/tmp/r', 'trainer.threads=1']);"
        "print([name for name in ('torch', 'pytorch_lightning') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def composed(monkeypatch):
    """Every composition that Hydra makes, by its overrides."""
    made = []
    load = overrides.ConfigLoaderImpl.load_configuration

    def counted(self, config_name, overrides, *rest, **options):
        made.append(overrides)
        return load(self, config_name, overrides, *rest, **options)

    monkeypatch.setattr(overrides.ConfigLoaderImpl, "load_configuration", counted)
    return made


def test_the_check_of_a_command_line_composes_once_however_many_values_it_gives(composed):
    words = ["method=pca", "data=digits", "results=/r", "cache_dir=/c", "trainer.threads=1", "overwrite=true"]
    assert overrides.understood(words) == words
    assert len(composed) == 1


def test_a_sweep_is_checked_with_each_further_choice_once(composed):
    words = ["method=pca,esad/small,ssae/small", "method.lambda_1=0.5", "method.lambda_4=0.5"]
    assert overrides.understood(words, multirun=True)[0] == words[0]
    assert len(composed) == 3


def test_a_run_composes_its_configuration_three_times(composed, run):
    """Once for the check, which the run's name then shares; twice Hydra itself."""
    code, _ = run("method=brightness", "data=mvtec/bottle", smoke=False)
    assert code == 0
    assert len(composed) == 3
