import json
import multiprocessing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from adbench.evaluation import metrics
from adbench.evaluation.evaluator import Evaluator
from adbench.evaluation.observers import Subject
from adbench.types import Batch, Scores

IMAGE_KEYS = ["image_auroc", "image_ap", "image_f1_max", "image_balanced_accuracy_max", "image_balanced_accuracy"]


class MeanDetector(LightningModule):
    """Scores an image by its mean and a pixel by its value."""

    def __init__(self, has_maps=True):
        super().__init__()
        self.has_maps = has_maps

    def test_step(self, batch, batch_idx):
        return Scores(batch.image.mean(dim=(1, 2, 3)), batch.image.mean(1, keepdim=True) if self.has_maps else None)


def rows(n=20, side=12, seed=0):
    """One `Batch` of a whole test set in shuffled order of its record rows; every third row has a bright defect."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(n, 3, side, side, generator=generator)
    label = (torch.arange(n) % 3 == 0).long()
    mask = torch.zeros(n, 1, side, side, dtype=torch.bool)
    mask[label == 1, :, 2:6, 3:7] = True
    image = (image + 0.4 * mask).clamp(max=1)
    order = torch.randperm(n, generator=generator)
    whole = Batch(image, label, torch.zeros(n, dtype=torch.long), mask, torch.arange(100, 100 + n))
    return Batch(*(column[order] for column in whole))


def loader(whole, batch_size):
    picks = [slice(start, start + batch_size) for start in range(0, len(whole.label), batch_size)]
    return DataLoader([Batch(*(column[pick] for column in whole)) for pick in picks], batch_size=None)


def subject(has_masks=True, defects=None):
    names = np.array(["good"] * 200, dtype=object) if defects is None else defects
    return Subject(names, names, np.arange(100, 200), has_masks)


def evaluated(whole, batch_size=6, detector=None, has_masks=True, defects=None, **options):
    evaluator = Evaluator(subject(has_masks, defects), **options)
    trainer = Trainer(
        accelerator="cpu", logger=False, callbacks=[evaluator], enable_progress_bar=False, enable_model_summary=False
    )
    trainer.test(detector or MeanDetector(), loader(whole, batch_size), verbose=False)
    return evaluator


def test_results_carry_the_promised_names_and_equal_the_metrics_of_the_whole_set():
    whole = rows()
    evaluator = evaluated(whole, threshold={"value": 0.52, "quantile": 0.95, "n": 40, "origin": "held-out"})
    results = evaluator.results()
    assert list(results) == [*IMAGE_KEYS, *metrics.PIXEL_METRICS]
    assert all(isinstance(value, float) and 0 <= value <= 1 for value in results.values())
    assert evaluator.threshold["origin"] == "held-out"
    scores = MeanDetector().test_step(whole, 0)
    expected = metrics.image_metrics(scores.image, whole.label, 0.52)
    assert {name: results[name] for name in IMAGE_KEYS} == expected
    pixels = metrics.PixelMetrics()
    pixels.update(scores.maps, whole.mask)
    assert {name: results[name] for name in metrics.PIXEL_METRICS} == pytest.approx(pixels.compute(), abs=1e-12)


def test_the_table_is_sorted_by_row_and_independent_of_the_batch_size():
    whole = rows()
    tables = [evaluated(whole, batch_size).table() for batch_size in (1, 7, 20)]
    assert tables[0]["index"].tolist() == list(range(100, 120))
    assert tables[0]["label"].tolist() == (torch.arange(20) % 3 == 0).long().tolist()
    for table in tables[1:]:
        assert all(np.array_equal(table[name], tables[0][name]) for name in ("index", "label"))
        assert np.allclose(table["score"], tables[0]["score"], rtol=1e-6)


@pytest.mark.parametrize("options", [{"has_masks": False}, {"detector": MeanDetector(has_maps=False)}])
def test_without_masks_or_maps_there_are_only_image_metrics(options):
    assert list(evaluated(rows(), **options).results()) == IMAGE_KEYS


def test_without_a_threshold_only_the_thresholded_metric_is_none():
    results = evaluated(rows()).results()
    assert [name for name, value in results.items() if value is None] == ["image_balanced_accuracy"]


def test_a_test_set_of_normal_rows_only_gives_none_with_a_warning():
    whole = rows()
    normal = Batch(*(column[whole.label == 0] for column in whole))
    with pytest.warns(UserWarning, match="both kinds"):
        evaluator = evaluated(normal)
    assert set(evaluator.results().values()) == {None}
    assert evaluator.per_defect() == {}
    with pytest.warns(UserWarning, match="both kinds"):
        assert evaluator.interval() is None


def test_each_defect_kind_is_compared_with_all_normal_rows():
    defects = np.array(["good"] * 200, dtype=object)
    defects[100:120:6], defects[103:120:6] = "scratch", "stain"
    evaluator = evaluated(rows(), defects=defects)
    per_defect = evaluator.per_defect()
    assert list(per_defect) == ["scratch", "stain"]
    table = evaluator.table()
    scratch = np.isin(table["index"], np.arange(100, 120, 6))
    chosen = scratch | (table["label"] == 0)
    assert per_defect["scratch"] == metrics.image_auroc(table["score"][chosen], table["label"][chosen])


def test_the_interval_holds_the_auroc():
    evaluator = evaluated(rows(60))
    low, high = evaluator.interval()
    assert low <= evaluator.results()["image_auroc"] <= high


def test_a_second_test_starts_from_nothing():
    evaluator, whole = Evaluator(subject()), rows()
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[evaluator], enable_progress_bar=False)
    trainer.test(MeanDetector(), loader(whole, 6), verbose=False)
    first = evaluator.results()
    trainer.test(MeanDetector(), loader(whole, 6), verbose=False)
    assert evaluator.results() == first and len(evaluator.table()["index"]) == 20


def test_rows_that_come_twice_count_once_and_pixel_metrics_become_none():
    whole = rows()
    twice = Batch(*(torch.cat([column, column[:5]]) for column in whole))
    with pytest.warns(UserWarning, match="5 test rows were scored more than once"):
        evaluator = evaluated(twice)
    assert len(evaluator.table()["index"]) == 20
    assert evaluator.results()["image_auroc"] == evaluated(whole).results()["image_auroc"]
    assert evaluator.results()["pixel_auroc"] is None


def test_an_offset_reaches_the_pixels():
    whole = rows()
    assert evaluated(whole, offset=0.5)._pixels.offset == 0.5
    assert evaluated(whole, offset=0.5).results()["pixel_auroc"] == pytest.approx(
        evaluated(whole).results()["pixel_auroc"], abs=1e-3
    )


def test_asking_before_a_test_is_an_error():
    with pytest.raises(RuntimeError, match="no finished test"):
        Evaluator(subject()).results()


def _rank(rank, folder):
    """One of two processes; it tests every second row in batches of four."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    whole, detector = rows(21), MeanDetector()
    evaluator, trainer = Evaluator(subject()), SimpleNamespace(world_size=2)
    evaluator.on_test_start(trainer, detector)
    for start in range(0, 11, 4):
        batch = Batch(*(column[rank::2][start : start + 4] for column in whole))
        evaluator.on_test_batch_end(trainer, detector, detector.test_step(batch, 0), batch, 0)
    evaluator.on_test_epoch_end(trainer, detector)
    (folder / f"{rank}.json").write_text(json.dumps([evaluator.results(), evaluator.table()["index"].tolist()]))
    torch.distributed.destroy_process_group()


def test_two_ranks_with_unequal_shares_both_know_the_metrics_of_the_whole(tmp_path):
    context = multiprocessing.get_context("fork")  # libraries are loaded already: a new interpreter takes seconds
    ranks = [context.Process(target=_rank, args=(rank, tmp_path)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=100)
    expected = evaluated(rows(21))
    for rank in range(2):
        results, index = json.loads((tmp_path / f"{rank}.json").read_text())
        assert index == list(range(100, 121))
        assert results == pytest.approx(expected.results(), abs=1e-12)
