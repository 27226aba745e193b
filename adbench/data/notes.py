"""What is odd about the files of a data set: counted and named, for the log and for metrics.json."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

NAMES = 10  # as many of each kind are named

#: What each kind means, in the words of the log.
KINDS = {
    "left_out": "files left out",
    "unreadable": "files that cannot be read, left out",
    "broken_metadata": "files with broken metadata, whose pixels are read all the same",
    "multi_frame": "files with several frames, of which the first is read",
    "high_byte": "colour files of 16 bits, of which the high byte is read",
    "masks_empty": "masks of anomalous images without any anomalous pixel",
    "masks_empty_at_working_size": "masks that become empty at the working size",
    "masks_unused": "masks that belong to no image",
}


class Notes:
    """A list that any thread adds to.

    `report` gives for each kind the count and some names; an empty dictionary where nothing was odd.
    """

    def __init__(self) -> None:
        self._names: list[tuple[str, str, str]] = []  # kind, name, detail
        self._peaks: list[int] = []
        self._regions: list[tuple[str, int, int, int]] = []

    def add(self, kind: str, name: str, detail: str = "") -> None:
        """A file by its name; `detail` is the reason, or what else is to be said of it."""
        self._names.append((kind, name, detail))

    def add_peak(self, largest: int) -> None:
        """The largest value of a file of 16 bits of which nothing else was said."""
        self._peaks.append(largest)

    def add_regions(self, name: str, before: int, after: int, vanished: int) -> None:
        """Connected regions of a mask: in the file, at the working size, and how many have no pixel left there."""
        self._regions.append((name, before, after, vanished))

    def state(self) -> list[Any]:
        """Everything that was added, as plain JSON."""
        return [self._names, self._peaks, self._regions]

    @classmethod
    def of_state(cls, state: list[Any]) -> Notes:
        """Notes from what `state` gave."""
        notes, (names, peaks, regions) = cls(), state
        notes._names = [(str(kind), str(name), str(detail)) for kind, name, detail in names]
        notes._peaks = [int(peak) for peak in peaks]
        notes._regions = [(str(name), int(a), int(b), int(c)) for name, a, b, c in regions]
        return notes

    def take_over(self, others: Notes) -> None:
        """Add what others have."""
        self._names += others._names
        self._peaks += others._peaks
        self._regions += others._regions

    def left_out(self) -> dict[str, list[str]]:
        """The reasons for which files were left out, and the files' names."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for kind, name, detail in sorted(set(self._names)):
            if kind == "left_out":
                found[detail].append(name)
        return dict(found)

    def report(self) -> dict[str, Any]:
        """Plain JSON, in an order that does not depend on the threads."""
        kinds: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        for kind, name, detail in sorted(set(self._names)):
            kinds[kind].append((name, detail))
        found: dict[str, Any] = {kind: _counted(kinds[kind]) for kind in KINDS if kind in kinds}
        changed = sorted(region for region in self._regions if region[1] != region[2] or region[3])
        if changed:
            found["regions"] = {
                "in_files": sum(region[1] for region in self._regions),
                "at_working_size": sum(region[2] for region in self._regions),
                "vanished": sum(region[3] for region in self._regions),
                "masks": len(changed),
                "names": [region[0] for region in changed[:NAMES]],
            }
        if self._peaks and 255 < max(self._peaks) < 2**15:
            largest = max(self._peaks)
            found["low_range"] = {"files": len(self._peaks), "largest": largest, "bits": largest.bit_length()}
        return found


def _counted(items: list[tuple[str, str]]) -> dict[str, Any]:
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for name, detail in items:
        reasons[detail].append(name)
    found: dict[str, Any] = {"count": len(items)}
    if set(reasons) == {""}:
        return found | {"names": reasons[""][:NAMES]}
    return found | {"reasons": {why: {"count": len(n), "names": n[:NAMES]} for why, n in reasons.items()}}


def lines(report: Mapping[str, Any]) -> list[str]:
    """One line for each kind of a report."""
    found = []
    for kind, words in KINDS.items():
        if kind not in report:
            continue
        part = report[kind]
        groups = part.get("reasons") or {"": part}
        names = "; ".join(
            (f"{why}: " if why else "") + ", ".join(group["names"]) + (", ..." if group["count"] > NAMES else "")
            for why, group in groups.items()
        )
        found.append(f"data: {part['count']} {words} ({names})")
    if part := report.get("regions"):
        found.append(
            f"data: {part['in_files']} regions in the mask files are {part['at_working_size']} at the working size; "
            f"{part['vanished']} have no pixel left (masks: {', '.join(part['names'])}"
            f"{', ...' if part['masks'] > NAMES else ''}); a larger data.image_size keeps more"
        )
    if part := report.get("low_range"):
        found.append(
            f"data: {part['files']} files of 16 bits hold no value above {part['largest']} of 65535, so they are read "
            f"dark; data.bits={part['bits']} takes 2^{part['bits']} - 1 for white"
        )
    return found
