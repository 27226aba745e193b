"""A command and its run folder: the facts that the table in `states` decides by, and the messages about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from adbench.errors import UserError
from adbench.experiment.codehash import code_of, targets_of
from adbench.experiment.folder import RunFolder
from adbench.experiment.identity import Identity, changed_settings, digest
from adbench.experiment.states import Action, Facts, decide

if TYPE_CHECKING:
    from adbench.experiment.checkpoints import Checkpoint

STALE = "stale: the code behind these figures has changed since; overwrite=stale trains such runs anew"
NAMED = 3  # differences of a kind that a message names


class Data(NamedTuple):
    """What a data set is compared by."""

    fingerprint: str  # of contents, names, labels, classes, parts and masks; not of where the data lie
    paths: tuple[str, ...]  # of its rows

    @classmethod
    def of(cls, source: Any) -> Data:
        """That of a source of rows; its files are read, as far as they may have changed."""
        columns = {column.name: getattr(source.records, column.name).tolist() for column in fields(source.records)}
        return cls(digest([source.fingerprint(), columns], 32), tuple(columns["path"]))


class Standing(NamedTuple):
    """The decision about a command, and its grounds."""

    action: Action
    reason: str  # why the command is refused, or what to say beside the figures
    record: Mapping[str, Any]  # what metrics.json says
    checkpoint: Checkpoint | None  # to go on from


def code_hash(cfg: DictConfig) -> str:
    """The code behind a run: of its method, its pretraining and its protocol. Data go by their fingerprint."""
    nodes = (OmegaConf.to_container(cfg[group], resolve=True) for group in ("method", "pretraining", "protocol"))
    return code_of(targets_of(*nodes))


def look(folder: RunFolder, cfg: DictConfig, identity: Identity, data: Callable[[], Data]) -> Standing:
    """Compare a command with its folder.

    Args:
        folder: the command's.
        cfg: the command's configuration, which resolves.
        identity: of it.
        data: gives the command's data; called only if there is something to compare them with.

    Raises:
        UserError: the data cannot be had.
    """
    from adbench.experiment.checkpoints import damaged, previous

    record = folder.metrics()
    status = str(record.get("status") or "")
    newest = None if status == "finished" or cfg.overwrite is True else folder.newest_checkpoint()
    checkpoint = "whole" if newest else "damaged" if status != "finished" and damaged(folder.checkpoint) else "none"
    if not status and (folder.checkpoint.exists() or previous(folder.checkpoint).exists()):
        checkpoint = "whole"  # of whatever attempt
    facts = Facts(status, checkpoint, overwrite=cfg.overwrite, resume=bool(cfg.resume))  # type: ignore[arg-type]
    changed: list[str] | None = []
    if facts.holds in ("training", "finished") and cfg.overwrite is not True:
        same_data = record.get("data_fingerprint") == _fingerprint(folder, status, data)
        changed = changed_settings(folder, record, identity)
        facts = facts._replace(
            data="same" if same_data else "other",
            settings="same" if changed == [] else "other",
            code="same" if record.get("code") == code_hash(cfg) else "other",
        )
    action = decide(facts)
    reason = _refusal(folder, facts, cfg, changed, newest, data) if action == "refuse" else ""
    if facts.code == "other" and action in ("answer-stale", "resume"):
        reason = STALE
    return Standing(action, reason, record, newest if action == "resume" else None)


def _fingerprint(folder: RunFolder, status: str, data: Callable[[], Data]) -> str:
    try:
        return data().fingerprint
    except UserError as error:
        what = "a finished run" if status == "finished" else "a run that is not finished"
        raise UserError(f"{error} (the folder holds {what}, which stays as it is: {folder.path})") from error


def _refusal(
    folder: RunFolder,
    facts: Facts,
    cfg: DictConfig,
    changed: list[str] | None,
    checkpoint: Checkpoint | None,
    data: Callable[[], Data],
) -> str:
    """One message: contents of the folder, difference to the command, what to type."""
    if facts.holds == "unknown":
        return (
            f"{folder.checkpoint} holds training, and {folder.path / 'metrics.json'} is missing or damaged, so nothing "
            "tells what it was trained on: put it back, choose another place with results=DIR, or train anew in its "
            "place with overwrite=true"
        )
    if facts.holds == "unreadable":
        return (
            f"{folder.checkpoint} holds training and cannot be read: is the disk in order? overwrite=true trains anew "
            "in its place"
        )
    contents = f"a run that is trained up to batch {checkpoint.batches_seen:,}" if checkpoint else "a finished run"
    if facts.data == "other":
        files = _changed_files(folder, data().paths)
        unfinished = "; with the files as they were, the same command resumes it" if checkpoint else ""
        older = "" if folder.metrics().get("code") else ", or it is of an earlier version that compared data otherwise"
        own_name = "data.name=OTHER or results=DIR keeps" if "name" in cfg.data else "results=DIR keeps"
        return (
            f"{folder.path} holds {contents} on other data: files of the data set changed, moved or vanished since "
            f"({files}){older}{unfinished}. {own_name} both, overwrite=true trains anew in its place"
        )
    if facts.settings == "other":
        named = "which, its configuration does not tell" if changed is None else _some(changed)
        return (
            f"{folder.path} holds {contents} made with other settings ({named}). results=DIR keeps both, "
            "overwrite=true trains anew in its place"
        )
    return f"{folder.path} holds {contents}: resume=false would lose it. If that is wanted, say overwrite=true"


def _changed_files(folder: RunFolder, paths: tuple[str, ...]) -> str:
    """Which files there are more, fewer, or the same by name."""
    then, now = folder.split_paths(), set(paths)
    if then is None:
        return "which, the folder does not tell"
    more, fewer = sorted(now - then), sorted(then - now)
    parts = [
        f"{len(names)} {'row' if len(names) == 1 else 'rows'} {what}: {_some(names)}"
        for names, what in ((more, "more"), (fewer, "fewer"))
        if names
    ]
    return "; ".join(parts) or "the same names with other contents"


def _some(names: list[str]) -> str:
    left = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {left} others" if left > 0 else "")
