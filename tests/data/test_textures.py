import ast
import functools
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from scipy import ndimage
from sklearn.metrics import roc_auc_score

import adbench.data.textures as textures
from adbench.data.textures import DEFECTS, PHOTOGRAPHS, Textures
from adbench.types import UserError


@functools.cache
def made(photograph: str) -> Textures:
    return Textures(photograph)


@pytest.fixture(params=PHOTOGRAPHS)
def photograph(request) -> str:
    return request.param


@pytest.fixture
def source(photograph) -> Textures:
    return made(photograph)


def place(photograph: str, crop: np.ndarray, mask: np.ndarray) -> list[tuple[int, int]]:
    """Where the undamaged pixels of a crop are found in its photograph."""
    image = getattr(skimage.data, photograph)()
    y, x = np.argwhere(~mask)[:: max(1, int((~mask).sum()) // 40)].T
    size = len(crop)
    span = len(image) - size + 1
    places = np.argwhere(image[y[0] : y[0] + span, x[0] : x[0] + span] == crop[y[0], x[0]])
    for dy, dx in zip(y, x, strict=True):
        places = places[image[places[:, 0] + dy, places[:, 1] + dx] == crop[dy, dx]]
    return [tuple(p) for p in places]


def test_there_are_enough_crops_and_half_of_the_test_crops_are_defective(source):
    r = source.records
    test = r.split == "test"
    assert (~test).sum() >= 200 and test.sum() == 120
    assert not r.label[~test].any() and r.label[test].sum() == 60
    assert {kind: int((r.defect == kind).sum()) for kind in DEFECTS} == dict.fromkeys(DEFECTS, 12)


def test_train_and_test_crops_share_no_pixel_of_the_photograph(source, photograph):
    seen = {"train": np.zeros((512, 512), bool), "test": np.zeros((512, 512), bool)}
    for i, part in enumerate(source.records.split):
        where = place(photograph, source.array[i, ..., 0], source._masks[i])
        assert len(where) == 1
        (y, x), = where  # fmt: skip
        seen[part][y : y + 128, x : x + 128] = True
    assert not (seen["train"] & seen["test"]).any()
    assert (seen["train"] | seen["test"]).mean() > 0.95  # and little of it is wasted


def test_test_crops_lie_apart(source, photograph):
    r = source.records
    corners = [
        place(photograph, source.array[i, ..., 0], source._masks[i])[0] for i in np.flatnonzero(r.split == "test")
    ]
    away = np.abs(np.array(corners)[:, None] - np.array(corners)[None]).max(axis=-1)
    assert away[~np.eye(len(corners), dtype=bool)].min() >= 17


def test_a_mask_is_a_visible_change_and_normal_crops_have_none(source):
    r = source.records
    masks = source._masks
    assert not masks[r.label == 0].any()
    share = masks[r.label == 1].mean(axis=(1, 2))
    assert share.min() >= 0.012 and share.max() <= 0.20
    assert ((r.mask != "") == (r.label == 1)).all()


def test_masks_have_no_specks(source):
    for mask in source._masks[source.records.label == 1]:
        regions, count = ndimage.label(mask, structure=np.ones((3, 3)))
        assert np.bincount(regions.ravel())[1:].min() >= 12 and count <= 4


def test_brightness_alone_does_not_find_the_defects(source):
    r, mean = source.records, source.array.mean(axis=(1, 2, 3))
    test = r.split == "test"
    score = np.abs(mean - mean[~test].mean())
    assert roc_auc_score(r.label[test], score[test]) < 0.7


def test_foreign_texture_never_comes_from_the_crops_own_photograph(monkeypatch):
    asked = []
    original = textures._photograph
    monkeypatch.setattr(textures, "_photograph", lambda name: asked.append(str(name)) or original(name))
    Textures("grass", train=2, test=60)
    assert asked[0] == "grass" and len(asked) > 6
    assert "grass" not in asked[1:]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    first, again, other = (Textures("brick", train=4, test=10, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.array, again.array)
    np.testing.assert_array_equal(first._masks, again._masks)
    assert not np.array_equal(first.array, other.array)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_odd_counts_are_met_too():
    r = Textures("gravel", size=64, train=3, test=19).records
    assert len(r) == 22 and r.label.sum() in (9, 10)
    assert len(set(r.path)) == 22


def test_the_generator_shares_no_code_with_the_training_transforms():
    tree = ast.parse(Path(textures.__file__).read_text())
    imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in imported if name and name.startswith("adbench.transforms")]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"photograph": "sand"}, "brick, grass, gravel"), ({"photograph": "brick", "size": 200}, "16..128"),
     ({"photograph": "brick", "train": 1}, "at least 2 training crops")],
)  # fmt: skip
def test_what_cannot_be_cut_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        Textures(**options)
