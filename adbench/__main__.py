"""`adbench COMMAND ...` and `python -m adbench COMMAND ...`: every command of the package under one name.

`adbench method=... data=...`, without a command's name, trains.
"""

from __future__ import annotations

import importlib
import sys

from adbench.errors import command

# Name of the command -> its module and what it does. Nothing is imported before it is known which one is meant.
COMMANDS = {
    "train": ("adbench.run", "train and test a method, or a sweep of them"),
    "predict": ("adbench.predict", "score new images with a finished run or an exported model"),
    "serve": ("adbench.serve", "answer requests over HTTP with a trained detector, and a page to drop images on"),
    "export": ("adbench.export", "write a trained detector as one file (ONNX, torch.export, safetensors)"),
    "evaluate": ("adbench.evaluate", "test a finished run again, on its own or on other data"),
    "report": ("adbench.report.__main__", "tables and a page from a folder of runs"),
    "reproduce": ("adbench.studies.reproduce", "a paper's tables on the data in reach"),
    "proof": ("adbench.studies.proof", "speed and figures of the papers' presets on this machine, hour by hour"),
    "corruptions": ("adbench.studies.corruptions", "pictures of a method's training corruptions"),
    "orthogonality": ("adbench.studies.orthogonality", "SSAE's Figure 9 for a finished run"),
}


def help_text() -> str:
    """What `adbench --help` prints."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "Visual anomaly detection: train, compare and use detectors. adbench COMMAND ... or python -m adbench ...",
            "",
            *(f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()),
            "",
            "adbench COMMAND --help says more; adbench method=... data=... trains without naming the command.",
            "adbench --version; adbench --completion bash|zsh|fish prints a script for the shell to source.",
        ]
    )


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help"):
        print(help_text())
        return 0
    if first == "--version":
        from adbench import __version__

        print(f"adbench {__version__}")
        return 0
    if first in ("--completion", "--complete"):
        return _complete(first, arguments[1:])
    if first in COMMANDS:
        arguments = arguments[1:]
    elif "=" not in first and not first.startswith("-"):
        return _unknown(first)
    module, _ = COMMANDS.get(first, COMMANDS["train"])
    sys.argv = [f"adbench {first}", *arguments]
    return int(importlib.import_module(module).main(arguments) or 0)


def _complete(option: str, arguments: list[str]) -> int:
    from adbench.completion import SCRIPTS, candidates

    if option == "--complete":
        print("\n".join(candidates(" ".join(arguments), tuple(COMMANDS))))
        return 0
    shell = arguments[0] if arguments else ""
    if shell not in SCRIPTS:
        print(f"error: --completion takes {', '.join(SCRIPTS)}, got {shell or 'nothing'}", file=sys.stderr)
        return 1
    print(SCRIPTS[shell], end="")
    return 0


def _unknown(name: str) -> int:
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
    print(f"error: adbench {name} is no command; {hint}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
