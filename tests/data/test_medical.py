from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adbench.data.medical import ChestXrays, ListedImages
from adbench.data.protocols import semi_supervised
from adbench.types import UserError


def write(path: Path, value: int = 0, size: tuple[int, int] = (6, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)


@pytest.fixture
def folders(tmp_path):
    for name in ("train/normal/a", "train/normal/b", "train/polyp/c", "test/normal/d", "test/polyp/e", "test/ulcer/f"):
        write(tmp_path / f"{name}.png")
    return tmp_path


def rows(source) -> set[tuple[str, int, str, str]]:
    r = source.records
    return set(zip(r.split.tolist(), r.label.tolist(), r.defect.tolist(), r.path.tolist(), strict=True))


def test_folders_say_split_and_kind(folders):
    assert rows(ListedImages("x", folders)) == {
        ("train", 0, "good", "train/normal/a.png"), ("train", 0, "good", "train/normal/b.png"),
        ("train", 1, "polyp", "train/polyp/c.png"), ("test", 0, "good", "test/normal/d.png"),
        ("test", 1, "polyp", "test/polyp/e.png"), ("test", 1, "ulcer", "test/ulcer/f.png"),
    }  # fmt: skip


def test_a_list_file_wins_over_folders(folders):
    (folders / "l.csv").write_text(
        "path,split,label,defect\ntrain/normal/a.png,test,1,odd\ntest/ulcer/f.png,train,0,\n"
    )
    assert rows(ListedImages("x", folders, "l.csv")) == {
        ("test", 1, "odd", "train/normal/a.png"), ("train", 0, "good", "test/ulcer/f.png"),
    }  # fmt: skip


def test_the_paper_s_counts_are_checked(folders):
    right = {"train_normal": 2, "train_anomalous": 1, "test_normal": 1, "test_anomalous": 2}
    ListedImages("x", folders, expected=right)
    with pytest.raises(UserError, match="differs from the paper's split: train_normal 2 instead of 1600;"):
        ListedImages("x", folders, expected=right | {"train_normal": 1600})


@pytest.mark.parametrize("text, message", [
    ("path,label\n", "no column 'split'; it has path, label"),
    ("path,split,label\na.png,train,2\n", "line 2: split is train or test and label 0 or 1"),
    ("path,split,label\nnowhere.png,train,0\n", "line 2: there is no file"),
    ("path,split,label\n" + "test/ulcer/f.png,train,0\n" * 2, "f.png is listed more than once"),
    ("path,split,label\n", "no image was found"),
])  # fmt: skip
def test_a_broken_list_is_refused_with_its_line(folders, text, message):
    (folders / "l.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        ListedImages("x", folders, "l.csv")


def test_a_missing_folder_says_what_belongs_there(tmp_path):
    with pytest.raises(UserError, match=r"hyper_kvasir is not in .*train/normal, test/normal and test/<kind>"):
        ListedImages("hyper_kvasir", tmp_path / "none")


@pytest.fixture
def chest(tmp_path):
    table = [
        ("1.png", "No Finding", "PA"), ("2.png", "Infiltration", "PA"), ("3.png", "Infiltration|Edema", "PA"),
        ("4.png", "No Finding", "AP"), ("5.png", "No Finding", "PA"), ("6.png", "Hernia", "AP"),
    ]  # fmt: skip
    lines = [f"{name},{finding},0,1,50,M,{view}" for name, finding, view in table]
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    (tmp_path / "Data_Entry_2017.csv").write_text("\n".join([header, *lines]))
    (tmp_path / "train_val_list.txt").write_text("1.png\n2.png\n3.png\n4.png\n")
    (tmp_path / "test_list.txt").write_text("5.png\n6.png\n")
    for i in range(1, 7):
        write(tmp_path / f"images_00{i % 2}/images/{i}.png")
    return tmp_path


def test_a_view_takes_its_images_and_the_published_split(chest):
    assert rows(ChestXrays(chest, "PA")) == {
        ("train", 0, "good", "images_001/images/1.png"), ("train", 1, "Infiltration", "images_000/images/2.png"),
        ("train", 1, "several", "images_001/images/3.png"), ("test", 0, "good", "images_001/images/5.png"),
    }  # fmt: skip
    assert len(ChestXrays(chest, "AP").records) == 2


def test_the_middle_of_an_x_ray_is_read(chest):
    image = np.zeros((10, 12), np.uint8)
    image[3:7, 4:8] = 255
    Image.fromarray(image).save(chest / "images_001/images/1.png")
    middle = ChestXrays(chest, "PA", crop=4).read_image(0)
    assert middle.shape == (4, 4, 3)
    assert (middle == 255).all()
    assert ChestXrays(chest, "PA", crop=4).fingerprint() != ChestXrays(chest, "PA", crop=6).fingerprint()


def test_what_an_x_ray_set_lacks_is_named(chest):
    with pytest.raises(UserError, match="view is PA or AP, got LATERAL"):
        ChestXrays(chest, "LATERAL")
    (chest / "images_001/images/1.png").unlink()
    with pytest.raises(UserError, match=r"lists 1\.png, which is not below"):
        ChestXrays(chest, "PA")
    (chest / "test_list.txt").unlink()
    with pytest.raises(UserError, match=r"test_list\.txt is missing"):
        ChestXrays(chest, "PA")
    (chest / "Data_Entry_2017.csv").unlink()
    with pytest.raises(UserError, match=r"Data_Entry_2017\.csv is missing"):
        ChestXrays(chest, "PA")


def test_all_known_anomalies_of_a_listed_set_are_taken_however_many_findings_it_names(tmp_path):
    write(tmp_path / "0.png")
    findings = ["Effusion", "Mass", "Nodule"]
    lines = ["path,split,label,defect"]
    for i, (label, defect) in enumerate([(0, "")] * 60 + [(1, f) for f in findings for _ in range(4)]):
        (tmp_path / f"{i}.png").write_bytes((tmp_path / "0.png").read_bytes())
        lines.append(f"{i}.png,{'train' if i else 'test'},{label},{defect}")
    (tmp_path / "l.csv").write_text("\n".join(lines))
    records = ListedImages("x", tmp_path, "l.csv").records
    options = {"labelled_ratio": 12.5 / 71, "holdout": 0}
    draw = np.random.default_rng
    split = semi_supervised(records, draw(0), "semi", labelled_classes="all", **options)
    known = records.defect[split.train[split.semi_label == -1]]
    assert sorted(known.tolist()) == sorted(findings * 4)
    with pytest.raises(UserError, match="asks for 12 known anomalies, and the training rows hold 4 of"):
        semi_supervised(records, draw(0), "semi", labelled_classes=1, **options)
