import shutil

import numpy as np
import pytest

from adbench.data.folder import Folder
from adbench.data.mvtec import KINDS, MVTec
from adbench.types import UserError


def test_the_official_layout_is_read_with_its_masks(tree):
    source = MVTec(tree.parent, "bottle")
    r = source.records
    assert len(r) == 9 + 3 + 4 and source.has_masks
    assert (r.split == "train").sum() == 9 and not r.label[r.split == "train"].any()
    assert r.defect[r.label == 1].tolist() == ["dent", "dent", "scratch", "scratch"]
    assert r.mask[r.path == "test/scratch/001.png"] == "ground_truth/scratch/001_mask.png"
    assert (r.mask[r.label == 0] == "").all()
    row = int(np.flatnonzero(r.path == "test/dent/000.png")[0])
    assert source.read_image(row).shape == (24, 24, 3)
    mask = source.read_mask(row)
    assert mask.dtype == bool and mask.sum() == 64 and mask[4, 6] and not mask[3, 6]


def test_there_are_five_textures_and_ten_objects():
    kinds = list(KINDS.values())
    assert kinds.count("texture") == 5 and kinds.count("object") == 10


def test_an_unknown_category_is_answered_with_the_known_ones(tree):
    with pytest.raises(UserError, match=r"no category bottel.*bottle, cable"):
        MVTec(tree.parent, "bottel")


def test_missing_data_say_what_to_put_where(tmp_path):
    with pytest.raises(UserError, match=r"mvtec.cable.train.good.*no such folder.*ADBENCH_DATA"):
        MVTec(tmp_path / "mvtec", "cable")


def test_an_empty_category_is_an_error(tree):
    shutil.rmtree(tree / "train" / "good")
    (tree / "train" / "good").mkdir()
    with pytest.raises(UserError, match="found none"):
        MVTec(tree.parent, "bottle")


def test_a_category_without_test_images_is_an_error(tree):
    shutil.rmtree(tree / "test")
    with pytest.raises(UserError, match="expected test images"):
        MVTec(tree.parent, "bottle")


def test_an_anomalous_image_without_its_mask_is_named(tree):
    (tree / "ground_truth/scratch/001_mask.png").unlink()
    with pytest.raises(UserError, match=r"test.scratch.001\.png has no mask.*ground_truth.scratch.001_mask\.png"):
        MVTec(tree.parent, "bottle")


def test_a_folder_without_ground_truth_has_no_masks(tree):
    shutil.rmtree(tree / "ground_truth")
    assert not Folder(tree).has_masks


def test_files_that_are_no_images_are_passed_over(tree):
    for name in ("Thumbs.db", ".DS_Store", "._000.png", "notes.txt"):
        (tree / "train/good" / name).write_bytes(b"x")
    assert len(Folder(tree).records) == 16


@pytest.fixture
def heap(tmp_path, save):
    """Images of any size and suffix in no layout at all."""
    rng = np.random.default_rng(0)
    for i in range(10):
        suffix = ["png", "jpg", "bmp", "tif", "webp"][i % 5]
        save(tmp_path / f"ok/a{i}.{suffix}", rng.integers(0, 255, (8 + i, 9, 3), dtype=np.uint8))
    for name in ("scratch_0", "scratch_1", "dent_0"):
        save(tmp_path / f"bad/{name}.PNG", rng.integers(0, 255, (12, 9), dtype=np.uint8))
        save(tmp_path / f"masks/bad/{name}.png", np.eye(12, 9, dtype=np.uint8))
    return tmp_path


def test_patterns_name_the_defects(heap):
    source = Folder(heap, "ok/*", {"scratch": "bad/scratch*", "dent": ["bad/dent*"]}, masks="masks")
    r = source.records
    assert sorted(r.defect[r.label == 1].tolist()) == ["dent", "scratch", "scratch"]
    assert source.has_masks and set(r.mask[r.label == 1]) == {
        f"masks/bad/{n}.png" for n in ("scratch_0", "scratch_1", "dent_0")
    }
    assert len(r.path) == len(set(r.path)) == 13


def test_without_names_the_defect_is_the_folder(heap):
    r = Folder(heap, "ok/*", "bad/*").records
    assert set(r.defect[r.label == 1]) == {"bad"}


def test_a_share_of_the_normal_images_is_tested_and_not_trained_on(heap):
    r = Folder(heap, "ok/*", "bad/*", normal_test=0.3).records
    assert ((r.label == 0) & (r.split == "test")).sum() == 3
    assert (r.split == "train").sum() == 7


def test_a_pattern_of_normal_test_images_takes_them_out_of_training(heap):
    r = Folder(heap, "ok/*", "bad/*", normal_test="ok/a[01].*").records
    assert r.path[(r.label == 0) & (r.split == "test")].tolist() == ["ok/a0.png", "ok/a1.jpg"]
    assert (r.split == "train").sum() == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normal": "good/*", "anomalous": "bad/*"}, r"data\.normal: no image .* matches good/\*"),
        ({"normal": "ok/*", "anomalous": {"rust": "rust/*"}}, r"data\.anomalous\.rust: no image"),
        ({"normal": "**/*", "anomalous": "bad/*"}, "both normal and anomalous"),
        ({"normal": "ok/*", "anomalous": "bad/*", "masks": "truth"}, r"data\.masks: there is no folder"),
        ({"normal": "ok/*", "anomalous": "bad/*", "normal_test": 1.0}, r"share in \[0, 1\)"),
        ({"anomalous": "bad/*"}, r"data\.normal is not"),
        ({}, r"train.good.*there is: bad, masks, ok.*data\.normal"),
    ],
)
def test_patterns_that_cannot_work_say_why(heap, options, message):
    with pytest.raises(UserError, match=message):
        Folder(heap, **options)


def test_a_folder_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"data\.root: there is no folder"):
        Folder(tmp_path / "nowhere")


def test_the_fingerprint_changes_with_any_file(tree, save):
    before = Folder(tree).fingerprint()
    assert Folder(tree).fingerprint() == before
    save(tree / "ground_truth/dent/000_mask.png", np.ones((24, 24), np.uint8))
    changed = Folder(tree).fingerprint()
    save(tree / "train/good/100.png", np.ones((24, 24), np.uint8))
    assert len({before, changed, Folder(tree).fingerprint()}) == 3
