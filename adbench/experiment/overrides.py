"""What a command line says of the configuration, checked before anything runs: every slip in one line, in our words.

Hydra's own answer to a key that does not exist is to add it with a plus sign, after which nothing reads it.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from adbench.errors import UserError
from adbench.experiment import own_images  # noqa: F401  (its resolvers, which configurations use)
from adbench.experiment.groups import GROUPS, choices, conf_dir, conf_dirs, unknown_choice
from adbench.experiment.identity import remember
from adbench.experiment.values import TRAINER, accepted, as_mapping
from hydra_plugins.adbench_sweepers import alternatives

KINDS = ("object", "texture", "small", "tabular")
PATHS = ("root", "file", "results", "data_root", "cache_dir", "folder", "checkpoint", "images")
FOLDERS = {"results": "ADBENCH_RESULTS", "data_root": "ADBENCH_DATA", "cache_dir": "ADBENCH_CACHE"}
NAMES = ("name", "masks", "normal", "anomalous")  # what may hold anything that a file's name may
FUNCTIONS = ("choice", "range", "glob", "interval", "tag", "sort", "shuffle", "int", "float", "str", "bool",
             "json_str", "extend_list")  # fmt: skip  # of Hydra's grammar
IGNORED = {  # of the trainer: what the run decides itself
    "max_epochs": "budget.max_epochs=N", "min_epochs": "budget.max_epochs=N", "max_steps": "budget.max_batches=N",
    "min_steps": "budget.max_batches=N", "logger": "logger=csv|tensorboard|wandb", "default_root_dir": "results=DIR",
    "log_every_n_steps": "log_every=N", "callbacks": None, "plugins": None, "enable_checkpointing": None,
    "enable_model_summary": None, "num_sanity_val_steps": None, "use_distributed_sampler": None,
}  # fmt: skip
# group -> choice -> the module that it needs, and the extra that brings it
EXTRAS = {
    "hydra/launcher": {
        "joblib": ("hydra_plugins.hydra_joblib_launcher", "launchers"),
        "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "launchers"),
        "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "launchers"),
        "slurm": ("hydra_plugins.hydra_submitit_launcher", "launchers"),
        "ray": ("ray", "ray"),
    },
    "hydra/sweeper": {
        "optuna": ("hydra_plugins.hydra_optuna_sweeper", "launchers"),
        "tuning": ("hydra_plugins.hydra_optuna_sweeper", "launchers"),
    },
}


def understood(arguments: Iterable[str], multirun: bool = False) -> list[str]:
    """The same overrides, as Hydra reads them: paths quoted, values for swept choices left to the jobs.

    Args:
        arguments: `key=value`, `+key=value` and `~key` of a command line.
        multirun: they are a sweep's.

    Raises:
        UserError: one is not an override, its key or its choice does not exist, nothing would read it, or what it
            chooses is not installed.
    """
    texts = list(arguments)
    if "data=folder" in texts:  # whose default measures the kind
        texts = [text for text in texts if text != "data.kind=auto"]
    parsed = [_parsed(texts, place, multirun) for place in range(len(texts))]
    texts = [str(override.input_line) for override in parsed]
    _refuse_files_for_folders(parsed)
    if any(override.key_or_group == "hydra.searchpath" for override in parsed):
        return texts  # there may be anything
    message = unknown_choice(texts)
    if message:
        raise UserError(message)
    for override in parsed:
        if override.is_add() and override.key_or_group in GROUPS:
            line = str(override.input_line)
            raise UserError(f"{line} adds to a choice that is made already: type {line.lstrip('+')}")
        if override.is_delete() and override.key_or_group in GROUPS:
            raise UserError(f"{override.input_line} leaves no {override.key_or_group}: choose another one instead")
    known = Known(parsed)
    multirun = multirun or known.multirun
    for place, override in enumerate(parsed):
        if override.is_sweep_override() and not multirun:
            raise UserError(_ambiguous(texts[place]))
        if not known.is_group(override.key_or_group):
            elsewhere = [_refuse_unknown(key, value, override, known, texts) for key, value in _keys(override, known)]
            if any(elsewhere) and multirun and not override.is_sweep_override():
                name, _, value = texts[place].partition("=")
                texts[place] = f"{name}=choice({value})"
    return texts


def _refuse_files_for_folders(parsed: Iterable[Override]) -> None:
    """Refuse a file where results, data or the cache are to lie, on the command line or in the environment."""
    given = {override.key_or_group: _value(override) for override in parsed}
    for key, variable in FOLDERS.items():
        value = given.get(key, os.environ.get(variable))
        where = key if key in given else variable
        place = Path(value).expanduser() if isinstance(value, str) and value else None
        for folder in () if place is None else (place, *place.parents):
            if folder.is_file():
                raise UserError(f"{where}={value}: {folder} is a file; give a folder, such as {where}={folder.parent}")


# -- one argument -----------------------------------------------------------------------------------------------------


def _parsed(texts: list[str], place: int, multirun: bool) -> Override:
    """An override; of a path what Hydra's grammar does not take is taken as it stands."""
    text = texts[place]
    sign, key, equals, value = _split(text)
    if not equals and not text.startswith("~"):
        raise UserError(f"{text!r} is no key=value; {_joined(texts, place)}")
    last = key.rpartition(".")[2]
    parser = OverridesParser.create()
    several = multirun or any(other.lstrip("+").startswith(("experiment=", "hydra.mode=")) for other in texts)
    try:
        override = parser.parse_override(text)
        found = override.value() if equals and last in PATHS and not override.is_sweep_override() else None
        if isinstance(found, str) and found.startswith("~"):
            return parser.parse_override(f"{sign}{key}={_quoted(str(Path(found).expanduser()))}")
        if not (override.is_sweep_override() and "," in value and last in PATHS and not several):
            return override
    except HydraException:
        if re.match(rf"[\[{{\"']|({'|'.join(FUNCTIONS)})\s*\(", value):
            raise UserError(f"{text} cannot be read; {_joined(texts, place)}") from None
        if last not in (*PATHS, *NAMES) or (several and "," in value):
            raise UserError(
                f"{text} cannot be read: write a value with brackets, quotes, = or accents in double quotes, and all "
                f"of it in single quotes for the shell, as in {_example(sign + key, value)}"
            ) from None
    value = str(Path(value).expanduser()) if value.startswith("~") else value
    return parser.parse_override(f"{sign}{key}={_quoted(value)}")


def _joined(texts: list[str], place: int) -> str:
    """What may have been meant by an argument that the shell cut off from the one before it or after it."""
    text, before, after = texts[place], texts[place - 1] if place else "", [*texts[place + 1 :], ""][0]
    if before.endswith("=") or after.startswith("=") or text.startswith("="):
        return "there is no space before or after the ="
    if "=" not in text and (meant := None if "=" in before else _meant(text)):
        return f"type {meant}"
    if "=" not in text:
        cut = before if "=" in before else "data.root=/my"
        return f"a value with spaces goes into single quotes, as in {shlex.quote(f'{cut} {text}')}"
    whole = text
    for more in texts[place + 1 :]:
        if sum(whole.count(c) for c in "[{(") <= sum(whole.count(c) for c in ")}]"):
            break
        whole += f" {more}"
    if whole != text:
        return f"a value with spaces goes into single quotes, as in {shlex.quote(whole)}"
    return (
        "are all brackets and quotes closed? In a list or a mapping, a text with brackets, = or accents goes into "
        "double quotes, and the whole argument into single quotes for the shell: 'key={name: \"images (1)/*.png\"}'"
    )


def _meant(word: str) -> str | None:
    """The argument that was meant by a folder, by the name of a key or by the name of a choice alone."""
    if Path(word).expanduser().is_dir():
        return f"data=folder {shlex.quote(f'data.root={word}')} for images of your own"
    if word in (*GROUPS, *FOLDERS, "seed", "overwrite"):
        return f"{word}=VALUE, with = and no space"
    groups = [group for group in ("method", "data", "protocol", "pretraining", "budget") if word in choices(group)]
    return " or ".join(f"{group}={word}" for group in groups) or None


def _split(text: str) -> tuple[str, str, str, str]:
    key, equals, value = text.partition("=")
    bare = key.lstrip("+~")
    return key[: len(key) - len(bare)], bare, equals, value


def _quoted(value: str) -> str:
    return QuotedString(value, Quote.double).with_quotes()


def _example(key: str, value: str) -> str:
    return shlex.quote(f"{key}={_quoted(value.strip(chr(34) + chr(39)))}")


def _ambiguous(text: str) -> str:
    _, key, _, value = _split(text)
    return (
        f"{text} gives several values: add -m for a sweep over them, or write one list ('{key}=[{value}]') or one text "
        f"({_example(key, value)})"
    )


def _keys(override: Override, known: Known) -> Iterator[tuple[str, Any]]:
    """The keys that an override sets: its own, or where both it and what is there are mappings those inside."""

    def inside(key: str, value: Any, there: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping) and value and isinstance(there, Mapping) and there:
            for name, one in value.items():
                yield from inside(f"{key}.{name}", one, there.get(name))
        else:
            yield key, value

    key = str(override.key_or_group)
    value = None if override.is_sweep_override() or override.is_delete() else override.value()
    yield from inside(key, value, _at(known.base, key))


# -- what there is ----------------------------------------------------------------------------------------------------


class Known:
    """The configurations that group choices compose to, without any value of the command line.

    Args:
        overrides: of the command line.

    Raises:
        UserError: the choices do not compose.
    """

    def __init__(self, overrides: Iterable[Override]) -> None:
        version.setbase("1.3")
        self.loader = ConfigLoaderImpl(create_config_search_path(str(conf_dir())))
        self.parser = OverridesParser.create(config_loader=self.loader)
        self.chosen: dict[str, list[str]] = {}
        self._groups: dict[str, bool] = {}
        self._others: dict[tuple[tuple[str, str], ...], Mapping[str, Any] | None] = {}
        for override in overrides:
            if self.is_group(override.key_or_group) and not isinstance(_value(override), Mapping):
                self.chosen[str(override.input_line).partition("=")[0]] = self.values(str(override.input_line))
        for group, names in self.chosen.items():
            _refuse_missing_extra(group.lstrip("+"), names)
        self.base, self.choices = self._composed({})
        for group in EXTRAS:
            _refuse_missing_extra(group, [self.choices.get(group)])
        hydra = self.base["hydra"]
        self.multirun = "MULTIRUN" in str(hydra.get("mode"))
        self.params: dict[str, str] = {k: str(v) for k, v in (hydra["sweeper"].get("params") or {}).items()}
        self.axes: Mapping[str, list[Mapping[str, Any]]] = hydra["sweeper"].get("axes") or {}

    def is_group(self, key: str) -> bool:
        """Whether a key names a group of choices."""
        if key not in self._groups:  # which reads folders
            self._groups[key] = bool(self.loader.get_group_options(key))
        return self._groups[key]

    def values(self, text: str) -> list[str]:
        """The values of one argument, in words: several of a sweep, the start of an interval."""
        override = self.parser.parse_overrides([text])[0]  # which, unlike parse_override, knows what glob() finds
        if override.is_interval_sweep():
            interval = override.value()
            assert isinstance(interval, IntervalSweep)
            return [str(interval.start)]
        if override.is_sweep_override():
            return list(override.sweep_string_iterator())
        return [text.partition("=")[2]]

    def others(self) -> Iterator[Mapping[str, Any]]:
        """What else a job of the sweep may have: each further choice of each swept group."""
        swept = {group: self.values(f"{group}={values}") for group, values in self.params.items() if group[0] != "+"}
        further = {group: names[1:] for group, names in self.chosen.items()}  # the first is in the base
        jobs = [{group: name} for group, names in (swept | further).items() for name in names]
        for values in (values for axis in self.axes.values() for values in axis):
            first = {group: self.values(f"{group}={names}") for group, names in values.items() if self.is_group(group)}
            jobs += [{group: names[0] for group, names in first.items() if names}]
            jobs += [{group: name} for group, names in first.items() for name in names[1:]]
        for job in jobs:
            if all(self.is_group(group.lstrip("+")) for group in job):
                other = self._other(tuple(job.items()))
                if other is not None:
                    yield other

    def _other(self, job: tuple[tuple[str, str], ...]) -> Mapping[str, Any] | None:
        """The configuration with other choices in place of the base's; None where that job does not compose."""
        if job not in self._others:  # composing takes a tenth of a second, and each key asks for it
            try:
                self._others[job] = self._composed(dict(job))[0]
            except UserError:
                self._others[job] = None
        return self._others[job]

    def _composed(self, other: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
        first = {group: names[0] for group, names in self.chosen.items() if names} | other
        lines = [group if group.startswith("~") else f"{group}={name}" for group, name in first.items()]
        try:
            cfg = self.loader.load_configuration("config", lines, RunMode.RUN)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explained(error)) from None
        if not other:
            remember(self.loader, self.chosen, cfg)
        return as_mapping(cfg, resolve=False), dict(cfg.hydra.runtime.choices)


def _value(override: Override) -> Any:
    return None if override.is_sweep_override() else override.value()


def explained(error: BaseException) -> str:
    """What Hydra says of choices that do not compose, without its advice and its search path."""
    text = str(error)
    for group, members in EXTRAS.items():
        for name, (_, extra) in members.items():
            if re.search(rf"{group}/{name}\b|{group}/sampler/", text):
                return _needs(group, name, extra)
    wrong = re.search(r"Could not find '(\w+(?:/\w+)*)/([^/']+)'", text)
    if wrong:
        names = re.findall(r"^\t(.+)$", text.partition("Available options")[2].partition("Config search")[0], re.M)
        near = difflib.get_close_matches(wrong[2], names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
        return f"{wrong[1]}={wrong[2]} does not exist; {hint}"
    return " ".join(line.strip() for line in text.splitlines() if line.strip() and "To append" not in line)


def _refuse_missing_extra(group: str, names: Iterable[str | None]) -> None:
    for name in names:
        module, extra = EXTRAS.get(group, {}).get(str(name), (None, None))
        if module is not None and _absent(module):
            raise UserError(_needs(group, str(name), str(extra)))


def _absent(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except ModuleNotFoundError:
        return True


def _needs(group: str, name: str, extra: str) -> str:
    return f'{group}={name} is not installed: pip install "adbench-vision[{extra}]"'


def _at(node: Any, key: str) -> Any:
    """What lies at a dotted key; None if nothing does."""
    for part in key.split("."):
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, Mapping) and part in node:
            node = node[part]
        else:
            return None
    return node


def _has(node: Any, key: str) -> bool:
    parent, _, last = key.rpartition(".")
    node = _at(node, parent) if parent else node
    return last in node if isinstance(node, Mapping) else isinstance(node, list) and _at(node, last) is not None


# -- keys -------------------------------------------------------------------------------------------------------------


def _refuse_unknown(key: str, value: Any, override: Override, known: Known, texts: list[str]) -> bool:
    """Refuse a key that nothing knows or reads; true if another choice of the sweep knows it and the first does not."""
    added = override.is_add() or override.is_force_add()
    if _has(known.base, key):
        if override.is_add() and not isinstance(value, dict | list):
            raise UserError(f"{key} exists already: type {str(override.input_line).lstrip('+')}")
        if not added and not any(_feeds(key, one) for one in chain([known.base], known.others())):
            method, name = known.choices.get("method"), key.split(".")[2]
            raise UserError(
                f"nothing reads {key} with method={method}, whose method.{name} is one value; type method.{name}=VALUE"
            )
        return False
    if added and any(re.search(rf"\$\{{{re.escape(key)}[.}}]", text) for text in texts):
        return False  # another value is made of it
    if added and _read(key, known.base):
        return False
    if any(_has(other, key) or (added and _read(key, other)) for other in known.others()):
        return True
    raise UserError(_unknown(key, value, added, known))


def _feeds(key: str, base: Mapping[str, Any]) -> bool:
    """Whether a value of a recipe feeds another value; a preset may have put one value in the place of such a table."""
    section, _, name = key.partition(".recipe.")
    name = name.split(".")[0]
    if section != "method" or not name or name in ("input", "budget") or not _has(base, f"method.{name}"):
        return True
    text = json.dumps(base, default=str)
    return f"by_data:{name}}}" in text or f"method.recipe.{name}" in text


def _read(key: str, base: Mapping[str, Any]) -> bool:
    """Whether something reads a key that is added to a configuration.

    Raises:
        UserError: of the trainer's, it is one that the run decides itself.
    """
    parent, _, last = key.rpartition(".")
    section = key.split(".")[0]
    node = _at(base, parent) if parent else None
    if section == "hydra" or (section == "logger" and parent):
        return True
    if parent == "trainer":
        if last in IGNORED:
            instead = f"type {IGNORED[last]}" if IGNORED[last] else "the run decides it"
            raise UserError(f"{key} would not be looked at; {instead}")
        return last in (accepted(TRAINER) or ())
    if not isinstance(node, Mapping):
        return False
    target = node.get("_target_")
    if isinstance(target, str):
        names = accepted(target)
        return names is None or last in names or last in ("_convert_", "_partial_")
    # A mapping that a constructor gets: by kinds or names of data, or the length of a recipe's training.
    inside = section in ("method", "data", "pretraining") and "." in parent
    return inside and (last in KINDS or last in choices("data") or last in ("max_batches", "max_epochs"))


def _unknown(key: str, value: Any, added: bool, known: Known) -> str:
    section, _, inner = key.partition(".")
    parent = key.rpartition(".")[0]
    chosen = known.choices.get(section)
    where = f" with {section}={chosen}" if chosen and inner else ""
    what = f"nothing reads {key}{where}" if added else f"there is no {key}{where}"
    node = _at(known.base, parent) if parent else {}
    if isinstance(node, str) and (table := re.fullmatch(r"\$\{by_data:(.+)\}", node)):
        raise UserError(f"{what}; type method.recipe.{table[1]}.{key.rpartition('.')[2]}")
    if not isinstance(node, Mapping):
        raise UserError(f"{what}: {parent} is one value, {parent}=VALUE")
    target = TRAINER if parent == "trainer" else node.get("_target_")
    options = (accepted(target) or ()) if added and isinstance(target, str) else ()
    near = difflib.get_close_matches(key, [f"{parent}.{name}" for name in options]) if options else []
    last = key.rpartition(".")[2]
    near = [last] if parent and last in known.base else near or nearest(key, value, known.base)
    having = [name for name in choices(section) if _names(section, name, inner)] if inner and "." not in inner else []
    if near and not (having and all(name.split(".")[0] != section for name in near)):
        return f"{what}; did you mean {' or '.join(near)}?"
    if having:
        have = "have" if having[1:] else "has"
        return f"{what}; {', '.join(f'{section}={name}' for name in having[:4])} {have} it"
    names = [str(name) for name in node if not str(name).startswith("_")]
    if not 0 < len(names) <= 15:
        return f"{what}; --cfg job prints the keys that there are"
    return f"{what}; {parent} has {', '.join(names)}"


def _names(group: str, name: str, key: str) -> bool:
    """Whether the file of a choice has a key of its own."""
    files = (root / group / f"{name}.yaml" for root in conf_dirs())
    texts = (file.read_text() for file in files if file.is_file())
    return any(re.search(rf"^{re.escape(key)}:", text, re.M) for text in texts)


def nearest(key: str, value: Any, base: Mapping[str, Any], most: int = 3) -> list[str]:
    """The keys of a configuration that come close to one that it has not got, the closest first."""
    if "." not in key and isinstance(value, str):
        groups = [group for group in ("method", "data", "protocol", "pretraining", "budget", "trainer", "logger")
                  if value in choices(group)]  # fmt: skip
        if groups:
            return [f"{group}={value}" for group in groups]
    parent, _, last = key.rpartition(".")
    names = [name for name in _all_names(base) if key.startswith("hydra") or not name.startswith("hydra")]

    def close(candidates: Iterable[str], cutoff: float) -> list[str]:
        ends: dict[str, list[str]] = {}
        for name in candidates:
            ends.setdefault(_folded(name.rpartition(".")[2]), []).append(name)
        found = difflib.get_close_matches(_folded(last), ends, n=most, cutoff=cutoff)
        return [name for end in found for name in ends[end]]

    same = [name for name in names if name.rpartition(".")[2] == last]
    same.sort(key=lambda name: name.split(".")[0] != key.split(".")[0])
    siblings = close([name for name in names if name.rpartition(".")[0] == parent], 0.6)
    whole = difflib.get_close_matches(key, names, n=most, cutoff=0.8)
    anywhere = [] if siblings or same else close(names, 0.75)
    return list(dict.fromkeys([*same, *siblings, *whole, *anywhere]))[:most]


def _folded(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _all_names(node: Any, prefix: str = "") -> Iterator[str]:
    for name, value in node.items() if isinstance(node, Mapping) else ():
        if not str(name).startswith("_"):
            key = f"{prefix}.{name}" if prefix else str(name)
            yield key
            yield from _all_names(value, key)


# -- a sweep that is only looked at -----------------------------------------------------------------------------------


def first_job(texts: Iterable[str]) -> tuple[list[str], int]:
    """The overrides of a sweep's first job, and how many jobs there are (of a search, without end: 0)."""
    parser = OverridesParser.create()
    parsed = [parser.parse_override(text) for text in texts]
    known = Known(parsed)
    mine = {str(override.input_line).partition("=")[0] for override in parsed}
    lines = [f"{key}={value}" for key, value in known.params.items() if key not in mine]
    jobs, first = 1, []
    for axis in alternatives(known.axes, mine | set(known.params)):
        jobs *= sum(math.prod(len(known.values(line)) for line in together) for together in axis)
        first += [f"{line.partition('=')[0]}={known.values(line)[0]}" for line in axis[0]]
    for text in [*lines, *(str(override.input_line) for override in parsed)]:
        override = known.parser.parse_override(text)
        if not override.is_sweep_override():
            first.append(text)
            continue
        values = known.values(text)
        jobs *= 0 if override.is_interval_sweep() else len(values)
        first += [f"{text.partition('=')[0]}={value}" for value in values[:1]]
    return first, jobs
