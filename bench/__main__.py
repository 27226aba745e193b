"""`make bench`: every measurement of this folder, printed and stored in bench.json.

    python -m bench [NAME ...]

Each module here has `measure() -> list of {name, value, unit, baseline, ratio, note}`: what is measured and what it is
compared with run side by side, in one process or in turns, because machines drift.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from adbench.files import write_json

HERE = Path(__file__).parent


def main(names: list[str]) -> int:
    known = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
    unknown = set(names) - set(known)
    if unknown:
        print(f"error: no bench named {', '.join(sorted(unknown))}; there are {', '.join(known)}", file=sys.stderr)
        return 1
    path = HERE.parent / "bench.json"
    rows = {row["name"]: row for row in (json.loads(path.read_text()) if path.exists() else [])}
    for name in names or known:
        print(f"{name}:", flush=True)
        for row in importlib.import_module(f"bench.{name}").measure():
            rows[row["name"]] = row
            ratio = "" if row.get("ratio") is None else f"  ({row['ratio']:.3g} x: {row['baseline']})"
            print(f"  {row['name']}: {row['value']:.4g} {row['unit']}{ratio}  {row['note']}", flush=True)
        write_json(path, list(rows.values()))  # after each, so that a long session loses nothing
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
