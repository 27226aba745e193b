"""The error that a person at the keyboard can mend, and how a command ends with it.

Nothing heavy is imported here, so every module may import it at once.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterable
from typing import TypeVar, cast

Main = TypeVar("Main", bound=Callable[..., int])


def first_line(error: BaseException) -> str:
    """Type and first line of an error that another library raised."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """ "did you mean ...? " with the name that is most like a word, capitals and underscores aside; "" if none is."""
    import difflib

    plain = {name.lower().replace("_", ""): name for name in names}
    found = difflib.get_close_matches(word.lower().replace("_", ""), plain, n=1)
    return f"did you mean {plain[found[0]]}? " if found else ""


class UserError(ValueError):
    """Something the person at the keyboard can mend: the message says what was expected, what came, what to type."""


class NotDownloaded(UserError):
    """What only a download brings is not on this machine."""


def command(main: Main) -> Main:
    """The `main` of a command, which ends without a traceback where the fault is not the program's.

    A `UserError`, and a file or a folder that the system refuses, end in one line and exit code 1, Ctrl-C in 130. A
    reader that goes away (`| head`) costs no work: what is printed after it is dropped. HYDRA_FULL_ERROR=1 shows the
    traceback of what the system refused.
    """

    @functools.wraps(main)
    def guarded(arguments: list[str] | None = None) -> int:
        raising, logging.raiseExceptions = logging.raiseExceptions, False  # a log line for a reader that went away
        try:
            return main(arguments)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except BrokenPipeError:
            return 141  # as a shell says of SIGPIPE
        except OSError as error:
            if error.filename is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            print(f"error: {error.filename} cannot be used: {error.strerror}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130
        finally:
            logging.raiseExceptions = raising
            _drop_what_nobody_reads()

    return cast(Main, guarded)


def _drop_what_nobody_reads() -> None:
    """Flush standard output; where its reader has gone, Python's own flush at the end has nothing to complain of."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
