"""`adbench COMMAND`, and what a shell completes."""

import logging
import os
import shutil
import subprocess
import sys

import pytest

from adbench.__main__ import COMMANDS, main
from adbench.completion import BASH, OPTIONS, candidates
from adbench.errors import UserError, command


def test_every_command_of_the_help_exists_and_has_a_help_of_its_own(capsys):
    assert main([]) == 0
    listed = capsys.readouterr().out
    for name in COMMANDS:
        assert f"  {name} " in listed
        try:
            assert main([name, "--help"]) == 0
        except SystemExit as stop:  # argparse's way
            assert stop.code == 0
        assert len(capsys.readouterr().out) > 100


def test_a_mistyped_command_is_answered_with_the_nearest(capsys):
    assert main(["trian"]) == 1
    assert "did you mean train?" in capsys.readouterr().err


def test_the_version_is_the_packages(capsys):
    from adbench import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"adbench {__version__}\n"


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("adbench pre", ["predict"]),
        ("adbench train method=ssae/sm", ["method=ssae/small"]),
        ("adbench data=tex", ["data=textures/"]),
        ("adbench data=textures/g", ["data=textures/grass", "data=textures/gravel"]),
        ("adbench train method=egbad,kd", ["method=egbad,kde", "method=egbad,kde/"]),
        ("adbench train protocol=one", ["protocol=one_class"]),
        ("adbench train overw", ["overwrite="]),
        ("adbench train method=nosuch", []),
        ("adbench ser", ["serve"]),
        ("adbench serve --max-b", ["--max-batch", "--max-bytes"]),
        ("adbench serve me", []),
        ("adbench --dr", ["--dry-run"]),
        ("adbench train -m seed=0,1 --dr", ["--dry-run"]),
        ("adbench reproduce cbigan --d", ["--dry-run"]),
        ("adbench train data.root=/ho", []),
    ],
)
def test_candidates(line, wanted):
    assert candidates(line, tuple(COMMANDS)) == wanted


def test_the_options_that_are_completed_are_those_of_the_command():
    from adbench.serve import _parser

    assert set(OPTIONS["serve"]) == {flag for action in _parser()._actions for flag in action.option_strings} - {"-h"}


def test_completion_imports_no_torch_and_no_hydra():
    code = (
        "import sys; from adbench.__main__ import main; main(['--complete', 'adbench method=ss']);"
        "print(sorted({'torch', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["method=ssae", "method=ssae/", "[]"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "wanted"), [("adbench train data=textures/b", "textures/brick"), ("adbench tra", "train")]
)
def test_bash_completes_the_word_under_the_cursor(tmp_path, line, wanted):
    program = tmp_path / "adbench"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m adbench "$@"\n')
    program.chmod(0o755)
    typed = f'COMP_LINE="{line}" COMP_POINT={len(line)}'
    script = f'PATH="{tmp_path}:$PATH"\n{BASH}\n{typed}\n_adbench\necho "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == wanted


# -- how commands end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("say data=NAME"), 1, "error: say data=NAME\n"),
        (OSError(13, "Permission denied", "/somewhere"), 1, "error: /somewhere cannot be used: Permission denied\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
    ],
)  # fmt: skip
def test_what_is_not_the_programs_fault_ends_a_command_in_one_line(capsys, error, code, message):
    @command
    def fails(arguments):
        raise error

    assert fails([]) == code
    assert capsys.readouterr().err == message


def test_an_error_of_the_program_keeps_its_traceback():
    @command
    def fails(arguments):
        raise OSError("no file is named")

    with pytest.raises(OSError, match="no file is named"):
        fails([])


def test_every_command_ends_in_this_way():
    import importlib

    for module, _ in COMMANDS.values():
        assert hasattr(importlib.import_module(module).main, "__wrapped__"), module


def test_a_log_line_that_nobody_reads_costs_no_work(capsys):
    read, write = os.pipe()
    os.close(read)
    handler = logging.StreamHandler(os.fdopen(write, "w", buffering=1))
    log = logging.getLogger("adbench.test_main")

    @command
    def works(arguments):
        log.warning("half of it")
        return 0

    log.addHandler(handler)
    try:
        assert works([]) == 0
    finally:
        log.removeHandler(handler)
    assert "Logging error" not in capsys.readouterr().err
    assert logging.raiseExceptions


def test_help_for_a_reader_that_goes_away_says_nothing_else():
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run([sys.executable, "-m", "adbench"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert ended.stderr == ""
