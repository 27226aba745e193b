"""MVTec AD (Bergmann et al. 2019) in its official layout."""

from __future__ import annotations

from pathlib import Path

from adbench.data.folder import mvtec_rows
from adbench.data.images import MAX_PIXELS, ImageFiles
from adbench.data.notes import Notes
from adbench.data.records import Records
from adbench.types import UserError

#: The fifteen categories, and whether a paper's transforms for textures or for objects apply.
KINDS = {
    **dict.fromkeys(("carpet", "grid", "leather", "tile", "wood"), "texture"),
    **dict.fromkeys(
        ("bottle", "cable", "capsule", "hazelnut", "metal_nut", "pill", "screw", "toothbrush", "transistor", "zipper"),
        "object",
    ),
}


class MVTec(ImageFiles):
    """One category.

    Args:
        root: the folder that holds the categories.
        category: one of `KINDS`.
        bits, max_pixels, unreadable: see `ImageFiles`.

    Raises:
        UserError: there is no such category, or its folder is missing or not in the official layout.
    """

    def __init__(
        self,
        root: Path | str,
        category: str,
        bits: int = 16,
        max_pixels: int = MAX_PIXELS,
        unreadable: str = "refuse",
    ) -> None:
        if category not in KINDS:
            raise UserError(f"MVTec AD has no category {category}; it has {', '.join(sorted(KINDS))}")
        folder = Path(root).expanduser() / category
        advice = (
            "download MVTec AD from https://www.mvtec.com/company/research/datasets/mvtec-ad, unpack it as "
            f"<data root>/mvtec/{category}/train/good and so on, and give data_root=DIR or set ADBENCH_DATA"
        )
        notes = Notes()
        super().__init__(folder, Records.of(mvtec_rows(folder, advice, notes)), bits, max_pixels, unreadable, notes)
