import os
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from adbench.data.cache import cached
from adbench.data.datamodule import DataModule
from adbench.data.folder import Folder
from adbench.data.listing import below
from adbench.data.mvtec import KINDS, MVTec
from adbench.data.notes import lines
from adbench.data.protocols import one_class
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
        ({"anomalous": "ok/*"}, r"no image in .* is normal.*bad \(3\), ok \(10\)\. Put them into .*good, or say"),
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


# -- what is listed ----------------------------------------------------------------------------------------------------


def reasons(source):
    """{reason: names} of what was left out."""
    left_out = source.report().get("left_out", {"reasons": {}})
    return {why: part["names"] for why, part in left_out["reasons"].items()}


HIDDEN = (".ipynb_checkpoints", "@eaDir", "__MACOSX", ".hidden", "$RECYCLE.BIN")


@pytest.mark.parametrize("name", HIDDEN)
def test_what_systems_and_tools_leave_behind_is_not_there(tree, save, name):
    wanted = Folder(tree).records.path.tolist()
    for place in ("", "train/", "train/good/", "test/", "test/dent/", "ground_truth/", "ground_truth/dent/"):
        save(tree / f"{place}{name}/000.png", np.zeros((24, 24, 3), np.uint8))
    source = Folder(tree)
    assert source.records.path.tolist() == wanted
    assert not source.report()
    by_pattern = Folder(tree, "train/**/*", {"dent": "test/dent/**/*"})
    assert not any(name in path for path in by_pattern.records.path)
    assert any(name in path for path in Folder(tree, ["train/good/*", f"{name}/*.png"], "test/dent/*").records.path)


def test_a_root_in_a_hidden_folder_works(tree, tmp_path):
    (tmp_path / ".data" / "__MACOSX").mkdir(parents=True)
    root = shutil.copytree(tree, tmp_path / ".data" / "__MACOSX" / "bottle")
    assert len(Folder(root).records) == len(Folder(root, "train/**/*", "test/[ds]*/*", "test/good/*").records) == 16


@pytest.mark.parametrize("name", ["Good", "GOOD", "gOOD"])
def test_good_is_good_in_any_case(tree, name):
    wanted = [path.casefold() for path in Folder(tree).records.path]
    (tree / "test/good").rename(tree / "test" / name)
    (tree / "train/good").rename(tree / "train" / name)
    (tree / "train").rename(tree / "Train")
    (tree / "ground_truth").rename(tree / "Ground_Truth")
    source = Folder(tree)
    assert sorted(path.casefold() for path in source.records.path) == sorted(wanted)
    assert set(source.records.defect) == {"good", "dent", "scratch"}
    assert source.records.label.sum() == 4 and source.has_masks


def test_what_is_left_out_is_counted_and_named(tree, save):
    picture = np.zeros((24, 24, 3), np.uint8)
    save(tree / "train/good/day2/100.png", picture)
    save(tree / "test/scratch/cam1/100.png", picture)
    save(tree / "train/spare/100.png", picture)
    save(tree / "test/loose.png", picture)
    save(tree / "ground_truth/dent/999_mask.png", picture[..., 0])
    (tree / "train/good/007.json").write_text("{}")
    source = Folder(tree)
    assert len(source.records) == 16
    assert reasons(source) == {
        "in a folder below train/good": ["train/good/day2/100.png"],
        "in a folder below test/scratch": ["test/scratch/cam1/100.png"],
        "in train, not in good": ["train/spare/100.png"],
        "directly in test, in no folder of it": ["test/loose.png"],
        "no image by its name (.json)": ["train/good/007.json"],
    }
    assert source.report()["masks_unused"] == {"count": 1, "names": ["ground_truth/dent/999_mask.png"]}
    said = " ".join(lines(source.report()))
    assert "5 files left out" in said
    assert "train/good/day2/100.png" in said


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "ppm", "pgm", "pbm", "pnm", "gif", "JPG", "TIFF", "Webp"])
def test_suffixes_of_every_format_that_is_read_are_listed(tree, suffix):
    image = Image.fromarray(np.full((24, 24), 100, np.uint8))
    path = tree / f"train/good/new.{suffix}"
    image.convert("1" if suffix == "pbm" else "L").save(path, format={"jfif": "JPEG", "jpe": "JPEG"}.get(suffix))
    source = Folder(tree)
    row = source.records.path.tolist().index(f"train/good/new.{suffix}")
    assert source.read_image(row).shape == (24, 24, 3)


# -- masks by name -----------------------------------------------------------------------------------------------------


def masks_of(source):
    return {p: m for p, m in zip(source.records.path.tolist(), source.records.mask.tolist(), strict=True) if m}


@pytest.mark.parametrize("end", ["_mask.PNG", "_Mask.png", "_MASK.Png", ".PNG", "_mask.bmp"])
def test_masks_are_found_in_any_case(tree, end):
    for path in list((tree / "ground_truth/dent").iterdir()):
        path.rename(path.with_name(path.name.replace("_mask.png", end)))
    assert masks_of(Folder(tree))["test/dent/000.png"] == f"ground_truth/dent/000{end}"


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_masks_are_found_however_accents_are_written(tree, forms):
    image, mask = (unicodedata.normalize(form, "größe_é") for form in forms)
    (tree / "test/dent/000.png").rename(tree / f"test/dent/{image}.png")
    (tree / "ground_truth/dent/000_mask.png").rename(tree / f"ground_truth/dent/{mask}_mask.png")
    (tree / "test/dent").rename(tree / f"test/{image}")
    (tree / "ground_truth/dent").rename(tree / f"ground_truth/{mask}")
    assert masks_of(Folder(tree))[f"test/{image}/{image}.png"] == f"ground_truth/{mask}/{mask}_mask.png"


def test_one_mask_is_not_given_to_two_images(tree, save):
    save(tree / "test/dent/000.bmp", np.zeros((24, 24, 3), np.uint8))
    with pytest.raises(UserError, match=r"dent.000\.bmp and .*dent.000\.png would share the mask .*000_mask\.png"):
        Folder(tree)
    save(tree / "ground_truth/dent/000_mask.bmp", np.zeros((24, 24), np.uint8))
    found = masks_of(Folder(tree))
    assert found["test/dent/000.bmp"] == "ground_truth/dent/000_mask.bmp"
    assert found["test/dent/000.png"] == "ground_truth/dent/000_mask.png"


def test_several_folders_over_one_flat_folder_of_masks_are_refused(tmp_path, save):
    for name in ("ok/0", "ok/1", "ok/2", "bad/a/07", "bad/b/07"):
        save(tmp_path / f"{name}.png", np.zeros((8, 8, 3), np.uint8))
    save(tmp_path / "masks/07.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(UserError, match=r"bad.a.07\.png and .*bad.b.07\.png would share the mask .*masks.07\.png"):
        Folder(tmp_path, "ok/*", "bad/*/*", masks="masks")
    save(tmp_path / "masks/b/07.png", np.zeros((8, 8), np.uint8))
    assert masks_of(Folder(tmp_path, "ok/*", "bad/*/*", masks="masks"))["bad/b/07.png"] == "masks/b/07.png"


def test_two_names_that_look_alike_are_shown_by_their_codes(tree):
    names = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    for name in names:
        shutil.copy(tree / "test/dent/000.png", tree / f"test/dent/{name}.png")
    (tree / "ground_truth/dent/000_mask.png").rename(tree / f"ground_truth/dent/{names[0]}_mask.png")
    (tree / "test/dent/000.png").unlink()
    with pytest.raises(UserError) as caught:
        Folder(tree)
    assert "e\\u0301.png" in str(caught.value)
    assert "\\xe9.png" in str(caught.value)


# -- names and links ---------------------------------------------------------------------------------------------------


def test_a_name_that_is_no_utf8_is_refused_by_name(tree):
    os.link(tree / "train/good/000.png", os.fsencode(tree / "train/good") + b"/bad\xff.png")
    with pytest.raises(UserError, match=r"bad\\udcff\.png in .* is no UTF-8"):
        Folder(tree)


@pytest.mark.parametrize("key", ["normal", "anomalous", "normal_test", "masks"])
def test_an_absolute_path_is_taken_below_the_root_and_refused_elsewhere(heap, key):
    good = {"normal": "ok/*", "anomalous": "bad/*", "normal_test": "ok/a1*", "masks": "masks"}
    wanted = Folder(heap, **good).records.path.tolist()
    assert Folder(heap, **good | {key: f"{heap}/{good[key]}"}).records.path.tolist() == wanted
    with pytest.raises(UserError, match=rf"data\.{key}.*nowhere"):
        Folder(heap, **good | {key: "/nowhere/x"})


@pytest.mark.parametrize("pattern", ["", " ", "ok/**x**/[", "**a/*"])
def test_a_pattern_that_is_none_is_refused_by_its_key(heap, pattern):
    with pytest.raises(UserError, match=r"data\.normal"):
        Folder(heap, pattern, "bad/*")


def test_linked_folders_are_searched_once_and_no_loop_is_endless(tree, tmp_path, save):
    save(tmp_path / "elsewhere/deep/1.png", np.zeros((8, 8, 3), np.uint8))
    inside = tmp_path / "searched"
    save(inside / "a/0.png", np.zeros((8, 8, 3), np.uint8))
    (inside / "linked").symlink_to(tmp_path / "elsewhere")
    (inside / "again").symlink_to(inside / "a")
    (inside / "a" / "loop").symlink_to(inside)
    (tmp_path / "elsewhere" / "back").symlink_to(inside)
    found = [path.relative_to(inside).as_posix() for path in below(inside)]
    assert found == ["a/0.png", "linked/deep/1.png"]
    (tree / "test/linked").symlink_to(inside / "a")
    shutil.rmtree(tree / "ground_truth")
    assert "test/linked/0.png" in Folder(tree).records.path


# -- unreadable files --------------------------------------------------------------------------------------------------


@pytest.fixture
def torn(tree):
    """Three files that cannot be read: a training image cut short, a link to nothing, a mask that is text."""
    path = tree / "train/good/004.png"
    path.write_bytes(path.read_bytes()[:200])
    (tree / "train/good/100.png").symlink_to(tree / "nowhere.png")
    (tree / "ground_truth/dent/001_mask.png").write_text("no mask")
    return tree


def test_all_unreadable_files_are_named_at_once(torn, tmp_path):
    with pytest.raises(UserError) as caught:
        cached(Folder(torn), (8, 8), tmp_path)
    for name in ("3 files", "train/good/004.png", "100.png: a link to a file that is not there", "001_mask.png",
                 "data.unreadable=skip"):  # fmt: skip
        assert name in str(caught.value)
    assert not list(tmp_path.rglob("*.npy"))


def module(source, tmp_path):
    return DataModule(source, one_class, image_size=12, batch_size=2, eval_batch_size=4, workers=0, seed=0,
                      cache_dir=tmp_path / "cache", supervision="none")  # fmt: skip


def test_without_unreadable_files_the_split_is_that_of_a_folder_without_them(torn, tmp_path, monkeypatch):
    skipped = module(Folder(torn, unreadable="skip"), tmp_path)
    table = skipped.split_table()
    report = skipped.data_report()
    assert report["unreadable"]["count"] == 3
    named_files = str(report["unreadable"])
    assert all(
        name in named_files for name in ("train/good/004.png", "train/good/100.png", "test/dent/001.png", "mask")
    )
    images, masks = skipped._images[np.arange(14)], skipped._masks[np.arange(3)]

    monkeypatch.setattr(Folder, "read_image", lambda *_: pytest.fail("an image was read again"))
    warm = module(Folder(torn, unreadable="skip"), tmp_path)
    assert warm.split_table() == table
    assert warm.data_report() == report
    np.testing.assert_array_equal(warm._images[np.arange(14)], images)
    monkeypatch.undo()

    for path in ("train/good/004.png", "train/good/100.png", "test/dent/001.png", "ground_truth/dent/001_mask.png"):
        (torn / path).unlink()
    whole = module(Folder(torn), tmp_path)
    assert whole.split_table() == table
    np.testing.assert_array_equal(whole._images[np.arange(14)], images)
    np.testing.assert_array_equal(whole._masks[np.arange(3)], masks)
    assert whole.source.fingerprint() == skipped.source.fingerprint()


def test_the_share_of_normal_test_images_is_taken_of_those_that_can_be_read(heap, tmp_path):
    (heap / "ok/a4.webp").write_bytes(b"torn")
    skipped = module(Folder(heap, "ok/*", "bad/*", normal_test=0.4, unreadable="skip"), tmp_path).split_table()
    (heap / "ok/a4.webp").unlink()
    assert module(Folder(heap, "ok/*", "bad/*", normal_test=0.4), tmp_path).split_table() == skipped


def test_a_cache_that_was_written_with_gaps_is_refused_where_nothing_may_be_skipped(torn, tmp_path):
    module(Folder(torn, unreadable="skip"), tmp_path).setup()
    with pytest.raises(UserError, match="3 files"):
        module(Folder(torn), tmp_path).setup()


def test_a_mask_of_another_size_is_never_skipped(tree, tmp_path, save):
    save(tree / "ground_truth/dent/001_mask.png", np.ones((24, 23), np.uint8))
    with pytest.raises(UserError, match="must have its image's size"):
        cached(Folder(tree, unreadable="skip"), (8, 8), tmp_path)


@pytest.mark.parametrize(
    "options", [{"unreadable": "maybe"}, {"bits": 7}, {"bits": "twelve"}, {"max_pixels": 0}, {"max_pixels": 1.5}]
)
def test_a_way_to_read_that_there_is_not_is_refused(tree, options):
    with pytest.raises(UserError, match=rf"data\.{next(iter(options))}"):
        Folder(tree, **options)


# -- what reading finds ------------------------------------------------------------------------------------------------


def test_what_the_working_size_does_to_masks_is_counted(tree, tmp_path, save):
    two, dots, nothing = np.zeros((3, 24, 24), np.uint8)
    two[2:10, 2:12] = two[2:10, 13:20] = 255  # column 12 between them has no place at half the size
    dots[1::4, 1::4] = dots[0, 11] = 255  # nor has row 0
    save(tree / "ground_truth/dent/000_mask.png", two)
    save(tree / "ground_truth/dent/001_mask.png", dots)
    save(tree / "ground_truth/scratch/000_mask.png", nothing)
    for _ in range(2):  # built, then from the cache
        report = module(Folder(tree), tmp_path).data_report()
        assert report["masks_empty"] == {"count": 1, "names": ["ground_truth/scratch/000_mask.png"]}
        assert report["regions"] == {
            "in_files": 2 + 37 + 1, "at_working_size": 1 + 36 + 1, "vanished": 1, "masks": 2,
            "names": ["ground_truth/dent/000_mask.png", "ground_truth/dent/001_mask.png"],
        }  # fmt: skip
    tiny = DataModule(Folder(tree), one_class, image_size=2, batch_size=2, eval_batch_size=4, workers=0, seed=0,
                      cache_dir=tmp_path, supervision="none").data_report()  # fmt: skip
    assert "ground_truth/dent/001_mask.png" in tiny["masks_empty_at_working_size"]["names"]


def test_sixteen_bits_in_the_low_range_get_a_word_with_the_option(tree, tmp_path):
    for path in tree.glob("t*/*/*.png"):
        values = np.asarray(Image.open(path))[..., 0].astype(np.uint16) * 16
        Image.fromarray(values).save(path)
    report = module(Folder(tree), tmp_path).data_report()
    assert report["low_range"] == {"files": 16, "largest": 4000, "bits": 12}
    assert any("data.bits=12" in line for line in lines(report))
    scaled = module(Folder(tree, bits=12), tmp_path)
    assert "low_range" not in scaled.data_report()
    assert scaled._images[np.arange(16)].max() > 200


def test_nothing_odd_is_an_empty_report(tree, tmp_path):
    whole = DataModule(Folder(tree), one_class, image_size=24, batch_size=2, eval_batch_size=4, workers=0, seed=0,
                       cache_dir=tmp_path, supervision="none")  # fmt: skip
    report = whole.data_report()
    assert not any(report.pop("duplicates")["examples"].values())
    assert report == {}
