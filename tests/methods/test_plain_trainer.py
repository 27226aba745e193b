"""A method in a plain `pytorch_lightning.Trainer`, without any of the commands."""

import contextlib
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from adbench import testing
from adbench.methods.autoencoder import Autoencoder
from adbench.methods.base import Adversarial, Phase, SingleObjective, _refuse_lightnings_sampler, polynomial
from adbench.methods.trivial import PCAResidual
from adbench.types import Batch, Scores, UserError

SGD = partial(torch.optim.SGD, lr=0.1)
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
         "num_sanity_val_steps": 0}  # fmt: skip


class Line(SingleObjective):
    """A method of two numbers that writes down what the training asks of it."""

    has_maps = False

    def __init__(self, schedule=None, optimizer=SGD):
        super().__init__(optimizer, schedule)
        torch.manual_seed(0)
        self.net = nn.Linear(3, 1)
        self.rates, self.rows, self.calls = [], [], []

    def prepare(self, batches):
        self.calls.append(("prepare", sum(len(batch.image) for batch in batches)))

    def calibrate(self, batches):
        self.calls.append(("calibrate", sum(len(batch.image) for batch in batches)))

    def objective(self, batch):
        self.rates.append(self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"])
        self.rows.append(batch.index.tolist())
        noise = self.randn("target", len(batch.image), 1)
        return {"fit": (self.net(batch.image.mean((2, 3))) - noise).square().mean()}

    def score(self, image):
        return Scores(self.net(image.mean((2, 3)))[:, 0], None)


class Two(Adversarial):
    """Two players; the first steps on two of three batches, the second on every one."""

    def __init__(self):
        super().__init__({"first": SGD, "second": SGD})
        self.a, self.b = nn.Linear(3, 1), nn.Linear(3, 1)

    def phases(self):
        joint = lambda batch: {"sum": (self.a(x := batch.image.mean((2, 3))) * self.b(x)).mean()}  # noqa: E731
        return [Phase("first", [self.a], joint, 3, (0, 1)), Phase("second", [self.b], joint)]


class Images(Dataset):
    def __init__(self, rows=10, value=None, scale=1.0):
        self.image = scale * torch.rand(rows, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        self.value = value

    def __len__(self):
        return len(self.image)

    def __getitem__(self, row):
        return self.image[row] if self.value is None else (self.image[row], self.value)


def unlabelled(images):
    return Batch.unlabelled(torch.stack(images))


def loader(**options):
    return DataLoader(Images(), **{"batch_size": 2, "collate_fn": unlabelled} | options)


def fitted(method, *data, ckpt_path=None, **options):
    trainer = pl.Trainer(**QUIET | {"enable_checkpointing": "callbacks" in options} | options)
    trainer.fit(method, *data, ckpt_path=ckpt_path)
    return trainer


@pytest.fixture
def data(tmp_path):
    return lambda method=None: testing.stripes(method or Line(), 32, tmp_path)


def test_a_schedule_goes_over_the_whole_of_three_epochs(data):
    method = Line(polynomial(1.0))
    fitted(method, data(method), max_epochs=3)
    assert method.total_batches == method.batches_seen == len(method.rates) == 3
    assert method.rates == pytest.approx([0.1, 0.1 * 2 / 3, 0.1 / 3])


def test_epochs_of_a_plain_trainer_are_the_batches_of_a_run_of_as_many(data):
    plain, run = Line(polynomial(0.9)), Line(polynomial(0.9))
    fitted(plain, data(plain), max_epochs=5)
    testing.fit(run, data(run), 5)
    assert plain.rows == run.rows and len({tuple(rows) for rows in run.rows}) == 5
    assert torch.equal(plain.net.weight, run.net.weight)


def test_preparation_and_calibration_run_once_each_on_the_rows_that_are_theirs(data):
    method, rows = Line(), data()
    fitted(method, rows, max_epochs=3)
    assert method.calls == [("prepare", len(rows.split.train)), ("calibrate", len(rows.split.holdout))]
    assert bool(method.prepared) and bool(method.calibrated)


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ({"max_epochs": 3}, 15),
        ({"max_epochs": 3, "limit_train_batches": 2}, 6),
        ({"max_epochs": 2, "limit_train_batches": 0.4}, 4),
        ({"max_steps": 7}, 7),
        ({"max_steps": 7, "max_epochs": 1}, 5),
        ({"max_steps": 3, "accumulate_grad_batches": 2}, 5),
        ({"max_steps": 5, "accumulate_grad_batches": 2}, 9),
        ({"overfit_batches": 1, "max_epochs": 4}, 4),
        ({"fast_dev_run": 2}, 2),
    ],
)
def test_the_length_of_training_is_what_the_trainer_does(options, batches):
    method = Line()
    fitted(method, loader(), **options)
    assert method.total_batches == method.batches_seen == len(method.rates) == batches


@pytest.mark.parametrize(("steps", "batches"), [(1, 1), (5, 3), (6, 4), (10, 6)])
def test_steps_of_several_players_are_counted_as_the_trainer_counts_them(steps, batches):
    method = Two()
    fitted(method, loader(), max_steps=steps)
    assert method.total_batches == method.batches_seen == batches


def autoencoder():
    torch.manual_seed(0)
    return Autoencoder(
        kind="small", image_size=32, latent=4, width=2, mlp={}, scaling="min_max", error="squared", window=11,
        optimizer=SGD, schedule=polynomial(0.9), rows_per_step=2,
    )  # fmt: skip


def test_batches_of_several_steps_count_as_one_for_the_trainer(data):
    method = autoencoder()
    trainer = fitted(method, data(method), max_steps=4)
    assert method.batches_seen == trainer.global_step == 4


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.rand(3, 8, 8)


def test_a_loader_without_a_length_needs_a_limit():
    endless = DataLoader(Endless(), batch_size=2, collate_fn=unlabelled)
    with pytest.raises(UserError, match=r"max_epochs=N.*limit_train_batches=N.*total_batches"):
        fitted(Line(), endless, max_epochs=1)
    method = Line()
    fitted(method, endless, max_epochs=2, limit_train_batches=3)
    assert method.batches_seen == method.total_batches == 6


def test_a_training_without_an_end_is_refused_unless_its_length_is_set():
    with pytest.raises(UserError, match=r"max_epochs=N"):
        fitted(Line(), loader(), max_epochs=-1)
    method = Line()
    method.total_batches = 100
    fitted(method, loader(), max_epochs=2)
    assert method.total_batches == 100 and method.batches_seen == 10
    other = Line()
    fitted(other, loader(), max_epochs=1)
    other.total_batches = 100  # after a training whose length was the trainer's
    fitted(other, loader(), max_epochs=2)
    assert other.total_batches == 100


def test_a_second_training_is_not_at_its_end_before_it_begins():
    method = Line(polynomial(1.0))
    for epochs in (2, 4):
        method.rates.clear()
        fitted(method, loader(), max_epochs=epochs)
        assert method.total_batches == len(method.rates) == 5 * epochs
        assert method.rates[0] == pytest.approx(0.1) and min(method.rates) > 0
    assert [call for call, _ in method.calls] == ["prepare", "calibrate", "calibrate"]


def test_a_second_training_sees_the_batches_of_a_first_one(data):
    method, rows = Line(), data()
    for _ in range(2):
        method.rows.clear()
        fitted(method, rows, max_epochs=2)
    other = Line()
    fitted(other, data(), max_epochs=2)
    assert method.rows == other.rows


def test_outside_any_training_a_schedule_says_what_is_missing():
    with pytest.raises(UserError, match=r"Line.total_batches is not set.*adbench.fit"):
        _ = Line().progress


class Module(pl.LightningDataModule):
    def train_dataloader(self):
        return loader()


@pytest.mark.parametrize("source", [loader, Module], ids=["loader", "data module"])
def test_a_users_own_source_of_batches_trains_and_prepares(source):
    method = Line(polynomial(1.0))
    fitted(method, source(), max_epochs=2)
    assert method.calls == [("prepare", 10), ("calibrate", 0)] and method.batches_seen == 10


def test_bytes_of_a_users_own_loader_become_floats_and_grey_becomes_colour():
    class Seeing(Line):
        def objective(self, batch):
            assert batch.image.dtype == torch.float32 and batch.image.shape == (2, 3, 8, 8) and batch.image.max() == 1
            return super().objective(batch)

    rows = [torch.full((1, 8, 8), 255, dtype=torch.uint8)] * 4
    fitted(Seeing(), DataLoader(rows, batch_size=2, collate_fn=unlabelled), max_epochs=1)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: DataLoader(Images(value=1), batch_size=2), r"gives list.*Batch.unlabelled"),
        (lambda: DataLoader(Images(), batch_size=2), r"gives Tensor.*Batch.unlabelled"),
        (lambda: DataLoader(Images(scale=255), batch_size=2, collate_fn=unlabelled), r"floats in \[0, 1\].*255|to 25"),
        (lambda: {"a": loader(), "b": loader()}, r"gives (str|dict)"),
    ],
    ids=["pairs", "bare images", "grey levels", "several loaders"],
)
def test_a_loader_of_something_else_is_refused_with_what_to_give_instead(source, message):
    with pytest.raises(UserError, match=message):
        fitted(Line(), source(), max_epochs=1)


def test_a_method_without_training_steps_says_how_it_is_fitted(data):
    with pytest.raises(UserError, match=r"PCAResidual has no training steps.*adbench.fit"):
        fitted(PCAResidual(2, 32), data(), max_epochs=1)


@pytest.mark.parametrize("every", [{"every_n_epochs": 2}, {"every_n_train_steps": 2}, {"every_n_train_steps": 5}])
@pytest.mark.parametrize("make", [lambda: Line(polynomial(0.9), partial(torch.optim.Adam, lr=0.1)), autoencoder])
def test_a_training_resumed_from_lightnings_own_checkpoint_ends_as_the_whole_one(make, every, data, tmp_path):
    whole = make()
    rows = partial(small_batches, data)
    fitted(whole, rows(whole), max_epochs=3)
    saver = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}", **every)
    fitted(make(), rows(whole), max_epochs=3, callbacks=[saver])
    files = sorted(tmp_path.glob("*.ckpt"))
    assert files
    for file in files:
        resumed = make()
        fitted(resumed, rows(whole), max_epochs=3, ckpt_path=file)
        assert resumed.total_batches == resumed.batches_seen == whole.batches_seen
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), (file.name, name)


def small_batches(data, method):
    rows = data(method)
    rows.batch_size = 2  # three batches an epoch
    return rows


@pytest.mark.parametrize("replaced", [True, False])
def test_on_several_devices_the_data_modules_own_sampler_must_stay(replaced, data):
    trainer = pl.Trainer(**QUIET, strategy="ddp", devices=2, use_distributed_sampler=replaced)
    raises = pytest.raises(UserError, match=r"on 2 devices.*use_distributed_sampler=False")
    with raises if replaced else contextlib.nullcontext():
        _refuse_lightnings_sampler(trainer, data())
    _refuse_lightnings_sampler(trainer, None)
