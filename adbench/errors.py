"""The error that a person at the keyboard can mend. Nothing is imported here, so every module may import it at once."""

from __future__ import annotations


class UserError(ValueError):
    """Something the person at the keyboard can mend: the message says what was expected, what came, what to type."""
