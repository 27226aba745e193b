"""Every value of a method that is not the paper's is told in docs/departures.md."""

import re
from pathlib import Path

import pytest

from adbench.experiment.groups import conf_dir

DEPARTURES = Path(__file__).parents[1] / "docs" / "departures.md"
METHODS = conf_dir() / "method"
MARK = re.compile(r"\bours\b|\bnot in the paper\b|\breleased\b|\bpublished code\b")
# Keys that say for what a value is; the value's name is that of the key above.
KINDS = {"object", "texture", "small", "tabular", "paper", "quick"}
HEADINGS = {
    "cbigan": "CBiGAN", "egbad": "CBiGAN", "igd": "IGD", "pwae": "P-WAE", "ssae": "SSAE", "esad": "ESAD",
    "deep_sad": "ESAD", "deep_svdd": "ESAD",
}  # fmt: skip
OTHERS = "Autoencoders"  # the heading of the baselines that no paper here describes


def marked(text):
    """Names of the keys of a YAML text whose comment on the same line says that the value is not a paper's."""
    names, above = [], []  # above: (indent, key) of the mappings that the line is in
    for line in text.splitlines():
        found = re.match(r"( *)([\w/]+): *([^#]*?) *(?:# *(.*))?$", line)
        if not found:
            continue
        indent, key, value, comment = found.groups()
        above = [(depth, name) for depth, name in above if depth < len(indent)]
        if comment and MARK.search(comment):
            inner = re.fullmatch(r"\{(\w+): [^,]*\}", value)
            place = [name for _, name in above] + [key] + ([inner[1]] if inner and inner[1] not in KINDS else [])
            names.append(next((name for name in reversed(place) if name not in KINDS and "/" not in name), key))
        above.append((len(indent), key))
    return names


def departures():
    """Heading -> its lines, of docs/departures.md."""
    parts = re.split(r"^## (.+)$", DEPARTURES.read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


FILES = {path.relative_to(METHODS).with_suffix("").as_posix(): path for path in METHODS.rglob("*.yaml")}
KEYS = sorted({(name, key) for name, path in FILES.items() for key in marked(path.read_text(encoding="utf-8"))})


@pytest.mark.parametrize(("name", "key"), KEYS, ids=[f"{name}: {key}" for name, key in KEYS])
def test_a_value_that_is_not_the_papers_stands_among_the_departures(name, key):
    heading = HEADINGS.get(name.split("/")[0], OTHERS)
    (lines,) = [text for title, text in departures().items() if title.startswith(heading)]
    named = [span for span in re.findall(r"`([^`]+)`", lines) if re.search(rf"(?<![\w/]){key}(?![\w/])", span)]
    assert named, (
        f"conf/method/{name}.yaml has {key} as a value that is not the paper's; docs/departures.md has no line on it"
    )


def test_marked_keys_are_found_in_every_form_that_the_files_have():
    text = """
a: 1  # ours
b: {c: 2}  # not in the paper
d:
  e: 3        # released: 4
  object: 5   # ours
f: 6          # section V-B
g:            # not in the paper
  h: 7
budget:
  paper: {max_epochs: 300}  # ours
  i/j: 8      # published code
k: {object: 1, small: 2}  # ours
"""
    assert marked(text) == ["a", "c", "e", "d", "g", "max_epochs", "budget", "k"]


def test_there_are_marked_values_of_each_of_the_five():
    assert {HEADINGS[name.split("/")[0]] for name, _ in KEYS if name.split("/")[0] in HEADINGS} == set(
        HEADINGS.values()
    )
