"""Charts as SVG text: no drawing library, readable in light and dark, the same in the page and as files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Colours are classes, so that a page can change them with its theme; a file of its own carries this style.
STYLE = """
svg{font:12px system-ui,sans-serif} svg text{fill:#555} svg .strong{fill:#222} svg .grid{stroke:#e4e4e8;stroke-width:1}
svg .axis{stroke:#9a9aa2;stroke-width:1;fill:none} svg .curve{fill:none;stroke-width:2}
svg .faint{stroke-dasharray:6 4;stroke-width:1.5}
svg .faint.g1{stroke-dasharray:1.5 3.5} svg .faint.g2{stroke-dasharray:10 3 2 3}
svg .guide{stroke:#9a9aa2;stroke-dasharray:2 4;fill:none}
.c0{stroke:#3b7dd8;fill:#3b7dd8}.c1{stroke:#dd7a33;fill:#dd7a33}.c2{stroke:#2a9d6f;fill:#2a9d6f}.c3{stroke:#b0569b;fill:#b0569b}
.c4{stroke:#7a5fd0;fill:#7a5fd0}.c5{stroke:#b8921a;fill:#b8921a}.c6{stroke:#d1495b;fill:#d1495b}.c7{stroke:#3f9bb0;fill:#3f9bb0}
.grey{stroke:#8b8b94;fill:#8b8b94}
svg .normal{fill:#3b7dd8;fill-opacity:.45;stroke:#3b7dd8}svg .anomalous{fill:#d1495b;fill-opacity:.4;stroke:#d1495b}
svg .threshold{stroke:#333;stroke-width:1.5;stroke-dasharray:4 3}
"""
DARK = """svg text{fill:#b4b4bf}svg .strong{fill:#eee}svg .grid{stroke:#33333c}svg .threshold{stroke:#eee}"""
COLOURS = 8


@dataclass(frozen=True)
class Series:
    """One line of a chart, of (K,) points.

    `colour` is a class of STYLE; `spread` a half-width (K,) around y; `faint` draws it dashed.
    """

    name: str
    x: Floats
    y: Floats
    colour: str
    faint: bool = False
    spread: Floats | None = None
    dots: bool = False


def standalone(svg: str) -> str:
    """The same chart as a file that carries its colours."""
    style = f"<style>{STYLE}@media(prefers-color-scheme:dark){{{DARK}}}</style>"
    return svg.replace(">", f">{style}", 1)


def thinned(x: Floats, y: Floats, points: int = 120) -> tuple[Floats, Floats]:
    """(K,) twice -> at most `points` of the points, even along the curve."""
    if len(x) <= points:
        return x, y
    along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    keep = np.unique(np.searchsorted(along, np.linspace(0, along[-1], points)).clip(max=len(x) - 1))
    return x[keep], y[keep]


def lines(
    series: Sequence[Series],
    title: str,
    across: str,
    up: str,
    x_range: tuple[float, float] = (0.0, 1.0),
    y_range: tuple[float, float] = (0.0, 1.0),
    ticks: Sequence[float] | None = None,
    diagonal: bool = False,
) -> str:
    """Curves in a frame, their names beside it."""
    left, top, w, h = 64, 30, 300, 270
    legend = 34 + 7 * min(36, max((len(one.name) for one in series), default=0))
    height = max(top + h + 48, top + 18 * len(series) + 12)

    def px(value: float) -> float:
        return left + w * (value - x_range[0]) / ((x_range[1] - x_range[0]) or 1)

    def py(value: float) -> float:
        return top + h * (1 - (value - y_range[0]) / ((y_range[1] - y_range[0]) or 1))

    out = [
        _open(left + w + 16 + legend, height, title),
        f'<text class="strong" x="{left}" y="18">{escape(title)}</text>',
    ]
    for value in _steps(*y_range):
        out.append(f'<path class="grid" d="M{left} {py(value):.1f}h{w}"/>')
        out.append(f'<text x="{left - 7}" y="{py(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks if ticks is not None else _steps(*x_range):
        out.append(f'<path class="grid" d="M{px(value):.1f} {top}v{h}"/>')
        out.append(f'<text x="{px(value):.1f}" y="{top + h + 17}" text-anchor="middle">{value:g}</text>')
    out.append(f'<path class="axis" d="M{left} {top}v{h}h{w}"/>')
    out.append(f'<text x="{left + w / 2}" y="{top + h + 38}" text-anchor="middle">{escape(across)}</text>')
    out.append(f'<text transform="translate(13 {top + h / 2}) rotate(-90)" text-anchor="middle">{escape(up)}</text>')
    if diagonal:
        out.append(f'<path class="guide" d="M{px(0):.1f} {py(0):.1f}L{px(1):.1f} {py(1):.1f}"/>')
    for at, line in enumerate(series):
        kind = f"curve {line.colour}{' faint' * line.faint}"
        points = [(px(float(x)), py(float(y))) for x, y in zip(line.x, line.y, strict=True)]
        out.append(f'<path class="{kind}" style="fill:none" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>')
        if line.spread is not None:
            for (x, _), y, s in zip(points, line.y, line.spread, strict=True):
                low, high = (py(float(np.clip(v, *y_range))) for v in (y - s, y + s))
                out.append(
                    f'<path class="{line.colour}" d="M{x:.1f} {low:.1f}V{high:.1f}'
                    f'M{x - 3:.1f} {low:.1f}h6M{x - 3:.1f} {high:.1f}h6"/>'
                )
        if line.dots:
            out += [f'<circle class="{line.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points]
        y = top + 10 + 18 * at
        x = left + w + 16
        out.append(
            f'<path class="{kind}" d="M{x} {y - 4}h20"/><text x="{x + 26}" y="{y}">{_clipped(line.name, 36)}</text>'
        )
    return "".join([*out, "</svg>"])


def histogram(score: Floats, label: NDArray[np.int8], threshold: float | None, title: str) -> str:
    """Shares of normal and anomalous test images over the score, the threshold as a line, as SVG.

    The outermost bars hold what lies beyond the 0.5 and 99.5 % quantiles.

    Args:
        score: (N,), any range.
        label: (N,) 0 normal, 1 anomalous.
        threshold: a score; None draws no line.
        title: above the chart.
    """
    w, h, left, top = 300, 120, 12, 30
    out = [
        _open(w + 2 * left, top + h + 34, title),
        f'<text class="strong" x="{left}" y="18">{_clipped(title, 46)}</text>',
    ]
    finite = score[np.isfinite(score)]
    if not len(finite):
        return "".join([*out, f'<text x="{left}" y="{top + 20}">no finite score</text></svg>'])
    low, high = np.quantile(finite, [0.005, 0.995])
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    if high <= low:
        low, high = low - 0.5, low + 0.5
    edges = np.linspace(low, high, 31)
    shares = []
    for value in (0, 1):
        counts = np.histogram(score[label == value].clip(low, high), edges)[0]
        shares.append(counts / max(counts.sum(), 1))
    tallest = max(max(share.max() for share in shares), 1e-9)
    for share, kind in zip(shares, ("normal", "anomalous"), strict=True):
        step = w / len(share)
        d = (
            f"M{left} {top + h}"
            + "".join(f"V{top + h * (1 - v / tallest):.1f}h{step:.2f}" for v in share)
            + f"V{top + h}"
        )
        out.append(f'<path class="{kind}" d="{d}"/>')
    out.append(f'<path class="axis" d="M{left} {top + h}h{w}"/>')
    if threshold is not None:
        x = left + w * (threshold - low) / (high - low)
        out.append(f'<path class="threshold" d="M{x:.1f} {top}v{h}"><title>threshold {threshold:.6g}</title></path>')
    out.append(f'<text x="{left}" y="{top + h + 17}">{low:.4g}</text>')
    out.append(f'<text x="{left + w}" y="{top + h + 17}" text-anchor="end">{high:.4g}</text>')
    return "".join([*out, "</svg>"])


def critical_difference(names: Sequence[str], ranks: Floats, difference: float, title: str) -> str:
    """Methods on a line of average ranks, 1 (best) at the left; a bar joins those that are not told apart. SVG.

    Source: Demšar 2006, section 3.2.

    Args:
        names: of the k methods.
        ranks: (k,) average ranks, in [1, k].
        difference: the critical one, in ranks.
        title: above the chart.
    """
    order = np.argsort(ranks, kind="stable")
    k, left, w = len(names), 210, 420
    half = (k + 1) // 2
    bars = _groups(ranks[order], difference)
    y0 = 78
    height = y0 + 22 + 9 * len(bars) + 20 * half + 16

    def px(rank: float) -> float:
        return left + w * (rank - 1) / max(k - 1, 1)

    out = [_open(left * 2 + w, height, title), f'<text class="strong" x="12" y="18">{escape(title)}</text>']
    if difference <= k - 1:
        out.append(f'<path class="axis" d="M{left} 44h{w * difference / (k - 1):.1f}m0 -4v8M{left} 40v8"/>')
        out.append(f'<text x="{left}" y="36">critical difference {difference:.2f}</text>')
    else:
        out.append(f'<text x="{left}" y="44">critical difference {difference:.2f}: wider than the scale</text>')
    out.append(f'<path class="axis" d="M{left} {y0}h{w}"/>')
    for rank in range(1, k + 1):
        out.append(f'<path class="axis" d="M{px(rank):.1f} {y0 - 5}v5"/>')
        out.append(f'<text x="{px(rank):.1f}" y="{y0 - 10}" text-anchor="middle">{rank}</text>')
    for level, (first, last) in enumerate(bars):
        y = y0 + 9 + 9 * level
        out.append(
            f'<path class="curve c6" style="stroke-width:4" '
            f'd="M{px(ranks[order[first]]) - 4:.1f} {y}H{px(ranks[order[last]]) + 4:.1f}"/>'
        )
    for place, at in enumerate(order):
        best = place < half
        y = y0 + 26 + 9 * len(bars) + 20 * (place if best else k - 1 - place)
        end, anchor, x = (left - 14, "end", left - 18) if best else (left + w + 14, "start", left + w + 18)
        out.append(f'<path class="axis" d="M{px(ranks[at]):.1f} {y0}V{y}H{end}"/>')
        out.append(
            f'<text class="strong" x="{x}" y="{y + 4}" text-anchor="{anchor}">'
            f"{ranks[at]:.2f}  {_clipped(names[at], 27)}</text>"
        )
    return "".join([*out, "</svg>"])


def _groups(ranks: Floats, difference: float) -> list[tuple[int, int]]:
    """Longest runs of at least two sorted ranks within the critical difference."""
    groups: list[tuple[int, int]] = []
    for first in range(len(ranks)):
        last = int(np.flatnonzero(ranks <= ranks[first] + difference)[-1])
        if last > first and not (groups and groups[-1][1] >= last):
            groups.append((first, last))
    return groups


def _open(width: float, height: float, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-label="{escape(title)}">'
    )


def _clipped(text: str, length: int) -> str:
    """Escaped text; a long one is shortened and keeps its whole self as a tooltip."""
    if len(text) <= length:
        return escape(text)
    return f"{escape(text[: length - 1])}…<title>{escape(text)}</title>"


def _steps(low: float, high: float) -> list[float]:
    """About five round values in a range."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    return [round(v * step, 10) for v in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
