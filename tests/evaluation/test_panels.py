import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from adbench.evaluation import panels as drawing
from adbench.evaluation.evaluator import Evaluator
from adbench.evaluation.metrics import curve
from adbench.evaluation.observers import Subject
from adbench.evaluation.panels import Panel, Panels
from adbench.types import Batch, Scores

N = 24
DEFECTS = np.array(["good"] * 8 + ["scratch"] * 8 + ["stain"] * 8)


class Darkness(LightningModule):
    """Reconstructs white; the residual is the map. Counts what it is asked to reconstruct."""

    def __init__(self):
        super().__init__()
        self.reconstructed = 0

    def test_step(self, batch, batch_idx):
        if batch.image.ndim == 2:
            return Scores(batch.image.mean(dim=1), None)
        return Scores(1 - batch.image.mean(dim=(1, 2, 3)), 1 - batch.image.mean(1, keepdim=True))

    def reconstruct(self, image):
        assert not torch.is_grad_enabled()
        self.reconstructed += len(image)
        return torch.ones_like(image)


def batches(tabular=False, size=(16, 20)):
    image = torch.rand(N, 3, *size, generator=torch.Generator().manual_seed(0)) / 2 + 0.5
    mask = torch.zeros(N, 1, *size, dtype=torch.bool)
    mask[8:, :, 4:9, :6] = True
    image = torch.where(mask, image / 3, image)
    image = image.flatten(1)[:, :5] if tabular else image
    label = (torch.arange(N) >= 8).long()
    whole = Batch(image, label, torch.zeros(N, dtype=torch.long), mask, torch.arange(N))
    return DataLoader([Batch(*(c[k : k + 5] for c in whole)) for k in range(0, N, 5)], batch_size=None)


def run(folder, loader, loggers=False, detector=None):
    evaluator = Evaluator(Subject(DEFECTS, DEFECTS, np.arange(N), has_masks=True), threshold=0.3)
    panels = Panels(folder, evaluator)
    trainer = Trainer(accelerator="cpu", logger=loggers, callbacks=[panels, evaluator], enable_progress_bar=False)
    trainer.test(detector or Darkness(), loader, verbose=False)
    return panels


def panel(**changes):
    rng = np.random.default_rng(0)
    mask = np.zeros((16, 20), dtype=bool)
    mask[:5, :5] = True
    made = Panel(
        "scratch", 0.5, rng.random((16, 20, 3)), rng.random((16, 20, 3)), rng.random((16, 20), dtype=np.float32), mask
    )
    return made._replace(**changes)


def test_a_test_leaves_three_whole_pictures_and_hands_them_to_the_loggers(tmp_path):
    class Recorder(CSVLogger):
        """Takes pictures as the W&B logger does."""

        pictures = []

        def log_image(self, key, images):
            self.pictures.append((key, images))

    loggers = [TensorBoardLogger(tmp_path / "tb"), Recorder(tmp_path / "recorder"), CSVLogger(tmp_path / "csv")]
    detector = Darkness()
    run(tmp_path / "figures", batches(), loggers, detector)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["histogram.png", "panels.png", "roc.png"]
    for path in (tmp_path / "figures").iterdir():
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert min(pixels.shape[:2]) > 300 and pixels.std() > 10
        assert (f"figures/{path.stem}", [str(path)]) in Recorder.pictures
    assert detector.reconstructed == 16 + 4  # no more than is drawn
    events = EventAccumulator(loggers[0].log_dir).Reload()
    assert sorted(events.Tags()["images"]) == ["figures/histogram", "figures/panels", "figures/roc"]


def test_tabular_data_have_curves_and_no_panels(tmp_path):
    run(tmp_path, batches(tabular=True), detector=TabularDarkness())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["histogram.png", "roc.png"]


class TabularDarkness(Darkness):
    has_maps = False


def test_a_test_set_of_one_label_has_no_roc_curve(tmp_path):
    loader = DataLoader([Batch(*(c[:4] for c in batches().dataset[0]))], batch_size=None)
    with pytest.warns(UserWarning, match="both kinds"):
        run(tmp_path, loader)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["histogram.png", "panels.png"]


@pytest.mark.parametrize(
    ("changes", "columns"),
    [
        ({}, ["image", "reconstruction", "anomaly map", "overlay"]),
        ({"reconstruction": None}, ["image", "anomaly map", "overlay"]),
        ({"map": None, "reconstruction": None}, ["image", "mask"]),
        ({"map": None, "reconstruction": None, "mask": None}, ["image"]),
    ],
)
def test_panels_draw_the_columns_there_are(changes, columns):
    figure = drawing.draw_panels([panel(**changes)] * 3)
    texts = [text.get_text() for text in figure.texts]
    assert [text for text in texts if not text.startswith("scratch")] == columns
    assert texts.count("scratch   0.5") == 3


def drawn(tmp_path, monkeypatch, score, anomalous=48, normals=4, label=None, ranks=1):
    """Kind and score of the panels in the order in which they are drawn; the image of row k has brightness k / 100."""
    score, rows = torch.tensor(score), len(score)
    label = torch.ones(rows) if label is None else torch.tensor(label)
    kinds = np.where(label.numpy() == 1, "bad", "good")
    image = (torch.arange(rows) / 100).reshape(-1, 1, 1, 1).expand(rows, 3, 8, 8)
    evaluator = Evaluator(Subject(kinds, kinds, np.arange(rows), has_masks=False))
    shares = []
    for rank in range(ranks):
        watcher = Panels(tmp_path, evaluator, anomalous, normals)
        watcher.begin(None)
        for first in range(rank, rows, 5 * ranks):
            at = torch.arange(first, min(first + 5 * ranks, rows), ranks)
            watcher.observe(
                Batch(image[at], label[at], None, torch.zeros(len(at), 1, 8, 8), at), Scores(score[at], None), None
            )
        shares.append(watcher.share())
    watcher.finish(shares, None)
    seen = []
    monkeypatch.setattr(drawing, "draw_panels", lambda panels: seen.extend(panels) or Figure())
    monkeypatch.setattr(drawing, "publish", lambda *_: None)
    evaluator._table = {"score": score.numpy(), "label": label.numpy(), "index": np.arange(rows)}
    watcher.draw(None, object())
    return [(panel.kind, panel.score, round(100 * float(panel.image[0, 0, 0]))) for panel in seen]


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_anomalous_image_is_drawn_the_worst_miss_first_and_then_normal_ones(tmp_path, monkeypatch, ranks):
    score = [5.0, 1.0, 3.0, 2.0, 4.0, 9.0, 8.0, 0.5]
    label = [1, 1, 1, 1, 1, 0, 0, 0]
    found = drawn(tmp_path, monkeypatch, score, normals=2, label=label, ranks=ranks)
    assert found[:5] == [("bad", float(k), score.index(k)) for k in (1, 2, 3, 4, 5)]
    assert found[5:] == [("good", 9.0, 5), ("good", 0.5, 7)]  # spread over the rows


@pytest.mark.parametrize("ranks", [1, 2])
def test_of_more_anomalous_images_than_are_drawn_the_lowest_scores_stay(tmp_path, monkeypatch, ranks):
    score = np.random.default_rng(0).permutation(50).astype(np.float32).tolist()
    found = drawn(tmp_path, monkeypatch, score, anomalous=7, normals=0, ranks=ranks)
    assert [value for _, value, _ in found] == [0, 1, 2, 3, 4, 5, 6]
    assert [row for *_, row in found] == [score.index(value) for value in range(7)]


def test_an_anomalous_image_of_infinite_score_is_drawn_last(tmp_path, monkeypatch):
    assert [v for _, v, _ in drawn(tmp_path, monkeypatch, [np.inf, 1.0, 2.0])] == [1.0, 2.0, np.inf]
    assert drawn(tmp_path, monkeypatch, [1.0, 2.0], anomalous=0, normals=0) == []


def test_all_maps_share_one_colour_scale(monkeypatch):
    scales = []
    original = drawing.draw_cell
    monkeypatch.setattr(drawing, "draw_cell", lambda *a: scales.append(a[2]) or original(*a))
    quiet = panel(map=np.full((16, 20), 0.1, np.float32))
    drawing.draw_panels([quiet, panel(map=np.linspace(0, 9, 320, dtype=np.float32).reshape(16, 20))])
    assert len({id(scale) for scale in scales}) == 1 and scales[0].vmax > 5
    assert original("anomaly map", quiet, scales[0], (16, 20)).max() < 20  # cold beside the other


def test_a_picture_stands_below_its_caption_the_right_way_up():
    ramp = np.repeat(np.linspace(0, 1, 64, dtype=np.float32)[:, None, None], 64, axis=1).repeat(3, axis=2)
    one = panel(image=ramp, reconstruction=None, map=None, mask=None)
    pixels = drawing.rendered(drawing.draw_panels([one]))
    line = pixels[:, pixels.shape[1] // 2].mean(axis=-1)
    dark, bright = int(np.flatnonzero(line < 20)[0]), len(line) - 1 - round(drawing.MARGIN * drawing.DPI)
    assert dark == round((drawing.HEAD + drawing.LABEL) * drawing.DPI)
    assert line[dark + 5] < line[(dark + bright) // 2] < line[bright - 5]


@pytest.mark.parametrize("side", [16, 64, 400])
def test_a_defect_at_the_border_is_outlined_all_around(side):
    full = panel(image=np.zeros((side, side, 3)), mask=np.ones((side, side), dtype=bool), map=None)
    cell = drawing.draw_cell("overlay", full, None, (195, 195))
    cyan = (cell == drawing.OUTLINE).all(axis=-1)
    assert cyan[0].all() and cyan[-1].all() and cyan[:, 0].all() and cyan[:, -1].all()
    assert not cyan[10:-10, 10:-10].any()


def test_a_defect_of_one_pixel_of_a_large_image_is_outlined():
    mask = np.zeros((900, 900), dtype=bool)
    mask[450, 450] = True
    small = panel(image=np.zeros((900, 900, 3)), mask=mask, map=None)
    assert (drawing.draw_cell("overlay", small, None, (195, 195)) == drawing.OUTLINE).all(axis=-1).any()


def test_maps_of_one_value_and_infinite_scores_are_drawn():
    for value in (0.0, np.inf):
        picture = drawing.draw_panels([panel(map=np.full((16, 20), value, np.float32), score=value)])
        assert np.ptp(drawing.rendered(picture)) > 0
    for scores, labels in (([0.0, np.inf, 1.0], [0, 1, 1]), ([np.inf], [1])):
        assert np.ptp(drawing.rendered(drawing.draw_histogram(scores, labels, threshold=0.5))) > 0


def test_the_titles_tell_the_auroc():
    figure = drawing.draw_roc(curve([1, 2, 3, 4], [0, 1, 0, 1]), (0.25, 1.0), threshold=2.5)
    axes = figure.axes[0]
    assert axes.get_title(loc="left").startswith("image AUROC 0.750   (95 % 0.250")
    (at,) = [line.get_xydata()[0].tolist() for line in axes.lines if line.get_marker() == "o"]
    assert at == [0.5, 0.5]


def test_a_picture_that_fails_leaves_the_one_before_it(tmp_path):
    class Broken(Figure):
        def draw(self, renderer):
            raise RuntimeError("no ink")

    path = tmp_path / "roc.png"
    drawing.save(drawing.draw_histogram([0.0, 1.0], [0, 1]), path)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="no ink"):
        drawing.save(Broken(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["roc.png"]
