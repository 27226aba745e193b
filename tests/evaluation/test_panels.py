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
from adbench.evaluation.panels import Panel, Panels, chosen_rows
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
    assert detector.reconstructed == 2 + 2 + 4  # no more than is drawn
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


def test_chosen_rows_are_few_spread_and_the_same_each_time():
    test_rows = np.random.default_rng(0).permutation(N)
    chosen = chosen_rows(DEFECTS, test_rows, per_defect=2, normals=4, at_most=24)
    assert chosen == chosen_rows(DEFECTS, np.sort(test_rows), 2, 4, 24)
    assert DEFECTS[chosen].tolist() == ["scratch"] * 2 + ["stain"] * 2 + ["good"] * 4
    assert chosen == [10, 14, 18, 22, 1, 3, 5, 7]
    many = np.array([f"kind {k}" for k in range(100)])
    assert len(set(chosen_rows(many, np.arange(100), 2, 4, 24))) == 24
    assert chosen_rows(DEFECTS, np.array([9]), 2, 4, 24) == [9]


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


def test_all_maps_share_one_colour_scale():
    quiet = panel(map=np.full((16, 20), 0.1, np.float32))
    figure = drawing.draw_panels([quiet, panel(map=np.linspace(0, 9, 320, dtype=np.float32).reshape(16, 20))])
    maps = [image for axes in figure.axes for image in axes.images if image.get_array().shape == (16, 20)]
    assert len(maps) == 2 and maps[0].norm is maps[1].norm
    assert maps[0].norm.vmax > 5


def test_a_defect_at_the_border_is_outlined_all_around():
    whole = panel(mask=np.ones((16, 20), dtype=bool))
    figure = drawing.draw_panels([whole])
    outlines = [c for axes in figure.axes for c in axes.collections if c.get_paths() and len(c.get_paths()[0]) > 4]
    assert outlines


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
