"""Hooks of mkdocs: pages from outside `docs`, the generated reference, and links that a code host follows as well.

A page's links are those of the repository (`../adbench/losses/igd.py`), so that it can be read there. In the site they
lead to the generated page of the same thing.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # mkdocs loads this file by its path

from mkdocs.structure.files import File, Files

from pages import DOCS, ROOT, notebook, reference

#: File of the repository -> its page.
OUTSIDE = {
    "README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md",
    ".github/SECURITY.md": "security.md", "docs/tutorial.ipynb": "tutorial.md",
}  # fmt: skip
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s]+)\)")
SOURCE = re.compile(r"\]\((?!\w+:)([^)#\s]+\.(?:py|toml|md))(?:#[^)]*)?\)")


def _nav_files(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [file for part in parts for file in _nav_files(part)]


def _without(nav: Any, known: set[str]) -> Any:
    """The navigation without pages that are not there: parts of the project may lack some."""
    kept = []
    for entry in nav:
        if isinstance(entry, dict):
            ((title, below),) = entry.items()
            below = _without(below, known) if isinstance(below, list) else below
            if below and (not isinstance(below, str) or below in known):
                kept.append({title: below})
        elif entry in known:
            kept.append(entry)
    return kept


def on_config(config: Any) -> Any:
    """Complete the navigation: pages of the reference, and pages of `docs` that nobody has put into it."""
    known = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    known |= {page for file, page in OUTSIDE.items() if (ROOT / file).is_file()}
    config.generated_reference = reference.pages()
    known |= set(config.generated_reference)
    nav = _without(config.nav, known)
    groups = sorted(name for name in config.generated_reference if name.startswith("reference/configuration/"))
    python = [{name: f"reference/python/{name}.md"} for name in reference.modules()]
    for section in nav:
        if "Reference" in section:
            section["Reference"] += [
                {"Configuration": sorted(groups, key=lambda name: not name.endswith("index.md"))},
                {"Commands": "reference/commands.md"},
                {"Python": ["reference/python/index.md", *python]},
            ]
    more = sorted({path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} - set(_nav_files(nav)))
    config.nav = [*nav, *([{"More": more}] if more else [])]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add pages from outside `docs`, the reference, and a page for every source file that a page links to."""
    texts = {page: (ROOT / file).read_text(encoding="utf-8") for file, page in OUTSIDE.items() if file.endswith(".md")}
    texts["index.md"] = "---\nhide: [navigation]\n---\n\n" + texts["index.md"]
    texts |= config.generated_reference
    texts["tutorial.md"], pictures = notebook.markdown(notebook.read())
    for name, data in pictures.items():
        files.append(File.generated(config, name, content=data))
    for file in _linked_sources():
        code = (ROOT / file).read_text(encoding="utf-8")
        texts[f"source/{file}.md"] = (
            f"---\nsearch:\n  exclude: true\n---\n\n# {file}\n\n```{_language(file)}\n{code}```\n"
        )
    for page, text in texts.items():
        files.append(File.generated(config, page, content=text))
    return files


def _language(file: str) -> str:
    return {"py": "python", "toml": "toml", "yml": "yaml"}.get(file.rsplit(".", 1)[-1], "text")


def _linked_sources() -> set[str]:
    """Files outside `docs` that pages link to and that have no page of the reference."""
    found = set()
    for page in [*DOCS.rglob("*.md"), *(ROOT / file for file in OUTSIDE if file.endswith(".md"))]:
        for target in SOURCE.findall(page.read_text(encoding="utf-8")):
            place = (page.parent / target).resolve()
            if place.is_file() and place.is_relative_to(ROOT) and not place.is_relative_to(DOCS):
                file = place.relative_to(ROOT).as_posix()
                if file not in OUTSIDE and _module(file) not in reference.modules():
                    found.add(file)
    return found


def _module(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def address(file: str, words: str) -> str:
    """The site's page, with its anchor, of a file or folder of the repository; `words` are the link's own."""
    if file in OUTSIDE:
        return OUTSIDE[file]
    if file.startswith("docs/"):
        return file.removeprefix("docs/")
    if file.startswith("conf/"):
        group, _, name = file.removeprefix("conf/").removesuffix(".yaml").partition("/")
        if not name:
            return "reference/configuration/index.md"
        return f"reference/configuration/{group}.md#{reference.slug(name)}"
    if (module := _module(file)) in reference.modules():
        name = re.fullmatch(r"!?\[`(\w+)`\]", words)
        return f"reference/python/{module}.md" + (f"#{module}.{name[1]}" if name else "")
    if (ROOT / file).is_dir():
        return "reference/python/index.md"
    return f"source/{file}.md"


def departures() -> dict[str, str]:
    """Anchor -> what stands below it in docs/departures.md, with links as seen from a folder beside it."""
    parts = re.split(r"^## (.+)$", (DOCS / "departures.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    bodies = (re.sub(r"\]\((?![a-z]+:|#)", "](../", body).strip() for body in parts[2::2])
    return {reference.slug(title): body for title, body in zip(parts[1::2], bodies, strict=True)}


def _with_departures(markdown: str) -> str:
    """A method's page with its departures behind the link to them: on a code host the link is enough."""
    section = re.search(r"^## Departures .*?(?=^## |\Z)", markdown, re.MULTILINE | re.DOTALL)
    if section is None:
        return markdown
    anchors = re.findall(r"\]\(\.\./departures\.md#([\w-]+)\)", section[0])
    lists = "\n\n".join(departures()[anchor] for anchor in dict.fromkeys(anchors))
    return markdown[: section.end()].rstrip() + f"\n\n{lists}\n\n" + markdown[section.end() :]


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links to the site's pages, and put what a page only points to where it points."""
    source = next((file for file, name in OUTSIDE.items() if name == page.file.src_uri), f"docs/{page.file.src_uri}")
    if page.file.src_uri.startswith(("reference/", "source/")):
        return markdown

    if page.file.src_uri.startswith("methods/"):
        markdown = _with_departures(markdown)

    def led(link: re.Match[str]) -> str:
        words, target = link.groups()
        path, hash_, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path:
            return link[0]
        place = Path(os.path.normpath((ROOT / source).parent / path))
        if not place.exists() or not place.is_relative_to(ROOT):
            return link[0]  # mkdocs says what is wrong with it
        to = address(place.relative_to(ROOT).as_posix(), words)
        to += hash_ + anchor if anchor and "#" not in to else ""
        name, hash_, anchor = to.partition("#")
        return f"{words}({os.path.relpath(name, Path(page.file.src_uri).parent)}{hash_}{anchor})"

    parts = re.split(r"(^ *```.*?^ *```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.lstrip().startswith("```") else LINK.sub(led, part) for part in parts)
