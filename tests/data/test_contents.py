"""What a data set is goes by what its files hold, and files are read again only when they may hold something else."""

import json
import os
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from adbench.data import cache, contents
from adbench.data.cache import cached
from adbench.data.contents import Entry, hashes
from adbench.data.folder import Folder
from adbench.types import UserError

SETTLED = 0.15  # seconds after which a file system's clock has ticked


def fingerprint(root: Path, cache_dir: Path) -> str:
    source = Folder(root)
    source.cache_dir = cache_dir
    return source.fingerprint()


@pytest.fixture
def read(monkeypatch):
    """The names of the files that were read to be hashed, in order."""
    names: list[str] = []
    original = contents._hashed
    monkeypatch.setattr(contents, "_hashed", lambda root, new: names.extend(new) or original(root, new))
    return names


@pytest.fixture
def built(monkeypatch):
    """One entry for each time that images were decoded into the cache."""
    times: list[int] = []
    original = cache._build
    monkeypatch.setattr(cache, "_build", lambda *arguments: times.append(1) or original(*arguments))
    return times


def test_unchanged_files_are_read_once(tree, tmp_path, read):
    time.sleep(SETTLED)
    first = fingerprint(tree, tmp_path / "cache")
    assert len(read) == len(set(read)) == 20
    assert fingerprint(tree, tmp_path / "cache") == first and len(read) == 20


def test_another_folder_with_the_same_files_is_the_same_data_and_is_not_decoded_again(tree, tmp_path, built, read):
    time.sleep(SETTLED)
    images, masks = cached(Folder(tree), (8, 8), tmp_path / "cache")
    moved = tmp_path / "elsewhere" / "again"
    shutil.copytree(tree, moved)
    there, masks_there = cached(Folder(moved), (8, 8), tmp_path / "cache")
    assert built == [1] and len(read) == 40
    assert there.path == images.path and masks_there.path == masks.path
    tree.rename(tmp_path / "third")
    assert cached(Folder(tmp_path / "third"), (8, 8), tmp_path / "cache")[0].path == images.path and built == [1]


def swap_by_moving(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def replace_keeping_times(one: Path, other: Path) -> None:
    content = one.read_bytes()
    shutil.copy2(other, one)  # cp -p
    other.write_bytes(content)
    os.utime(other, ns=(one.stat().st_atime_ns, one.stat().st_mtime_ns))


def unzip_over(one: Path, other: Path) -> None:
    """Unpack an archive in which the two files have each other's bytes, and give all files the archive's old time."""
    archive = one.parent / "archive.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(one, other.name)
        file.write(other, one.name)
    old = one.stat().st_mtime_ns
    with zipfile.ZipFile(archive) as file:
        file.extractall(one.parent)
    archive.unlink()
    for path in (one, other):
        os.utime(path, ns=(old, old))


@pytest.mark.parametrize("exchange", [swap_by_moving, replace_keeping_times, unzip_over])
def test_files_of_one_size_and_time_that_change_places_are_other_data(tree, tmp_path, save, exchange):
    one, other = (save(tree / f"train/good/00{i}.bmp", np.full((24, 24, 3), 50 * i, np.uint8)) for i in (1, 2))
    for path in (one, other):
        os.utime(path, ns=(10**18, 10**18))
    time.sleep(SETTLED)
    rows = Folder(tree).records.path.tolist()
    before, _ = cached(Folder(tree), (8, 8), tmp_path / "cache")
    first, second = (rows.index(f"train/good/00{i}.bmp") for i in (1, 2))
    assert before[np.array([first, second])][:, 0, 0, 0].tolist() == [50, 100]
    exchange(one, other)
    assert one.stat().st_mtime_ns == other.stat().st_mtime_ns and one.stat().st_size == other.stat().st_size
    after, _ = cached(Folder(tree), (8, 8), tmp_path / "cache")
    assert after[np.array([first, second])][:, 0, 0, 0].tolist() == [100, 50]


def test_a_change_within_the_clocks_tick_is_seen(tree, tmp_path, monkeypatch):
    """The state of the file is the same before and after, as when both happen between two ticks of the clock."""
    path = tree / "train/good/000.png"
    frozen = contents._state(path.stat())
    name = "train/good/000.png"
    monkeypatch.setattr(contents, "_state", lambda state: frozen)
    before = hashes(tree, [name], tmp_path / "cache")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert hashes(tree, [name], tmp_path / "cache") != before


@pytest.mark.parametrize("changed, hashed, kept", [
    (5_123_456_789, 5_123_456_789 + 10**8, False),  # within the tick
    (5_123_456_789, 5_123_456_790 + 10**8, True),
    (5_000_000_000, 6_900_000_000, False),  # whole seconds: a clock that may tick every other second
    (5_000_000_000, 7_000_000_001, True),
])  # fmt: skip
def test_a_hash_holds_if_the_file_was_older_than_a_tick_when_it_was_read(tmp_path, changed, hashed, kept, monkeypatch):
    monkeypatch.setattr(contents, "_state", lambda state: (1, changed, changed, 2, 3))
    entry = Entry(1, changed, changed, 2, 3, hashed, "digest")
    assert entry.holds(tmp_path.stat()) is kept


@pytest.mark.parametrize("part", range(5))
def test_a_file_whose_size_time_inode_or_device_differs_is_read_again(tmp_path, part):
    (tmp_path / "a").write_bytes(b"a")
    state = list(contents._state((tmp_path / "a").stat()))
    assert Entry(*state, 2**62, "digest").holds((tmp_path / "a").stat())
    state[part] += 1
    assert not Entry(*state, 2**62, "digest").holds((tmp_path / "a").stat())


def test_the_mask_of_another_row_is_other_data(tree, tmp_path):
    source = Folder(tree)
    before = source.fingerprint()
    mask = source.records.mask
    places = np.flatnonzero(mask != "")
    mask[places[:2]] = mask[places[1::-1]]
    assert source.fingerprint() != before


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"version": 1, "files": {"train/good/000.png": [1]}}', '{"version": 0}']
)
def test_a_damaged_index_is_made_anew(tree, tmp_path, damage, read):
    time.sleep(SETTLED)
    first = fingerprint(tree, tmp_path / "cache")
    index = next((tmp_path / "cache" / "contents").glob("*.json"))
    index.write_text(damage)
    assert fingerprint(tree, tmp_path / "cache") == first
    assert len(read) == 40 and len(json.loads(index.read_text())["files"]) == 20


def test_the_index_keeps_what_other_jobs_know_of_the_folder_and_forgets_files_that_are_gone(tree, tmp_path):
    cache_dir = tmp_path / "cache"
    hashes(tree, ["train/good/000.png", "train/good/001.png"], cache_dir)
    (tree / "train/good/001.png").unlink()
    hashes(tree, ["train/good/002.png"], cache_dir)
    index = json.loads(next((cache_dir / "contents").glob("*.json")).read_text())
    assert set(index["files"]) == {"train/good/000.png", "train/good/002.png"}


def test_without_a_place_to_remember_files_are_read_every_time(tree, tmp_path, read):
    time.sleep(SETTLED)
    (tmp_path / "cache").write_text("a file is in the way")
    with pytest.warns(UserWarning, match=r"hashes of the files .* cannot be kept .*cache_dir=DIR"):
        first = fingerprint(tree, tmp_path / "cache")
    assert first == Folder(tree).fingerprint() and len(read) == 40


def test_files_that_change_while_they_are_decoded_are_refused(tree, tmp_path, save):
    source = Folder(tree)
    original = source.read_image

    def changed(row):
        if row == 3:
            save(tree / "train/good/001.png", np.zeros((24, 24, 3), np.uint8))
        return original(row)

    source.read_image = changed
    with pytest.raises(UserError, match="changed while they were read"):
        cached(source, (8, 8), tmp_path / "cache")
    assert not list((tmp_path / "cache" / "images").glob("*.npy"))


def test_a_file_that_cannot_be_opened_is_left_to_the_decoder_to_name(tree, tmp_path):
    source = Folder(tree)
    (tree / "train/good/003.png").unlink()
    assert source.fingerprint() != ""
    with pytest.raises(UserError, match=r"train/good/003\.png"):
        cached(source, (8, 8), tmp_path / "cache")
