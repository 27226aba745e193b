"""What a run folder holds, and what a command does about it: one table, in code and in docs/run_folder.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

Action = Literal["start", "resume", "answer", "answer-stale", "refuse"]
Holds = Literal["nothing", "training", "finished", "unreadable", "unknown"]
ANY: tuple[str, ...] = ()


class Facts(NamedTuple):
    """What decides between a folder and a command.

    `data`, `settings` and `code` compare the command with what the folder's run was made with ("same" or "other");
    they say nothing where the folder holds nothing.
    """

    status: str  # of metrics.json; "" where there is none that can be read
    checkpoint: Literal["none", "whole", "damaged"]  # of the run that metrics.json is about
    data: str = "same"
    settings: str = "same"
    code: str = "same"
    overwrite: bool | str = False  # true, false or "stale"
    resume: bool = True

    @property
    def holds(self) -> Holds:
        """What there is to lose."""
        if not self.status:
            return "nothing" if self.checkpoint == "none" else "unknown"
        if self.status == "finished":
            return "finished"
        return "training" if self.checkpoint == "whole" else "unreadable" if self.checkpoint == "damaged" else "nothing"

    @property
    def option(self) -> str:
        """The option of the command that matters."""
        if self.overwrite:
            return "overwrite=stale" if self.overwrite == "stale" else "overwrite=true"
        return "" if self.resume else "resume=false"


class Rule(NamedTuple):
    """One row of the table. An empty column takes anything."""

    holds: Sequence[Holds]
    data: str
    settings: str
    code: str
    option: str
    action: Action
    words: str  # what the command does, for the documentation

    def fits(self, facts: Facts) -> bool:
        """Whether the row is about these facts."""
        given = ((self.data, facts.data), (self.settings, facts.settings), (self.code, facts.code))
        return (
            (not self.holds or facts.holds in self.holds)
            and all(wanted in ("", found) for wanted, found in given)
            and self.option in ("", facts.option)
        )


TRAINED: tuple[Holds, ...] = ("training", "finished")

#: The first row that fits decides.
RULES: tuple[Rule, ...] = (
    Rule((), "", "", "", "overwrite=true", "start",
         "at batch 0; what was there stays whole until the first batch of the new training"),
    Rule(("nothing",), "", "", "", "", "start", "at batch 0"),
    Rule(("unknown",), "", "", "", "", "refuse",
         "a checkpoint lies there, and no metrics.json tells what it was trained on"),
    Rule(("unreadable",), "", "", "", "", "refuse", "the checkpoint cannot be read"),
    Rule(TRAINED, "other", "", "", "", "refuse", "names the files that differ"),
    Rule(TRAINED, "", "other", "", "", "refuse", "names the settings that differ"),
    Rule(TRAINED, "", "", "other", "overwrite=stale", "start",
         "at batch 0; what was there stays whole until the first batch of the new training"),
    Rule(("finished",), "", "", "other", "", "answer-stale", "the figures, marked as stale"),
    Rule(("finished",), "", "", "", "", "answer", "the figures"),
    Rule(("training",), "", "", "", "resume=false", "refuse",
         "starting at 0 would lose what is trained; say `overwrite=true` for that"),
    Rule(("training",), "", "", "", "", "resume",
         "at the last checkpoint; stays marked as stale if the code is other"),
)  # fmt: skip


def rule(facts: Facts) -> Rule:
    """The row that decides."""
    return next(row for row in RULES if row.fits(facts))


def decide(facts: Facts) -> Action:
    """What the command does."""
    return rule(facts).action


def table() -> str:
    """The rows as a Markdown table."""
    head = ("the folder holds", "data", "settings", "code", "option", "the command")
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in RULES:
        cells = (" or ".join(row.holds) or "anything", row.data, row.settings, row.code)
        option = f"`{row.option}`" if row.option else ""
        lines.append(f"| {' | '.join([*cells, option, f'**{row.action}**: {row.words}'])} |")
    return "\n".join(lines)


class Outcome(NamedTuple):
    """What became of a command. It travels from a sweep's workers back to the sweep."""

    code: int  # the exit code
    status: str  # finished, failed, interrupted; refused where the folder holds what the command must not touch
    reason: str = ""
    began: bool = False  # whether the folder's metrics.json tells of this command
    stale: bool = False
