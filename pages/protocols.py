"""The picture of the protocols: what each makes of one small data set, drawn from the splits that it gives."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import yaml

from adbench.data import protocols
from adbench.data.records import Records, Split
from adbench.report.charts import standalone
from pages import DOCS, ROOT

PICTURE = DOCS / "pictures" / "protocols.svg"
NORMAL, TESTED = 100, (40, 40)  # normal training rows; normal and anomalous test rows
#: Protocol, and what differs from its file's values.
SHOWN: tuple[tuple[str, dict[str, float]], ...] = (
    ("one_class", {}), ("semi_supervised", {}), ("semi_supervised", {"pollution_ratio": 0.1}), ("small_train", {}),
    ("contaminated", {}),
)  # fmt: skip
#: Part of the rows -> class of `charts.STYLE`, opacity.
PARTS = {
    "normal, trains": ("c0", 1.0), "known anomaly, trains": ("c6", 1.0), "unknown anomaly, trains": ("c1", 1.0),
    "normal, held out": ("c2", 1.0), "not used": ("grey", 0.3), "normal, tested": ("c0", 0.45),
    "anomalous, tested": ("c6", 0.45),
}  # fmt: skip
SIDE = ("normal, tested", "anomalous, tested")  # these stand at the right
LEFT, GAP, UNIT, BAR, STEP = 215, 24, 4, 18, 34  # pixels; UNIT of a row of the data


class Bar(NamedTuple):
    """A protocol and how many rows play each part."""

    title: str
    values: str
    counts: dict[str, int]


def data_set() -> Records:
    """Normal training rows, normal and anomalous test rows of one kind of defect."""
    rows = [("train", "good")] * NORMAL + [("test", "good")] * TESTED[0] + [("test", "scratch")] * TESTED[1]
    return Records.of(
        [
            {"split": split, "label": int(defect != "good"), "defect": defect, "path": str(i)}
            for i, (split, defect) in enumerate(rows)
        ]
    )


def counted(records: Records, split: Split) -> dict[str, int]:
    """Rows of each part."""
    label = records.label[split.train]
    counts = {
        "normal, trains": int((label == 0).sum()),
        "known anomaly, trains": int((split.semi_label == -1).sum()),
        "unknown anomaly, trains": int(((label == 1) & (split.semi_label == 0)).sum()),
        "normal, held out": len(split.holdout),
        "normal, tested": int((records.label[split.test] == 0).sum()),
        "anomalous, tested": int((records.label[split.test] == 1).sum()),
    }
    return counts | {"not used": len(records) - sum(counts.values())}


def bars() -> Iterator[Bar]:
    """What each protocol makes of the data set, with its file's values."""
    records = data_set()
    for name, changed in SHOWN:
        file = yaml.safe_load((ROOT / "conf" / "protocol" / f"{name}.yaml").read_text(encoding="utf-8"))
        function = getattr(protocols, name)
        keys = inspect.signature(function).parameters
        values = {key: value for key, value in file.items() if key in keys and key != "holdout"} | changed
        split = function(records, np.random.default_rng(0), "semi", **values)
        shares = [f"{key}={value:g}" for key, value in values.items() if isinstance(value, float) and value > 0]
        yield Bar(name, " ".join(shares), counted(records, split))


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}"{more}>{words}</text>'


def _segment(x: float, y: float, count: int, part: str) -> str:
    colour, opacity = PARTS[part]
    middle = ' text-anchor="middle" class="strong"'
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{count * UNIT}" height="{BAR}" class="{colour}" stroke="none" '
        f'fill-opacity="{opacity:g}" stroke-opacity="0"><title>{part}: {count}</title></rect>'
        + _text(x + count * UNIT / 2, y + BAR - 5, str(count), middle)
    )


def picture() -> str:
    """The picture as SVG, readable in light and dark."""
    found = list(bars())
    right = LEFT + GAP + UNIT * max(sum(n for part, n in bar.counts.items() if part not in SIDE) for bar in found)
    width, height = right + UNIT * sum(TESTED), 30 + STEP * len(found) + 46
    lines = [_text(LEFT, 16, "training rows"), _text(right, 16, "test rows")]
    for number, bar in enumerate(found):
        y = 26 + number * STEP
        lines += [_text(0, y + 8, bar.title, ' class="strong"'), _text(0, y + 22, bar.values, ' font-size="10"')]
        for start, parts in ((LEFT, [part for part in PARTS if part not in SIDE]), (right, SIDE)):
            x: float = start
            for part in parts:
                if count := bar.counts[part]:
                    lines.append(_segment(x, y, count, part))
                    x += count * UNIT
    x, y = 0.0, float(30 + STEP * len(found) + 8)
    for part, (colour, opacity) in PARTS.items():
        if x + 20 + 7 * len(part) > width:
            x, y = 0.0, y + 20
        lines += [
            f'<rect x="{x:g}" y="{y:g}" width="12" height="12" class="{colour}" fill-opacity="{opacity:g}" '
            'stroke-opacity="0"/>',
            _text(x + 17, y + 10, part),
        ]
        x += 30 + 6.5 * len(part)
    title = f"{NORMAL} normal training rows and {TESTED[0]} + {TESTED[1]} test rows under each protocol"
    opened = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{title}">'
    )
    return standalone("\n".join([opened, *lines, "</svg>\n"]))
