"""What a user's folders are understood to be, layout by layout."""

import os
import shlex

import numpy as np
import pytest

from adbench.data.folder import Folder, evenly
from adbench.data.layout import is_anomalous, is_normal
from adbench.types import UserError


@pytest.fixture
def lay(tmp_path, save):
    """`lay("good/1.png", ...)` -> the root, in a folder of its own, of images of those names."""
    root = tmp_path / "parts"

    def lay(*names):
        for i, name in enumerate(names):
            save(root / name, np.full((6, 6, 3), i, np.uint8))
        return root

    return lay


def several(folder, count=5, suffix="png"):
    return [f"{folder}/{i}.{suffix}" for i in range(count)]


def parts(source):
    """{defect: {split: number}}"""
    found = {}
    for defect, split in zip(source.records.defect.tolist(), source.records.split.tolist(), strict=True):
        found.setdefault(defect, {}).setdefault(split, 0)
        found[defect][split] += 1
    return found


def reasons(source):
    left_out = source.report().get("left_out", {"reasons": {}})
    return {name: why for why, part in left_out["reasons"].items() for name in part["names"]}


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["good", "OK", "Normal", "PASS", "passed", "Defect_free", "defect-free", "no defect"])
def test_names_of_normal_images(name):
    assert is_normal(name)
    assert not is_anomalous(name)


@pytest.mark.parametrize(
    "name", ["bad", "NOK", "Defects", "defect_1", "anomaly", "Anomalous", "ng", "NG", "reject", "Rejects", "not_ok"]
)
def test_names_of_anomalous_images(name):
    assert is_anomalous(name)
    assert not is_normal(name)


@pytest.mark.parametrize("name", ["goods", "books", "okra", "passage", "images", "nokia", "", "badge", "abnormally"])
def test_names_that_only_look_alike_say_nothing(name):
    assert not is_normal(name)
    assert not is_anomalous(name)


# -- layouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normal", ["good", "OK", "Normal", "pass"])
@pytest.mark.parametrize("anomalous", ["bad", "NOK", "Defects", "anomalies", "ng", "Reject"])
def test_two_flat_folders_are_enough(lay, normal, anomalous):
    source = Folder(lay(*several(normal, 10), *several(anomalous, 3)))
    assert parts(source) == {"good": {"train": 8, "test": 2}, anomalous: {"test": 3}}
    assert not source.good_alone
    assert not source.report()


def test_folders_in_the_anomalous_one_are_kinds_of_defect(lay):
    root = lay(*several("ok"), *several("nok/scratch", 2), *several("nok/dent/day 1", 3), "nok/loose.png")
    assert parts(Folder(root)) == {
        "good": {"train": 4, "test": 1}, "scratch": {"test": 2}, "dent": {"test": 3}, "nok": {"test": 1},
    }  # fmt: skip


def test_one_image_of_each_kind_is_enough(lay):
    source = Folder(lay(*several("good"), *(f"bad/{kind}/1.png" for kind in ("a", "b", "c"))))
    assert parts(source) == {"good": {"train": 4, "test": 1}, **{kind: {"test": 1} for kind in "abc"}}


def test_folders_in_the_normal_one_are_all_normal(lay):
    assert parts(Folder(lay(*several("good/monday"), *several("good/tuesday/late")))) == {"good": {"train": 10}}


@pytest.mark.parametrize("names", [several("."), several("good"), several("train/good"), several("train")])
def test_normal_images_alone_all_train_and_nothing_is_tested(lay, names):
    source = Folder(lay(*names))
    assert parts(source) == {"good": {"train": 5}}
    assert source.good_alone


def test_good_images_in_the_root_beside_a_folder_of_bad_ones(lay):
    source = Folder(lay("1.png", "2.png", "3.png", "4.png", "5.png", *several("bad", 2)))
    assert parts(source) == {"good": {"train": 4, "test": 1}, "bad": {"test": 2}}


@pytest.mark.parametrize(
    ("train", "test", "bad"),
    [
        ("train/ok", "test/ok", "test/bad"),
        ("good/train", "good/test", "bad/test"),
        ("Train", "Test/good", "Test/bad"),
    ],
)
def test_the_users_own_split_is_kept(lay, train, test, bad):
    root = lay(*several(train), *several(test, 3), *several(bad, 2))
    assert parts(Folder(root)) == {"good": {"train": 5, "test": 3}, "bad": {"test": 2}}


def test_anomalous_training_images_are_there_for_semi_supervised_protocols(lay):
    names = (*several("train/ok"), *several("train/nok/dent", 2), *several("test/ok", 3), *several("test/nok/dent", 2))
    assert parts(Folder(lay(*names))) == {"good": {"train": 5, "test": 3}, "dent": {"train": 2, "test": 2}}


def test_a_test_without_normal_images_gets_a_share_of_them(lay):
    source = Folder(lay(*several("train/ok", 10), *several("test/dent", 2)))
    assert parts(source) == {"good": {"train": 8, "test": 2}, "dent": {"test": 2}}


def test_mvtec_layout_without_a_test_is_good_alone(lay):
    source = Folder(lay(*several("train/good")))
    assert parts(source) == {"good": {"train": 5}}
    assert source.good_alone


@pytest.mark.parametrize("above", ["parts", "a/b", "my parts/Größe 1"])
def test_a_folder_that_was_packed_in_another_one_is_found(lay, above):
    source = Folder(lay(*several(f"{above}/good", 10), *several(f"{above}/bad/dent", 2)))
    assert parts(source) == {"good": {"train": 8, "test": 2}, "dent": {"test": 2}}


def test_masks_are_found_by_the_name_of_their_folder(lay, save):
    root = lay(*several("good"), "bad/dent/1.png", "bad/2.png")
    for name in ("bad/dent/1_mask", "bad/2"):
        save(root / f"Ground_Truth/{name}.png", np.eye(6, dtype=np.uint8) * 255)
    source = Folder(root)
    assert source.has_masks
    assert source.records.mask[source.records.path == "bad/dent/1.png"] == "Ground_Truth/bad/dent/1_mask.png"


def test_masks_beside_their_images_are_no_images(lay):
    source = Folder(lay(*several("good"), "bad/1.png", "bad/1_mask.png", "bad/2.png"))
    assert parts(source)["bad"] == {"test": 2}
    assert "mask of the image beside it" in reasons(source)["bad/1_mask.png"]


def test_names_of_files_in_one_flat_folder_say_what_they_are(lay):
    names = [*(f"good_{i:03}.png" for i in range(5)), "bad-1.png", "BAD2.png", "defect 3.png"]
    source = Folder(lay(*names))
    assert parts(source)["good"] == {"train": 4, "test": 1}
    assert source.records.label.sum() == 3


def test_hidden_folders_and_those_of_tools_are_not_there(lay):
    wanted = Folder(lay(*several("good"), *several("bad"))).records.path.tolist()
    root = lay(*(f"{name}/0.png" for name in (".good", "bad/.thumbs", "@eaDir", "__MACOSX/good", "good/.ok")))
    source = Folder(root)
    assert source.records.path.tolist() == wanted
    assert not source.report()


def test_links_to_folders_and_to_images_are_followed(lay, tmp_path, save):
    save(tmp_path / "elsewhere/x.png", np.zeros((6, 6, 3), np.uint8))
    root = lay(*several("good"))
    (root / "bad").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "good" / "linked.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    (root / "good" / "round").symlink_to(root, target_is_directory=True)
    source = Folder(root)
    assert "bad/x.png" in source.records.path
    assert "good/linked.png" in source.records.path
    assert len(source.records) == 7
    (tmp_path / "alias").symlink_to(root, target_is_directory=True)
    assert len(Folder(tmp_path / "alias").records) == 7


def test_what_has_no_part_is_named_with_the_reason(lay):
    root = lay(*several("good"), *several("bad", 1), "raw/1.png", "loose.png")
    (root / "good/notes.txt").write_text("x")
    assert reasons(Folder(root)) == {
        "raw/1.png": "in a folder whose name says nothing of its images",
        "loose.png": "in no folder, and another one holds the normal images",
        "good/notes.txt": "no image by its name (.txt)",
    }


def test_what_runs_have_drawn_below_the_folder_is_not_there(lay):
    root = lay("1.png", "2.png", "3.png", "results/pca/parts/seed0/figures/panels.png", "scored/maps/1.png")
    (root / "results/pca/parts/seed0/metrics.json").write_text("{}")
    (root / "scored/predict.json").write_text("{}")
    source = Folder(root)
    assert parts(source) == {"good": {"train": 3}}
    assert not source.report()


# -- names of folders as patterns -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("normal", "anomalous"),
    [("teile i.O.", "teile n.i.O."), ("teile i.O./", "Teile N.I.O."), ("teile i.O./*", "teile n.i.O./**/*.png")],
)
def test_a_plain_name_of_a_folder_is_a_pattern(lay, normal, anomalous):
    root = lay(*several("teile i.O.", 10), *several("teile n.i.O./dent", 2))
    assert parts(Folder(root, normal, anomalous)) == {"good": {"train": 8, "test": 2}, "dent": {"test": 2}}


def test_plain_patterns_of_files_in_one_flat_folder(lay):
    root = lay(*(f"IMG_{i}.png" for i in range(5)), "scratch_1.png", "scratch_2.png")
    assert parts(Folder(root, "IMG*", "scratch*")) == {"good": {"train": 4, "test": 1}, "anomalous": {"test": 2}}


def test_the_point_is_the_folder_itself_without_those_in_it(lay):
    source = Folder(lay("1.png", "2.png", "3.png", *several("spare")), ".")
    assert parts(source) == {"good": {"train": 3}}


def test_a_pattern_of_folders_finds_what_is_in_them(lay):
    assert parts(Folder(lay(*several("day1"), *several("day2/x"), *several("other")), "day*")) == {
        "good": {"train": 10}
    }


def test_beside_a_named_normal_folder_anomalous_ones_are_still_recognised(lay):
    root = lay(*several("teile", 10), *several("NOK/dent", 2), *several("good", 3), *several("spare", 1))
    source = Folder(root, "teile")
    assert parts(source) == {"good": {"train": 8, "test": 2}, "dent": {"test": 2}}
    assert set(reasons(source).values()) == {"data.normal does not find it"}
    assert parts(Folder(root, "teile", [])) == {"good": {"train": 10}}


def test_beside_named_anomalous_folders_the_normal_one_is_still_recognised(lay):
    root = lay(*several("good", 10), *several("scratch", 2), *several("dent", 1), *several("spare", 1))
    source = Folder(root, None, ["scratch", "dent"])
    assert parts(source) == {"good": {"train": 8, "test": 2}, "scratch": {"test": 2}, "dent": {"test": 1}}


# -- what nobody can know ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "message", "typed"),
    [
        (["good/1.png", "ok/1.png", "ok/2.png"], "several folders may hold the normal images: good, ok",
         ["data.normal=good", "data.normal=[good,ok]"]),
        (["OK/1.png", "train/good/1.png"], "several folders", ["data.normal=OK", "data.normal=[OK,train/good]"]),
        (["left/1.png", "right/1.png", "right/2.png"], r"Folders and their images: left \(1\), right \(2\)",
         ["data.normal=left"]),
        (["bad/1.png", "bad/2.png"], r"no image in .* is normal, .*: bad \(2\). Put them into", ["data.normal=NAME"]),
        (["good/1.png", "scratch/1.png", "my dent/1.png"], "are the images in my dent, scratch anomalous",
         ["data.normal=good", "data.anomalous=[my dent,scratch]", "data.anomalous=[]"]),
        (["good/1.png", "kratzer/1.png", "größe/1.png"], "are the images in", ['data.anomalous=["größe",kratzer]']),
        (["test/ok/1.png", "test/nok/1.png"], "none is left to train on", ["data.normal=test/ok"]),
        (["1.png", "scratch/1.png"], "No folder is called good", ["data.normal=."]),
        (["IMG_1.png", "IMG_2.png", "bad_1.png"], "1 images in .* begin with a word for anomalous ones",
         ["data.normal=IMG*", "data.anomalous=bad*"]),
        (["good/1.png", "bad/1.png", "masks/1.png", "ground_truth/1.png"], "several folders may hold the masks",
         ["data.masks=ground_truth"]),
    ],
)  # fmt: skip
def test_what_the_names_leave_open_is_one_message_that_says_what_to_type(lay, names, message, typed):
    root = lay(*names)
    with pytest.raises(UserError, match=message) as caught:
        Folder(root)
    words = shlex.split(str(caught.value).replace("?", "").replace("(", " ").replace(")", " "))
    for word in typed:
        assert word in [w.rstrip(",") for w in words]


@pytest.mark.parametrize("leave", [[], ["good/notes.txt"], [".hidden/1.png"]])
def test_a_folder_without_images_says_so(tmp_path, leave):
    for name in leave:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=r"data\.root: there is no image \(\.png.*\) in "):
        Folder(tmp_path)


def test_a_folder_that_is_not_there_is_answered_with_those_that_are(lay):
    with pytest.raises(UserError, match=r"data\.normal: no image .* matches okay .*whose folders are bad, good"):
        Folder(lay("good/1.png", "bad/1.png"), "okay")


# -- the share of normal test images ----------------------------------------------------------------------------------


def test_the_share_is_evenly_spread_and_begins_elsewhere_with_another_seed():
    assert evenly(10, 5, seed=0) == [0, 2, 4, 6, 8]
    assert evenly(0, 0, seed=3) == []
    for n, count in ((60, 12), (7, 3), (5, 5)):
        for seed in range(20):
            rows = evenly(n, count, seed)
            assert len(set(rows)) == count
            assert rows[0] >= 0 and rows[-1] < n
            assert max(np.diff(rows), default=0) <= -(-n // count)
    times = np.bincount(np.concatenate([evenly(60, 12, seed) for seed in range(500)]), minlength=60)
    assert times.min() > 90 and times.max() < 110  # every image is tested as often as another


def test_names_may_be_of_any_kind(lay):
    root = lay(*several("Größe 端/good"), "Größe 端/bad/été (1).png", "Größe 端/bad/a=b,c.png")
    assert Folder(root).records.label.sum() == 2
    os.link(root / "Größe 端/good/0.png", os.fsencode(root / "Größe 端/good") + b"/x\xff.png")
    with pytest.raises(UserError, match="is no UTF-8"):
        Folder(root)
