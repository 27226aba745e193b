"""The error that a person at the keyboard can mend. Nothing is imported here, so every module may import it at once."""

from __future__ import annotations

from collections.abc import Iterable


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
