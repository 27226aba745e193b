"""Dark dots on a bright ground; an anomalous image has a square among them. Drawn, so nothing is downloaded."""

import numpy as np

from adbench.data.records import Records


class Dots:
    """Args: train, test: rows of each part; every second test row is anomalous. size: side in pixels."""

    features = None
    has_masks = True

    def __init__(self, train: int = 16, test: int = 8, size: int = 32) -> None:
        rng = np.random.default_rng(11)
        count = train + test
        self.array = np.full((count, size, size, 1), 220, np.uint8)
        self.masks = np.zeros((count, size, size), bool)
        rows = []
        for i in range(count):
            for y, x in rng.integers(1, size - 1, (12, 2)):
                self.array[i, y - 1 : y + 1, x - 1 : x + 1] = 60
            anomalous = i >= train and i % 2 == 1
            if anomalous:
                y, x = rng.integers(0, size - 8, 2)
                self.array[i, y : y + 8, x : x + 8], self.masks[i, y : y + 8, x : x + 8] = 20, True
            part = "train" if i < train else "test"
            rows.append(
                {
                    "split": part,
                    "label": int(anomalous),
                    "defect": "square" if anomalous else "good",
                    "path": f"{part}/{i}",
                    "mask": f"{part}/{i}" if anomalous else "",
                }
            )
        self.records = Records.of(rows)

    def read_image(self, row: int) -> np.ndarray:
        return np.repeat(self.array[row], 3, axis=-1)

    def read_mask(self, row: int) -> np.ndarray:
        return self.masks[row]

    def fingerprint(self) -> str:
        return f"dots {self.array.shape} {int(self.array.sum(dtype=np.int64))}"


class DotsDataset:
    """The same images as a plain torch Dataset of (image, label, mask), for `data=dataset`."""

    def __init__(self, count: int = 24) -> None:
        self.dots = Dots(train=count - 8, test=8)

    def __len__(self) -> int:
        return len(self.dots.array)

    def __getitem__(self, i: int):
        label = int(self.dots.records.label[i])
        return self.dots.read_image(i).astype(np.float32) / 255, label, self.dots.masks[i] if label else None
