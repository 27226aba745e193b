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
from adbench.streams import numpy_stream
from adbench.types import Batch, UserError, chunk_sizes


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


@settings(deadline=None)
@given(n=st.integers(2, 40), size=st.integers(1, 12), seed=st.integers(0, 9))
def test_a_batch_of_one_step_is_a_piece_of_its_epoch_s_permutation(n, size, seed):
    rows, size = np.arange(100, 100 + n), min(size, n)
    per_epoch = n // size
    for k, batch in enumerate(TrainingRows(rows, size, seed, 3 * per_epoch)):
        order = rows[numpy_stream(seed, "rows", k // per_epoch).permutation(n)]
        assert batch.tolist() == order[k % per_epoch * size :][:size].tolist()


@settings(deadline=None)
@given(n=st.integers(6, 60), step=st.integers(1, 6), at_once=st.integers(1, 9), seed=st.integers(0, 9))
def test_how_many_steps_are_loaded_at_once_changes_none_and_drops_none(n, step, at_once, seed):
    loads = list(TrainingRows(np.arange(n), step * at_once, seed, 5, step=step))
    single = list(TrainingRows(np.arange(n), step, seed, 5 * at_once))
    assert np.concatenate(loads).tolist() == np.concatenate(single).tolist()


@settings(deadline=None)
@given(
    n=st.integers(8, 40), m=st.integers(1, 7), known=st.integers(1, 3), at_once=st.integers(1, 4),
    start=st.integers(0, 9),
)  # fmt: skip
def test_labelled_rows_close_every_step_in_turn_and_a_resumed_stream_is_its_rest(n, m, known, at_once, start):
    options = {"step": 5, "labelled": np.arange(900, 900 + m), "labelled_per_step": known}
    whole = list(TrainingRows(np.arange(n), 5 * at_once, 3, 10, **options))
    steps = np.concatenate(whole).reshape(-1, 5)
    assert (steps[:, : 5 - known] < 900).all() and (steps[:, 5 - known :] >= 900).all()
    seen = steps[:, 5 - known :].ravel()
    for turn in range(len(seen) // m):
        assert sorted(seen[turn * m :][:m].tolist()) == list(range(900, 900 + m))
    unlabelled = list(TrainingRows(np.arange(n), 5 - known, 3, 10 * at_once))
    assert steps[:, : 5 - known].ravel().tolist() == np.concatenate(unlabelled).tolist()
    rest = list(TrainingRows(np.arange(n), 5 * at_once, 3, 10, start, **options))
    assert [r.tolist() for r in rest] == [r.tolist() for r in whole[start:]]


def test_the_pieces_of_two_ranks_are_the_steps_of_one():
    options = {"step": 6, "labelled": np.arange(90, 95), "labelled_per_step": 1}
    joined = np.concatenate(list(TrainingRows(np.arange(30), 12, 0, 4, **options))).reshape(-1, 6)
    parts = [TrainingRows(np.arange(30), 12, 0, 4, rank=rank, world=2, **options) for rank in range(2)]
    pieces = [np.concatenate(list(part)).reshape(-1, 3) for part in parts]
    assert np.sort(np.concatenate(pieces, axis=1)).tolist() == np.sort(joined).tolist()


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


@pytest.mark.parametrize("takes_bytes", [False, True])
def test_only_a_method_that_takes_bytes_is_trained_on_them_and_prepares_and_tests_on_floats(data, takes_bytes):
    seen = []

    class Looks(LightningModule):
        automatic_optimization = False

        def on_fit_start(self):
            seen.extend(("prepare", b.image.dtype) for b in self.trainer.datamodule.training_batches("cpu"))

        def training_step(self, batch, batch_idx):
            seen.append(("train", batch.image.dtype))
            seen.extend(("held out", b.image.dtype) for b in self.trainer.datamodule.training_batches("cpu"))
            assert batch.mask.shape[-2:] == batch.image.shape[-2:]

        def test_step(self, batch, batch_idx):
            seen.append(("test", batch.image.dtype))

        def configure_optimizers(self):
            return None

    looks = Looks()
    looks.takes_bytes = takes_bytes
    data.set_budget(2)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **options)
    trainer.fit(looks, datamodule=data)
    trainer.test(looks, datamodule=data, verbose=False)
    trained = torch.uint8 if takes_bytes else torch.float32
    assert {kind for name, kind in seen if name == "train"} == {trained}
    assert {kind for name, kind in seen if name != "train"} == {torch.float32}
    assert {name for name, _ in seen} == {"prepare", "train", "held out", "test"}


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


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
def test_no_batch_for_a_network_in_training_mode_has_one_row(tree, tmp_path, size):
    data = build(Folder(tree), tmp_path, partial(one_class, holdout=0), eval_batch_size=size)
    batches = [batch.index.tolist() for batch in data.training_batches("cpu")]
    assert [row for batch in batches for row in batch] == data.split.train.tolist()
    assert len(data.split.train) > 1
    assert min(map(len, batches)) >= 2


@given(n=st.integers(1, 300), size=st.integers(1, 40))
def test_pieces_are_as_large_as_asked_but_where_one_row_would_remain(n, size):
    sizes = chunk_sizes(n, size)
    assert sum(sizes) == n
    assert n == 1 or min(sizes) >= 2
    assert max(sizes) <= max(size, 3)
    if n % size != 1 and size > 1:
        assert sizes == [min(size, n - first) for first in range(0, n, size)]


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


def table(tmp_path, normal: int, known: int, **changes) -> DataModule:
    """A table whose first rows are normal and whose next ones are known anomalies, all in training but the last two."""
    label = np.repeat([0, 1, 0, 1], [normal, known, 1, 1])
    split = ["train"] * (normal + known) + ["test"] * 2
    rows = [
        {"split": s, "label": int(y), "defect": "odd" if y else "good", "path": str(i)}
        for i, (s, y) in enumerate(zip(split, label, strict=True))
    ]

    class Table:
        features, has_masks, records = label[:, None].astype(np.float32), False, Records.of(rows)

    train = np.arange(normal + known)
    semi = -label[: normal + known].astype(np.int8)
    test = np.arange(normal + known, normal + known + 2)
    options = {"batch_size": 1024, "rows_per_step": 32, "supervision": "semi", "labelled_stream": True} | changes
    return build(Table(), tmp_path, lambda *_: Split(train, semi, train[:0], test), **options)


@pytest.mark.parametrize("normal, known", [(231, 2), (993, 10), (2639, 26), (3439, 34), (2207, 22), (40, 0), (10, 3)])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("step", [32, 128])
def test_an_epoch_of_a_table_has_every_full_step_that_its_rows_make(tmp_path, normal, known, stream, step):
    data = table(tmp_path, normal, known, labelled_stream=stream, rows_per_step=step)
    unlabelled = step - data.labelled_per_step if stream else step
    passed = normal if stream and known else normal + known
    wanted = 50 * (passed // min(unlabelled, passed))
    total = data.batches_of(50)
    steps = data.rows_per_batch // data.rows_of_a_step
    assert data.rows_per_batch % data.rows_of_a_step == 0 and data.rows_per_batch <= 1024
    assert wanted <= total * steps < wanted + steps


@pytest.mark.parametrize("normal, known, each", [(231, 2, 1), (993, 10, 1), (900, 100, 3), (0, 4, 0), (40, 0, 0)])
def test_each_step_has_labelled_rows_by_their_share_and_at_least_one(tmp_path, normal, known, each):
    data = table(tmp_path, normal, known)
    data.set_budget(3)
    assert data.labelled_per_step == each
    for batch in taken(data):
        for semi in batch.semi_label.split(data.rows_of_a_step):
            assert each == 0 or (semi != 0).sum() == each


def test_labelled_rows_are_mixed_with_the_others_without_a_stream(tmp_path):
    mixed = table(tmp_path, 993, 10, labelled_stream=False)
    mixed.set_budget(3)
    rows = TrainingRows(np.arange(1003), mixed.rows_per_batch, 0, 3, step=32)
    assert [b.index.tolist() for b in taken(mixed)] == [r.tolist() for r in rows]
    assert {int((semi != 0).sum()) for b in taken(mixed) for semi in b.semi_label.split(32)} > {1}


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
        monkeypatch.setattr(data, "_rank_and_world", lambda rank=rank: (rank, world))
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
