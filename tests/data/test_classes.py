import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from adbench.data.classes import Cifar10, Digits, Idx, Npz, _digits
from adbench.types import UserError

DATA = Path(os.environ.get("ADBENCH_DATA", "no data root given"))


def write_npz(path: Path, **changes) -> Path:
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 255, (30, 6, 5), dtype=np.uint8),
        "y_train": np.arange(30) % 3,
        "x_test": rng.integers(0, 255, (12, 6, 5), dtype=np.uint8),
        "y_test": np.arange(12) % 4,
    } | changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_the_digits_are_divided_once_and_for_all():
    first, second = Digits(3), Digits(7)
    assert first.array.shape == (1797, 8, 8, 1) and first.array.max() == 255
    np.testing.assert_array_equal(first.array, second.array)
    r = first.records
    assert 100 < ((r.split == "train") & (r.klass == "3")).sum() < 120
    assert set(r.klass[r.split == "test"]) == set("0123456789")
    assert (r.label == (r.klass != "3")).all() and (r.defect[r.klass == "3"] == "good").all()
    assert first.fingerprint() == second.fingerprint()  # they share a cache


def test_the_digits_are_those_of_scikit_learn_which_is_not_imported_for_them():
    code = "import sys; from adbench.data.classes import Digits; Digits(0); print('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
    images, labels = _digits()
    theirs = load_digits()
    np.testing.assert_array_equal(images, np.rint(theirs.images * (255 / 16)))
    np.testing.assert_array_equal(labels, theirs.target)


def test_no_digit_is_in_both_parts():
    r = Digits(0)
    train, test = (r.array[r.records.split == part].reshape(-1, 64) for part in ("train", "test"))
    assert len(train) + len(test) == 1797
    assert not {row.tobytes() for row in train} & {row.tobytes() for row in test}


def test_an_npz_makes_one_class_normal(tmp_path):
    r = Npz(write_npz(tmp_path / "a.npz"), normal_class=2).records
    assert r.path[0] == "train/0" and r.path[-1] == "test/11"
    assert r.label[:4].tolist() == [1, 1, 0, 1] and r.defect[:4].tolist() == ["0", "1", "good", "0"]
    assert set(r.defect[r.split == "test"]) == {"0", "1", "good", "3"}


@pytest.mark.parametrize("shape", [(30, 6, 5), (30, 6, 5, 1), (30, 6, 5, 3), (30, 6, 5, 4)])
def test_images_of_any_channels_are_read_as_rgb(tmp_path, shape):
    rng = np.random.default_rng(1)
    x = rng.integers(0, 255, shape, dtype=np.uint8)
    image = Npz(write_npz(tmp_path / "a.npz", x_train=x, x_test=x[:12]), "0").read_image(4)
    assert image.shape == (6, 5, 3)
    np.testing.assert_array_equal(image, np.broadcast_to(x[4].reshape(6, 5, -1)[..., :3], (6, 5, 3)))


def test_floats_in_0_to_1_become_bytes(tmp_path):
    x = np.linspace(0, 1, 30 * 4, dtype=np.float64).reshape(30, 2, 2)
    source = Npz(write_npz(tmp_path / "a.npz", x_train=x, x_test=x[:12]), 0)
    assert source.array.dtype == np.uint8 and source.array.max() == 255
    np.testing.assert_array_equal(source.array[:30, ..., 0], np.rint(x * 255))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "lacks y_test"),
        ({"x_train": np.zeros((30, 6, 5), np.float32) + 7}, r"\[0, 1\], got 7\.\.7"),
        ({"x_train": np.full((30, 6, 5), np.nan)}, r"\[0, 1\]"),
        ({"x_train": np.zeros((30, 6, 5), np.int64)}, "uint8 or float"),
        ({"x_train": np.zeros((30, 6), np.uint8)}, r"got shape \(30, 6\)"),
        ({"x_test": np.zeros((12, 7, 5), np.uint8)}, "x_test of"),
        ({"y_train": np.arange(29)}, "30 images, but y_train"),
    ],
)
def test_arrays_that_do_not_fit_say_what_is_wrong(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        Npz(write_npz(tmp_path / "a.npz", **changes), 0)


def test_a_normal_class_that_does_not_exist_is_answered_with_those_that_do(tmp_path):
    with pytest.raises(UserError, match=r"no training image of class 3; its classes are 0, 1, 2"):
        Npz(write_npz(tmp_path / "a.npz"), 3)  # only the test part has it


def test_a_file_that_is_missing_or_no_npz_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        Npz(tmp_path / "none.npz", 0)
    (tmp_path / "a.npz").write_bytes(b"PK but not really")
    with pytest.raises(UserError, match=r"cannot read .*a\.npz"):
        Npz(tmp_path / "a.npz", 0)


def write_idx(path: Path, array: np.ndarray, packed: bool) -> None:
    content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    if packed:
        Path(f"{path}.gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dataset", ["MNIST", "FashionMNIST"])
def test_idx_files_are_read_where_they_lie_and_nothing_is_written(tmp_path, dataset, packed):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 255, (20, 28, 28), dtype=np.uint8), (np.arange(20) % 10).astype(np.uint8)] * 2
    for name, array in zip(Idx.FILES, arrays, strict=True):
        write_idx(tmp_path / dataset / "raw" / name, array, packed)
    before = sorted(tmp_path.rglob("*"))
    source = Idx(dataset, tmp_path, normal_class=4)
    np.testing.assert_array_equal(source.array[:20, ..., 0], arrays[0])
    assert (source.records.label == 0).sum() == 4
    assert sorted(tmp_path.rglob("*")) == before


def test_a_torn_idx_file_is_named(tmp_path):
    for name in Idx.FILES:
        write_idx(tmp_path / "MNIST/raw" / name, np.zeros((4, 2, 2), np.uint8), packed=True)
    torn = tmp_path / "MNIST/raw" / f"{Idx.FILES[2]}.gz"
    torn.write_bytes(torn.read_bytes()[:-6])
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte\.gz is broken"):
        Idx("MNIST", tmp_path, 0)


@pytest.mark.parametrize("make", [lambda root: Idx("MNIST", root, 0), lambda root: Cifar10(root, 0)])
def test_a_missing_set_says_what_to_put_where_and_is_not_downloaded(tmp_path, make):
    with pytest.raises(UserError, match=r"is not in .*ADBENCH_DATA.*data\.download=true"):
        make(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not (DATA / "MNIST/raw").is_dir(), reason="no MNIST below ADBENCH_DATA")
def test_mnist_has_its_published_counts():
    r = Idx("MNIST", DATA, 5).records
    assert (r.split == "train").sum() == 60_000 and (r.split == "test").sum() == 10_000
    assert ((r.split == "train") & (r.label == 0)).sum() == 5421
    assert ((r.split == "test") & (r.label == 0)).sum() == 892
