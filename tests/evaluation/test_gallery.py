import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from adbench.evaluation.evaluator import Evaluator
from adbench.evaluation.gallery import Gallery, Kept, keys
from adbench.evaluation.observers import Subject
from adbench.evaluation.overlay import map_scale
from adbench.evaluation.panels import Panel, draw_strip
from adbench.types import Batch, Scores

# What each row of the test scores; rows 0-5 are normal, 6-11 anomalous. The threshold is 0.46.
SCORE = [0.10, 0.20, 0.30, 0.40, 0.50, 0.90, 0.05, 0.44, 0.60, 0.70, 0.80, 0.95]
DEFECTS = np.array(["good"] * 6 + ["scratch"] * 6)
PATHS = np.array([f"test/{i}.png" for i in range(12)])


def subject(masks):
    return Subject(DEFECTS, PATHS, np.arange(12), masks)


class Told(LightningModule):
    """Scores an image by its brightness, which is set by hand."""

    def __init__(self, maps=True):
        super().__init__()
        self.maps = maps

    def test_step(self, batch, batch_idx):
        return Scores(batch.image[:, 0, 0, 0], 1 - batch.image[:, :1] if self.maps else None)

    def reconstruct(self, image):
        assert not torch.is_grad_enabled()
        return torch.zeros_like(image)


def evaluated(folder, batch_size=5, order=None, number=2, threshold=0.46, detector=None, masks=True):
    order = torch.arange(12) if order is None else order
    score = torch.tensor(SCORE)[order]
    image = score[:, None, None, None].expand(-1, 3, 16, 20).clone()
    mask = torch.zeros(12, 1, 16, 20, dtype=torch.bool)
    mask[order >= 6, :, 4:9, :6] = True
    whole = Batch(image, (order >= 6).long(), torch.zeros(12, dtype=torch.long), mask, order)
    picks = [slice(k, k + batch_size) for k in range(0, 12, batch_size)]
    loader = DataLoader([Batch(*(column[pick] for column in whole)) for pick in picks], batch_size=None)
    evaluator = Evaluator(subject(masks), threshold=threshold)
    gallery = Gallery(folder, evaluator, number)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", callbacks=[evaluator, gallery], **options)
    trainer.test(detector or Told(), loader, verbose=False)
    return {path.name for path in folder.glob("*")}


def chosen(folder):
    roles: dict[str, list[int]] = {}
    for entry in json.loads((folder / "gallery.json").read_text()):
        roles.setdefault(entry["role"], []).append(entry["index"])
    return roles


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_the_kept_images_are_the_best_the_worst_and_the_borderline_of_the_whole_test(tmp_path, batch_size):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(batch_size))
    evaluated(tmp_path, batch_size, order)
    assert chosen(tmp_path) == {
        "found": [11, 10], "passed": [0, 1], "missed": [6, 7], "false_alarm": [5, 4], "borderline": [7, 4],
    }  # fmt: skip


def test_each_entry_names_its_picture_its_row_and_its_score(tmp_path):
    names = evaluated(tmp_path)
    entries = json.loads((tmp_path / "gallery.json").read_text())
    assert names == {"gallery.json", *(entry["file"] for entry in entries)}
    worst = next(entry for entry in entries if entry["role"] == "missed")
    assert worst == {
        "role": "missed", "file": "gallery-missed-0.jpg", "index": 6, "path": "test/6.png", "defect": "scratch",
        "score": pytest.approx(0.05),
    }  # fmt: skip
    assert Image.open(tmp_path / worst["file"]).size == (3 * 128 + 4, 102)  # image, reconstruction, map over image


def test_without_a_threshold_nothing_is_borderline(tmp_path):
    evaluated(tmp_path, threshold=None)
    assert set(chosen(tmp_path)) == {"found", "passed", "missed", "false_alarm"}


def test_a_method_without_maps_and_data_without_masks_show_the_image(tmp_path):
    evaluated(tmp_path, detector=Told(maps=False), masks=False)
    assert Image.open(tmp_path / "gallery-found-0.jpg").size[0] == 2 * 128 + 2


def test_zero_images_or_tabular_rows_leave_nothing(tmp_path):
    assert evaluated(tmp_path, number=0) == set()
    evaluator = Evaluator(subject(masks=False))
    gallery = Gallery(tmp_path, evaluator)
    table = Batch(torch.rand(12, 5), (torch.arange(12) >= 6).long(), torch.zeros(12), torch.zeros(12), torch.arange(12))
    gallery.on_test_batch_end(None, None, Scores(torch.rand(12), None), table, 0)
    assert gallery._kept == {}


def test_more_images_wanted_than_there_are_gives_those_there_are(tmp_path):
    evaluated(tmp_path, number=50)
    assert sorted(chosen(tmp_path)["missed"]) == [6, 7, 8, 9, 10, 11]


def test_the_keys_say_what_each_role_is_about():
    score, label = torch.tensor([1.0, 5.0, 2.0]), torch.tensor([0, 1, 1])
    found = keys(score, label, threshold=3.0)
    assert found["found"].tolist() == [-torch.inf, 5.0, 2.0]
    assert found["missed"].tolist() == [-torch.inf, -5.0, -2.0]
    assert found["false_alarm"].tolist() == [1.0, -torch.inf, -torch.inf]
    assert found["passed"].tolist() == [-1.0, -torch.inf, -torch.inf]
    assert found["borderline"].tolist() == [-2.0, -2.0, -1.0]


def test_what_is_held_does_not_grow_with_the_test():
    rows = Kept(*(torch.arange(100.0) for _ in range(4)), torch.rand(100, 3, 4, 4), torch.rand(100, 1, 4, 4), None)
    best = rows.best(3)
    assert best.key.tolist() == [99.0, 98.0, 97.0]
    assert best.with_rows_of(rows.best(3)).best(3).image.shape == (3, 3, 4, 4)


def test_two_processes_keep_together_what_one_would(tmp_path, monkeypatch):
    evaluator = Evaluator(subject(masks=False), threshold=0.46)
    galleries = [Gallery(tmp_path / str(rank), evaluator, number=2) for rank in (0, 1)]
    score, index = torch.tensor(SCORE), torch.arange(12)
    for rank, gallery in enumerate(galleries):
        rows = index[rank::2]
        batch = Batch(torch.rand(6, 3, 8, 8), (rows >= 6).long(), torch.zeros(6), torch.zeros(6, 1, 8, 8), rows)
        gallery.on_test_batch_end(None, None, Scores(score[rows], None), batch, 0)
    kept = [gallery._kept for gallery in galleries]
    monkeypatch.setattr(torch.distributed, "all_gather_object", lambda out, mine: out.__setitem__(slice(None), kept))
    galleries[0].on_test_epoch_end(SimpleNamespace(world_size=2), None)
    together = {role: rows.index.tolist() for role, rows in galleries[0]._kept.items()}
    assert together == {
        "found": [11, 10], "passed": [0, 1], "missed": [6, 7], "false_alarm": [5, 4], "borderline": [7, 4],
    }  # fmt: skip


def test_a_strip_outlines_the_mask_and_keeps_the_images_shape():
    mask = np.zeros((64, 32), dtype=bool)
    mask[10:40, 8:24] = True
    panel = Panel("scratch", 1.0, np.full((64, 32, 3), 0.5, np.float32), None, np.zeros((64, 32), np.float32), mask)
    strip = draw_strip(panel, map_scale([panel.map]))
    assert strip.shape == (128, 2 * 64 + 2, 3)
    image, overlay = strip[:, :64], strip[:, 66:]
    assert (image == 128).all()
    outline = (overlay[..., 2] > 200) & (overlay[..., 0] < 100)
    assert outline[20, 16:48].all() and outline[79, 16:48].all() and not outline[40, 32]
