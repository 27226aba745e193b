"""The tutorial: run its cells, keep what they show, and make a page of it.

`python -m pages.notebook` runs docs/tutorial.ipynb at its own length and stores what its cells show. Cells run in this
process, one after the other, in a folder of their own; no Jupyter is needed.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from adbench.files import write_text
from pages import DOCS

FILE = DOCS / "tutorial.ipynb"
WIDEST = 900  # pixels of a picture that is kept
Cell = dict[str, Any]


def read(file: Path = FILE) -> list[Cell]:
    """The cells of a notebook."""
    return json.loads(file.read_text(encoding="utf-8"))["cells"]


def source(cell: Cell) -> str:
    return "".join(cell["source"])


def run_cell(code: str, names: dict[str, Any], what: str) -> list[dict[str, Any]]:
    """Run a cell; its outputs in the notebook's format: what it printed, and the value of its last expression."""
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, what, "exec"), names)  # noqa: S102 - the project's own tutorial
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), what, "eval"), names)  # noqa: S307
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    if value is not None:
        shown = {"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": _shown(value)}
        outputs.append(shown)
    return outputs


def _shown(value: Any) -> dict[str, Any]:
    from PIL import Image

    if not isinstance(value, Image.Image):
        return {"text/plain": repr(value).splitlines(keepends=True)}
    picture = value.convert("RGB")
    if picture.width > WIDEST:
        picture = picture.resize((WIDEST, round(picture.height * WIDEST / picture.width)))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=85)
    return {
        "image/jpeg": base64.b64encode(data.getvalue()).decode(),
        "text/plain": [f"{value.width} x {value.height} pixels"],
    }


def run(cells: list[Cell], folder: Path, **given: Any) -> dict[str, Any]:
    """Run all cells in a folder and put their outputs into them; returns the names that they leave.

    Args:
        cells: changed in place.
        folder: becomes the current one meanwhile.
        given: values for names that the cell tagged `parameters` sets.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    before = Path.cwd()
    os.chdir(folder)
    try:
        for at, cell in enumerate(cells):
            if cell["cell_type"] != "code":
                continue
            cell["outputs"] = run_cell(source(cell), names, f"cell {at}")
            if "parameters" in cell["metadata"].get("tags", ()):
                unknown = set(given) - set(names)
                if unknown:
                    raise KeyError(f"the cell of parameters sets no {', '.join(unknown)}")
                names |= given
    finally:
        os.chdir(before)
    return names


def markdown(cells: list[Cell]) -> tuple[str, dict[str, bytes]]:
    """The notebook as a page, and its pictures by their addresses beside it."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in cells:
        if cell["cell_type"] == "markdown":
            parts.append(source(cell))
            continue
        parts.append(f"```python\n{source(cell)}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", [])})
            if "image/jpeg" in data:
                name = f"tutorial-{len(pictures) + 1}.jpg"
                pictures[name] = base64.b64decode(data["image/jpeg"])
                parts.append(f"![What the cell above shows]({name})")
            else:
                parts.append(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures


def main() -> int:
    """Run the notebook and store it; returns the exit code."""
    notebook = json.loads(FILE.read_text(encoding="utf-8"))
    with TemporaryDirectory() as folder:
        run(notebook["cells"], Path(folder))
        text = json.dumps(notebook, indent=1, ensure_ascii=False)
        text = text.replace(str(Path(folder).resolve()), "tutorial")
    write_text(FILE, text + "\n")
    print(FILE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
