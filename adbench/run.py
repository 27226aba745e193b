"""`python -m adbench.run`: train and test one method on one data set, or a sweep of them.

Heavy imports wait until the command line is known to make sense: help and a mistyped name answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adbench.errors import command
from adbench.experiment.advice import table
from adbench.experiment.groups import GROUPS, choices, conf_dir, own_trees, unknown_choice
from adbench.imports import import_quickly

EXAMPLES = """\
  python -m adbench.run                                                   the embedded default, minutes on a CPU
  python -m adbench.run method=cbigan data=mvtec/bottle data_root=DIR     a paper's method on MVTec AD
  python -m adbench.run data=folder data.root=DIR       your own images: DIR/good and DIR/bad, or good ones alone
  python -m adbench.run -m method=cbigan/small,egbad/small data=textures/brick,textures/grass seed=0,1,2
  python -m adbench.run data=digits data.normal_class=3 trainer=smoke     two batches of everything: does it run?"""

OPTIONS = """\
  seed=0                       of weights, batches and augmentation; the split has its own stream
  budget=quick|paper|smoke     length of training; budget.max_batches=N or budget.max_epochs=N sets it
  trainer=default|cpu|gpu|ddp|smoke   where; also trainer.devices=N, trainer.threads=N,
                               trainer.precision=auto|32-true|bf16-mixed, trainer.compile=true
  logger=csv|tensorboard|wandb        wandb works offline and without an account
  data.normal_class=K          which class is normal (class data sets)
  data.batch_size=N data.eval_batch_size=N data.workers=N
  method.KEY=VALUE             any hyper-parameter, named as in the paper (see conf/method/)
  results=DIR data_root=DIR cache_dir=DIR     also by ADBENCH_RESULTS, ADBENCH_DATA, ADBENCH_CACHE
  overwrite=true|stale         a finished run is not repeated, an interrupted one is continued: true trains anew
                               whatever is there, stale what other code has trained
  --config-dir DIR             a tree of your own with method/NAME.yaml, data/NAME.yaml, ...; also ADBENCH_CONF=DIR
  -m, --multirun               every combination of comma-separated values
  --dry-run                    list the jobs, which of them are finished, and what the others cost on this machine in
                               time and disk, from a few timed steps; nothing is written
  --cfg job                    print the composed configuration and stop; with -m that of the first job
  'data.root=/my images (1)'   a value with spaces, brackets or = goes into single quotes for the shell
  --hydra-help                 Hydra's own options"""


def help_text() -> str:
    """What `--help` prints."""
    import textwrap

    lines = [
        "Train and test a visual anomaly detector: python -m adbench.run [group=choice] [key=value] ...",
        "",
        "Groups:",
    ]
    for group in GROUPS:
        names = choices(group)
        if names:
            text = textwrap.fill("  ".join(names), width=88, subsequent_indent=" " * 15, break_on_hyphens=False)
            lines.append(f"  {group:<12} {text}")
    lines += ["", "Which method is for what:", *table()]
    return "\n".join([*lines, "", "Options:", OPTIONS, "", "Examples:", EXAMPLES])


def values_for_the_jobs(arguments: list[str]) -> list[str]:
    """The same sweep, with a value for swept choices of a group left to the jobs.

    Before it starts a sweep, Hydra composes a configuration without what is swept. In `-m method=cbigan,egbad
    method.latent=16` that has the default method, which need not know the value, and the sweep would not start. As a
    choice among one, the value is part of the sweep.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    swept, parsed = set(), {}
    for argument in arguments:
        try:
            parsed[argument] = parser.parse_override(argument)
        except HydraException:
            continue  # an option such as -m
        if parsed[argument].is_sweep_override():
            swept.add(parsed[argument].key_or_group)

    def left_to_jobs(argument: str) -> str:
        override = parsed.get(argument)
        if override is None or override.is_sweep_override() or override.is_delete():
            return argument
        group, dot, _ = override.key_or_group.partition(".")
        name, _, value = argument.partition("=")
        return f"{name}=choice({value})" if dot and group in swept else argument

    return [left_to_jobs(argument) for argument in arguments]


def _refuse_unknown_options(arguments: list[str]) -> None:
    """Refuse what begins as an option and is none, before Hydra's parser says so in its own words.

    Raises:
        UserError: names the option and the one that was meant.
    """
    import difflib

    from hydra._internal.utils import get_args_parser

    from adbench.errors import UserError

    parser = get_args_parser()
    known = [*parser._option_string_actions, "--dry-run", "--help", "--trust"]
    _, others = parser.parse_known_intermixed_args(arguments)
    unknown = next((other for other in others if other.startswith("-")), None)
    if unknown is None:
        return
    name, _, value = unknown.partition("=")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    key = name.lstrip("-").replace("-", "_")
    example = (
        f"{key}={value or 'VALUE'}"
        if key in (*GROUPS, "seed", "results", "data_root", "cache_dir", "overwrite")
        else "seed=1"
    )
    instead = f"did you mean {near[0]}?" if near else f"values are given as key=value, as in {example}"
    raise UserError(f"{name} is no option; {instead} (--help lists both)")


def checked(arguments: list[str]) -> list[str]:
    """The command line as Hydra shall get it.

    Raises:
        UserError: something in it is wrong.
    """
    from hydra._internal.utils import get_args_parser

    from adbench.errors import UserError
    from adbench.experiment.overrides import first_job, understood
    from adbench.experiment.own_images import with_method

    _refuse_unknown_options(arguments)
    options = get_args_parser().parse_intermixed_args(arguments)
    if options.hydra_help or options.shell_completion or options.experimental_rerun or options.config_path:
        return arguments
    if options.resolve and not options.cfg:
        raise UserError("--resolve goes with --cfg job: it prints the configuration with every value worked out")
    if options.run and options.multirun:
        raise UserError("--run is one run and --multirun is a sweep: give one of them")
    words, note = with_method(options.overrides)
    overrides = understood(words, options.multirun)
    if note:
        print(note, file=sys.stderr)
    theirs = [argument for argument in arguments if argument not in options.overrides]
    if options.multirun and (options.cfg or options.info):
        overrides, jobs = first_job(overrides)
        count = f"{jobs} job{'s' * (jobs != 1)}" if jobs else "a search"
        print(f"# the first job of {count}", file=sys.stderr)
        theirs = [argument for argument in theirs if argument not in ("-m", "--multirun")]
    elif options.multirun and not any(override.startswith("hydra/sweeper=") for override in overrides):
        overrides = values_for_the_jobs(overrides)
    return [*theirs, *overrides]


def next_steps(results: str) -> str:
    """What to type after a first run."""
    import shlex
    import shutil

    here = Path(sys.executable)
    python = "python" if shutil.which("python") == sys.executable else shlex.quote(str(here))
    if python != "python" and here.is_relative_to(Path.cwd()):
        python = shlex.quote(str(here.relative_to(Path.cwd())))
    return (
        f"Next, the report of all runs:  {python} -m adbench.report {shlex.quote(results)}\n"
        f"Your own images (DIR/good and DIR/bad, or good ones alone in DIR):\n"
        f"  {python} -m adbench.run data=folder data.root=DIR"
    )


def without_trust(arguments: Sequence[str]) -> list[str]:
    """The arguments without `--trust NAME`, which every command takes: what a command line names is trusted here."""
    kept, waiting = [], False
    for argument in arguments:
        if waiting or argument.startswith("--trust="):
            waiting = False
        elif argument == "--trust":
            waiting = True
        else:
            kept.append(argument)
    return kept


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    with own_trees(without_trust(sys.argv[1:] if arguments is None else arguments)) as others:
        return _run(others)


def dry_run(arguments: list[str], plan: Any = None, total: Any = None) -> int:
    """`--dry-run`: print the jobs of a command line and their cost; returns the exit code.

    Args:
        arguments: without `--dry-run`.
        plan, total: `experiment.dry_run.Plan` and `Total`, where several commands share what is measured.

    Raises:
        UserError: another option on the command line prints something else, or the jobs cannot be listed.
    """
    from hydra._internal.utils import get_args_parser

    from adbench.experiment import dry_run as dry
    from adbench.types import UserError

    options = get_args_parser().parse_intermixed_args(arguments)
    others = ("cfg", "info", "hydra_help", "shell_completion", "experimental_rerun", "resolve", "package")
    if given := [name for name in others if getattr(options, name)]:
        raise UserError(f"--dry-run and --{given[0].replace('_', '-')} are two things to print: give one of them")
    words = get_args_parser().parse_intermixed_args(checked(arguments)).overrides
    plan = dry.Plan() if plan is None else plan
    jobs = plan.look(words, options.multirun)
    print(dry.report(plan, jobs, total))
    return dry.exit_code(jobs)


def _run(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(help_text())
        return 0
    message = None if any(a.startswith("hydra.searchpath") for a in arguments) else unknown_choice(arguments)
    if message:
        print(f"error: {message}", file=sys.stderr)
        return 1

    if "--dry-run" in arguments:
        return dry_run([argument for argument in arguments if argument != "--dry-run"])

    import hydra

    from adbench.experiment import job as jobs
    from adbench.experiment import sweeps

    first_time = not arguments
    sweeps.outcomes.clear()  # of an earlier call in this process
    arguments = checked(arguments)
    import_quickly("torch", "pytorch_lightning")
    codes: list[int] = []
    results = []

    def task(cfg: Any) -> Any:
        results.append(str(cfg.results))
        outcome = jobs.execute(cfg)
        codes.append(outcome.code)
        return outcome

    sys.argv = [sys.argv[0] if sys.argv else "adbench.run", *arguments]
    stopped: Any = None
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    except (SystemExit, KeyboardInterrupt) as stop:
        stopped = stop.code if isinstance(stop, SystemExit) else 130  # as a shell says of SIGINT
        if not sweeps.outcomes:
            raise
    if sweeps.outcomes:
        print(sweeps.table(sweeps.outcomes))
        return stopped or sweeps.exit_code(sweeps.outcomes)
    if first_time and codes == [0]:
        print(next_steps(results[0]))
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
