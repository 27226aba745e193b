"""Completion of `adbench ...` in a shell: commands, group choices and keys, from file names alone."""

from __future__ import annotations

from adbench.experiment.groups import GROUPS, choices

KEYS = ("seed=", "results=", "data_root=", "cache_dir=", "resume=", "overwrite=", "trainer.precision=",
        "trainer.devices=", "trainer.threads=", "trainer.compile=",
        "budget.max_batches=", "budget.max_epochs=", "data.normal_class=", "data.batch_size=", "data.workers=",
        "data.cache=", "data.root=", "data.name=", "protocol.holdout=")  # fmt: skip
OPTIONS = {"serve": ("--host", "--port", "--false-alarm-rate", "--max-batch", "--queue", "--max-bytes", "--max-images",
                     "--max-pixels", "--device", "--trust", "--help"),
           "train": ("--dry-run", "--multirun", "--cfg", "--config-dir", "--help"),
           "reproduce": ("--budget", "--runs", "--dry-run", "--help")}  # fmt: skip
BASH = """\
_adbench() {
    local IFS=$'\\n' line="${COMP_LINE:0:$COMP_POINT}"
    local word="${line##* }"
    COMPREPLY=($(adbench --complete "$line"))
    # bash breaks words at "=": what stands before it is not to be typed again
    [[ $word == *=* && $COMP_WORDBREAKS == *=* ]] && COMPREPLY=("${COMPREPLY[@]#*=}")
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=/] ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -o default -F _adbench adbench
"""
ZSH = """\
#compdef adbench
_adbench() {
    local -a found
    found=("${(@f)$(adbench --complete "${BUFFER[1,CURSOR]}")}")
    compadd -S '' -- $found
}
compdef _adbench adbench
"""
FISH = "complete -c adbench -f -a '(adbench --complete (commandline -cp))'\n"
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def candidates(line: str, commands: tuple[str, ...]) -> list[str]:
    """What the last word of a command line may become.

    Args:
        line: what was typed so far, the command's name included; it ends at the cursor.
        commands: names of the commands.
    """
    words = line.split(" ")
    word, before = words[-1], [w for w in words[1:-1] if w]
    command = before[0] if before and before[0] in commands else "train"
    if word.startswith("-"):
        return [option for option in OPTIONS.get(command, ()) if option.startswith(word)]
    if command == "serve":
        return []
    if not before and "=" not in word:
        first = [name for name in commands if name.startswith(word)]
        if first:
            return first
    group, equals, value = word.partition("=")
    if equals and group in GROUPS:
        *listed, last = value.split(",")
        start = f"{group}=" + "".join(f"{name}," for name in listed)
        return [start + name for name in _next_level(choices(group), last)]
    keys = [f"{name}=" for name in GROUPS] + list(KEYS)
    return [] if equals else [key for key in keys if key.startswith(word)]


def _next_level(names: list[str], typed: str) -> list[str]:
    """Names that begin with what was typed, cut after the next slash where several lie behind it."""
    depth = typed.count("/")
    found: dict[str, int] = {}
    for name in names:
        if name.startswith(typed):
            parts = name.split("/")
            short = "/".join(parts[: depth + 1]) + ("/" if len(parts) > depth + 1 else "")
            found[short] = found.get(short, 0) + 1
    return sorted(found)
