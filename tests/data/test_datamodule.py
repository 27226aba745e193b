from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning import Callback, LightningModule, Trainer

from adbench.data import datamodule as module
from adbench.data.classes import Digits
from adbench.data.datamodule import DataModule, TrainingRows
from adbench.data.folder import Folder
from adbench.data.protocols import one_class
from adbench.data.records import Records, Split
from adbench.types import Batch, UserError


def build(source, cache_dir, protocol=one_class, **changes) -> DataModule:
    options = {
        "image_size": 12, "batch_size": 4, "eval_batch_size": 3, "workers": 0, "seed": 0, "supervision": "unsupervised"
    }  # fmt: skip
    return DataModule(source, protocol, cache_dir=cache_dir, **(options | changes))


@pytest.fixture
def data(tree, tmp_path) -> DataModule:
    return build(Folder(tree), tmp_path / "cache", partial(one_class, holdout=0))


def taken(data: DataModule) -> list[Batch]:
    return [data.on_after_batch_transfer(batch) for batch in data.train_dataloader()]


# -- which rows ------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    n=st.integers(2, 40), size=st.integers(1, 12), seed=st.integers(0, 9), total=st.integers(1, 50), data=st.data()
)  # fmt: skip
def test_a_stream_started_at_k_is_the_rest_of_the_whole_stream(n, size, seed, total, data):
    start = data.draw(st.integers(0, total))
    rows, size = np.arange(100, 100 + n), min(size, n)
    whole = list(TrainingRows(rows, size, seed, total))
    rest = TrainingRows(rows, size, seed, total, start)
    assert len(rest) == total
    assert [r.tolist() for r in rest] == [r.tolist() for r in whole[start:]]


@settings(deadline=None)
@given(n=st.integers(2, 40), size=st.integers(1, 12), seed=st.integers(0, 9))
def test_an_epoch_shows_no_row_twice_and_the_next_has_another_order(n, size, seed):
    size = min(size, n)
    per_epoch = n // size
    batches = list(TrainingRows(np.arange(n), size, seed, 2 * per_epoch))
    assert all(len(batch) == size for batch in batches)
    first = np.concatenate(batches[:per_epoch])
    assert len(set(first.tolist())) == len(first)
    if n > 12:
        assert first.tolist() != np.concatenate(batches[per_epoch:]).tolist()


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_a_batch_by_turns(world):
    joined = list(TrainingRows(np.arange(30), 8, 0, 9))
    parts = [list(TrainingRows(np.arange(30), 8, 0, 9, rank=rank, world=world)) for rank in range(world)]
    for k, batch in enumerate(joined):
        for rank in range(world):
            assert parts[rank][k].tolist() == batch[rank::world].tolist()


def test_seed_0_is_a_seed():
    orders = [np.concatenate(list(TrainingRows(np.arange(20), 4, seed, 5))).tolist() for seed in (0, 1)]
    assert orders[0] != orders[1] and orders[0] != list(range(20))


def test_loading_draws_nothing_from_the_global_generator(data):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    taken(data)
    assert torch.equal(torch.rand(1), expected)


# -- what a batch holds ----------------------------------------------------------------------------------------------


def test_training_batches_are_rgb_floats_without_label_or_mask(data):
    data.set_budget(5)
    batches = taken(data)
    assert len(batches) == 5
    for batch in batches:
        assert batch.image.shape == (4, 3, 12, 12) and batch.image.dtype == torch.float32
        assert batch.image.min() > 0.3 and batch.image.max() < 0.6  # 90..140 of 255
        assert batch.label.tolist() == [-1] * 4 and batch.semi_label.tolist() == [0] * 4
        assert batch.mask.shape == (4, 1, 12, 12) and batch.mask.dtype == torch.bool and not batch.mask.any()
        assert set(batch.index.tolist()) <= set(data.split.train.tolist())


def test_images_travel_as_bytes(data):
    assert next(iter(data.train_dataloader())).image.dtype == torch.uint8


def test_test_batches_hold_every_test_row_once_with_label_and_mask(data):
    data.setup()
    batches = [data.on_after_batch_transfer(b) for b in data.test_dataloader()]
    joined = Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
    rows = joined.index.numpy()
    assert rows.tolist() == data.split.test.tolist()
    assert joined.label.tolist() == data.records.label[rows].tolist()
    assert torch.equal(joined.mask.flatten(1).any(dim=1), joined.label == 1)
    assert joined.mask[joined.label == 1].float().mean() == pytest.approx(64 / 576, abs=0.03)
    assert joined.image[joined.mask.expand_as(joined.image)].mean() > 0.9  # the mask lies on the bright square


def test_grey_sources_are_delivered_as_rgb_and_need_no_masks(tmp_path):
    data = build(Digits(1), tmp_path, image_size=[9, 11])
    batch = taken(data)[0]
    assert batch.image.shape == (4, 3, 9, 11) and torch.equal(batch.image[:, 0], batch.image[:, 2])
    assert not data.has_masks
    test = data.on_after_batch_transfer(next(iter(data.test_dataloader())))
    assert test.mask.shape == (3, 1, 9, 11) and not test.mask.any()


def test_statistics_are_computed_on_all_training_rows_in_order(data):
    batches = list(data.training_batches("cpu"))
    assert torch.cat([b.index for b in batches]).tolist() == data.split.train.tolist()
    assert all(b.image.dtype == torch.float32 and (b.label == -1).all() for b in batches)


def test_the_held_out_rows_are_served_apart_from_the_training_rows(tree, tmp_path):
    data = build(Folder(tree), tmp_path)
    held = torch.cat([b.index for b in data.holdout_batches("cpu")]).tolist()
    assert held == data.split.holdout.tolist() and len(held) == 3
    data.set_budget(20)
    assert not set(held) & set(torch.cat([b.index for b in taken(data)]).tolist())


def test_fewer_rows_than_a_batch_make_one_batch_of_all(data):
    data.batch_size = 64
    assert data.batches_per_epoch == 1
    assert sorted(taken(data)[0].index.tolist()) == data.split.train.tolist()


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_two_workers_and_none_deliver_the_same_bytes(tree, tmp_path):
    streams = []
    for workers in (0, 2):
        data = build(Folder(tree), tmp_path, workers=workers)
        data.set_budget(7)
        streams.append((list(data.train_dataloader()), list(data.test_dataloader())))
    assert same(streams[0][0], streams[1][0]) and same(streams[0][1], streams[1][1])


def test_a_resumed_stream_equals_the_uninterrupted_one(data):
    data.set_budget(9)
    whole = list(data.train_dataloader())
    data.set_budget(9, start=4)
    loader = data.train_dataloader()
    assert len(loader) == 9
    assert same(list(loader), whole[4:])


class Recorder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.automatic_optimization = False
        self.seen: list[list[int]] = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        assert batch.image.dtype == torch.float32
        self.seen.append(batch.index.tolist())
        self.optimizers().step()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.seen.append(batch.index.tolist())


class SaveAfterFive(Callback):
    def __init__(self, path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if batch_idx == 4:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_on_the_rest_of_the_stream_after_a_checkpoint_within_an_epoch(data, tmp_path):
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
             "max_epochs": 1, "use_distributed_sampler": False, "enable_checkpointing": False}  # fmt: skip
    data.set_budget(9)
    whole = Recorder()
    Trainer(**quiet, callbacks=[SaveAfterFive(tmp_path / "five.ckpt")]).fit(whole, datamodule=data)
    data.set_budget(9, start=5)
    rest = Recorder()
    Trainer(**quiet).fit(rest, datamodule=data, ckpt_path=tmp_path / "five.ckpt")
    assert len(whole.seen) == 9 and rest.seen == whole.seen[5:]
    tested = Recorder()
    Trainer(**quiet).test(tested, datamodule=data, verbose=False)
    assert [row for rows in tested.seen for row in rows] == data.split.test.tolist()


# -- several devices -------------------------------------------------------------------------------------------------


def on_ranks(data: DataModule, monkeypatch, world: int):
    for rank in range(world):
        monkeypatch.setattr(data, "_place", lambda rank=rank: (rank, world))
        yield


def test_test_rows_are_shared_without_repetition(data, monkeypatch):
    rows = [[b.index.tolist() for b in data.test_dataloader()] for _ in on_ranks(data, monkeypatch, 2)]
    flat = [[row for batch in part for row in batch] for part in rows]
    assert sorted(flat[0] + flat[1]) == data.split.test.tolist()


def test_a_batch_that_devices_cannot_share_is_refused(data, monkeypatch):
    for _ in on_ranks(data, monkeypatch, 3):
        with pytest.raises(UserError, match=r"data\.batch_size=4 must be a multiple of the 3 devices"):
            data.train_dataloader()


# -- labels ----------------------------------------------------------------------------------------------------------


def labelled(records: Records, rng: np.random.Generator, supervision: str) -> Split:
    train = np.flatnonzero(records.split == "train")
    semi = np.where(np.arange(len(train)) % 3 == 0, -1, np.where(np.arange(len(train)) % 3 == 1, 1, 0))
    return Split(train, semi.astype(np.int8), train[:0], np.flatnonzero(records.split == "test"))


def test_known_anomalies_reach_semi_supervised_methods_only(tree, tmp_path):
    for supervision, expected in (("semi", {-1, 0, 1}), ("unsupervised", {0, 1})):
        data = build(Folder(tree), tmp_path, labelled, supervision=supervision)
        served = torch.cat([b.semi_label for b in data.training_batches("cpu")])
        assert set(served.tolist()) == expected == set(data.split.semi_label.tolist())


def test_every_record_has_a_role_in_the_table(tree, tmp_path):
    data = build(Folder(tree), tmp_path, labelled, supervision="unsupervised")
    table = data.split_table()
    assert [row["row"] for row in table] == list(range(16))
    assert set(table[0]) == {"row", "path", "role", "label", "semi_label", "defect"}
    roles = [row["role"] for row in table]
    assert {role: roles.count(role) for role in set(roles)} == {"train": 6, "unused": 3, "test": 7}
    by_path = {row["path"]: row for row in table}
    assert by_path["test/scratch/001.png"] == {
        "row": by_path["test/scratch/001.png"]["row"], "path": "test/scratch/001.png", "role": "test", "label": 1,
        "semi_label": 0, "defect": "scratch",
    }  # fmt: skip
    assert all(type(value) in (int, str) for row in table for value in row.values())  # JSON can hold it


def test_the_split_does_not_depend_on_how_batches_are_made(tree, tmp_path):
    splits = [
        build(Folder(tree), tmp_path, **changes).split.holdout.tolist()
        for changes in ({}, {"batch_size": 2, "image_size": 9, "supervision": "semi"}, {"seed": 5})
    ]
    assert splits[0] == splits[1] != splits[2]


# -- tabular data ----------------------------------------------------------------------------------------------------


class Table:
    """Six features of forty samples."""

    has_masks, array = False, None

    def __init__(self) -> None:
        self.features = np.random.default_rng(0).normal(size=(40, 6))
        self.records = Records.of(
            [
                {"split": "train" if i < 30 else "test", "label": int(i > 35), "defect": "", "path": f"{i}"}
                for i in range(40)
            ]
        )


def test_features_pass_unchanged_and_are_not_cached(tmp_path):
    data = build(Table(), tmp_path / "cache")
    batch = taken(data)[0]
    assert batch.image.shape == (4, 6) and batch.image.dtype == torch.float64
    np.testing.assert_array_equal(batch.image.numpy(), data.source.features[batch.index])
    assert next(iter(data.test_dataloader())).label.tolist() == [0, 0, 0]
    assert not (tmp_path / "cache").exists()


# -- errors and defaults ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"batch_size": 0}, "data.batch_size"), ({"eval_batch_size": -1}, "data.eval_batch_size"),
     ({"image_size": [1, 2, 3]}, "height, width"), ({"image_size": 0}, "data.image_size"),
     ({"workers": "many"}, "data.workers is auto")],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(tree, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        build(Folder(tree), tmp_path, **changes)


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (2, 0), (4, 2), (8, 4), (64, 4)])
def test_the_number_of_workers_follows_from_the_cores(monkeypatch, cores, workers):
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: range(cores), raising=False)
    assert module._workers("auto") == workers
