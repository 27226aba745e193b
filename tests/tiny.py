"""A method and a data set so small that a hundred runs take a minute; the weights tell what they were trained on."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from adbench.data.records import Records
from adbench.methods.base import SingleObjective, Terms
from adbench.types import Batch, Scores, UserError

CODE = {"now": 1}  # which edition of the code is running
FAIL_AT: dict[str, int | None] = {"batch": None}
BATCHES = 6
ACTS: dict[int, object] = {}  # batch -> what to call when it begins


class Tiny(SingleObjective):
    """One weight. Buffers keep the least and the largest data set, setting and edition of code of its batches."""

    has_maps = False

    def __init__(self, setting: int) -> None:
        super().__init__(partial(torch.optim.SGD, lr=0.1))
        self.setting = setting
        self.weight = nn.Parameter(torch.ones(()))
        self.register_buffer("least", torch.full((3,), 99.0))
        self.register_buffer("largest", torch.zeros(3))

    def objective(self, batch: Batch) -> Terms:
        if self.batches_seen == FAIL_AT["batch"]:
            raise RuntimeError("it broke")
        if self.batches_seen in ACTS:
            ACTS[self.batches_seen]()
        seen = torch.tensor([float((batch.image.mean() * 255).round()), float(self.setting), float(CODE["now"])])
        self.least.copy_(torch.minimum(self.least, seen))
        self.largest.copy_(torch.maximum(self.largest, seen))
        return {"square": self.weight.square()}

    def score(self, image: Tensor) -> Scores:
        # The data set's number, and one row's place.
        return Scores((image.mean((1, 2, 3)) * 255).round() + 0 * self.weight, None)


class Constant:
    """Images of one brightness: the number of the data set, kept in a file that may be moved and changed."""

    has_masks = False
    features = None

    def __init__(self, file: str) -> None:
        try:
            number = int(Path(file).read_text())
        except FileNotFoundError:
            raise UserError(f"there is no {file}") from None
        rows = [
            {"split": split, "label": label, "defect": "bad" if label else "good", "path": f"{split}/{i}"}
            for split, count in (("train", 8), ("test", 4))
            for i in range(count)
            for label in [int(split == "test" and i % 2)]
        ]
        self.records = Records.of(rows)
        self.array = np.full((len(rows), 4, 4, 1), number, np.uint8)

    def read_image(self, row: int) -> np.ndarray:
        return np.repeat(self.array[row], 3, axis=-1)

    def read_mask(self, row: int) -> np.ndarray:
        raise LookupError

    def fingerprint(self) -> str:
        return f"constant {self.array[0, 0, 0, 0]}"
