"""`python -m pages`: write the generated tables of README and docs anew, between their markers, and a picture.

    <!-- begin NAME -->

    (written by this command)

    <!-- end NAME -->

`--check` changes nothing and fails where a table is not what this command would write.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from adbench.experiment import record
from adbench.files import write_text
from pages import DOCS, ROOT, equations, protocols, results

#: Marker -> what stands there.
TABLES: dict[str, Callable[[], str]] = {
    "methods": results.readme_methods,
    "metrics.json": record.documentation,
    "choose": equations.purpose_table,
    **{f"equations of {page}": lambda page=page: equations.equation_table(page) for page in equations.PAGES},  # type: ignore[misc]
    **{f"presets of {page}": lambda page=page: equations.preset_table(page) for page in equations.PAGES},  # type: ignore[misc]
    **{
        f"results: {table.__name__}": table
        for table in (
            results.first_run, results.objects_and_textures, results.class_sets, results.reference,
            results.imagenet_weights, results.contaminated, results.small_train, results.cbigan,
            results.reference_bottle, results.esad_table3, results.esad_readings, results.esad_labels,
            results.esad_pairs, results.igd_digits, results.igd_mnist, results.pwae_parts, results.ssae_textures,
        )
    },
    **{f"robustness on {data}": lambda data=data: results.robustness(data) for data in results.ROBUSTNESS},  # type: ignore[misc]
}  # fmt: skip
MARKED = re.compile(r"^<!-- begin (.+?) -->\n.*?^<!-- end (.+?) -->$", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """README and every page of docs."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def markers(text: str) -> list[str]:
    """Names of the tables that a page has."""
    return [found[1] for found in MARKED.finditer(text)]


def regenerated(text: str) -> str:
    """A page with every table written anew.

    Raises:
        KeyError: there is no such table.
        ValueError: a table's end does not belong to its beginning.
    """

    def written(found: re.Match[str]) -> str:
        name, end = found.groups()
        if name != end:
            raise ValueError(f"<!-- begin {name} --> ends with <!-- end {end} -->")
        return f"<!-- begin {name} -->\n\n{TABLES[name]()}\n\n<!-- end {name} -->"

    return MARKED.sub(written, text)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pages", description="Write the tables of README and docs anew.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a table is out of date")
    options = parser.parse_args(arguments)
    stale = []
    written = {page: regenerated(page.read_text(encoding="utf-8")) for page in pages()}
    for page, new in {**written, protocols.PICTURE: protocols.picture()}.items():
        if not page.exists() or page.read_text(encoding="utf-8") != new:
            stale.append(page.relative_to(ROOT).as_posix())
            if not options.check:
                write_text(page, new)
    if stale:
        print(f"{'out of date, `python -m pages` writes them' if options.check else 'written'}: {', '.join(stale)}")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
