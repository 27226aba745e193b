import errno
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from adbench.data import cache
from adbench.data.cache import cached, resized
from adbench.data.classes import Digits
from adbench.data.folder import Folder
from adbench.transforms import image as transforms
from adbench.transforms.image import resize
from adbench.types import UserError


def test_images_are_kept_as_they_are_read_and_masks_in_order_of_rows(tree, tmp_path):
    source = Folder(tree)
    images, masks = cached(source, (24, 24), tmp_path)
    assert len(images) == 16 and len(masks) == 4
    everything = images[np.arange(16)]
    for row in range(16):
        np.testing.assert_array_equal(everything[row].transpose(1, 2, 0), source.read_image(row))
    masked = np.flatnonzero(source.records.mask != "")
    for place, row in enumerate(masked):
        np.testing.assert_array_equal(masks[np.array([place])][0], source.read_mask(row))


def test_resizing_rounds_once_after_an_antialiased_float_resize():
    image = np.random.default_rng(0).integers(0, 255, (1, 40, 60, 3), dtype=np.uint8)
    exact = resize(torch.from_numpy(image).permute(0, 3, 1, 2).double(), (13, 20)).numpy()
    ours = resized(image, (13, 20))
    assert ours.shape == (1, 3, 13, 20) and ours.dtype == np.uint8
    assert np.abs(ours - exact).max() <= 0.5 + 1e-4


def test_a_large_image_is_never_held_whole_as_floats(monkeypatch):
    image = np.random.default_rng(0).integers(0, 255, (1, 300, 200, 3), dtype=np.uint8)
    whole = resized(image, (32, 32))
    largest = []
    original = resize
    monkeypatch.setattr(transforms, "resize", lambda i, size: largest.append(i.numel()) or original(i, size))
    monkeypatch.setattr(cache, "LARGE", 20_000)
    np.testing.assert_array_equal(resized(image, (32, 32)), whole)
    assert max(largest) <= max(20_000, 300 * 32 * 3)


def test_a_side_may_differ_from_the_other(tree, tmp_path):
    images, masks = cached(Folder(tree), (10, 16), tmp_path)
    assert images[np.array([0])].shape == (1, 3, 10, 16) and masks[np.array([0])].shape == (1, 10, 16)


def test_arrays_in_memory_take_the_same_way_in_fewer_channels(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CHUNK", 500)
    source = Digits(0)
    images, masks = cached(source, (16, 16), tmp_path)
    assert masks is None and images[np.array([3, 1700])].shape == (2, 1, 16, 16)
    np.testing.assert_array_equal(images[np.array([1700])], resized(source.array[1700:1701], (16, 16)))


def test_it_is_read_once_and_again_only_when_a_file_or_the_size_changes(tree, tmp_path, monkeypatch, save):
    built = []
    original = cache._build
    monkeypatch.setattr(cache, "_build", lambda *a: built.append(1) or original(*a))
    cached(Folder(tree), (8, 8), tmp_path)
    cached(Folder(tree), (8, 8), tmp_path)
    assert len(built) == 1
    cached(Folder(tree), (9, 8), tmp_path)
    assert len(built) == 2
    save(tree / "train/good/000.png", np.zeros((24, 24, 3), np.uint8))
    images, _ = cached(Folder(tree), (8, 8), tmp_path)
    first = int(np.flatnonzero(Folder(tree).records.path == "train/good/000.png")[0])
    assert len(built) == 3 and not images[np.array([first])].any()


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    changed = {
        "truncated": content[:-100],
        "empty": b"",
        "header": b"x" * 20 + content[20:],
        "longer": content + b"\0",
        "hole": content[:middle] + bytes(len(content) - middle),
    }[how]
    path.write_bytes(changed)


@pytest.mark.parametrize("file", ["images.npy", "masks.npy"])
@pytest.mark.parametrize("how", ["truncated", "empty", "header", "longer", "hole"])
def test_a_damaged_cache_is_built_anew(tree, tmp_path, file, how):
    images, masks = cached(Folder(tree), (24, 24), tmp_path)
    expected = images[np.arange(16)], masks[np.arange(4)]
    damage(next(tmp_path.rglob(f"*.{file}")), how)
    images, masks = cached(Folder(tree), (24, 24), tmp_path)
    np.testing.assert_array_equal(images[np.arange(16)], expected[0])
    np.testing.assert_array_equal(masks[np.arange(4)], expected[1])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"images": [1, 2]}'])
def test_a_damaged_note_about_the_cache_is_written_anew(tree, tmp_path, content):
    cached(Folder(tree), (8, 8), tmp_path)
    meta = next((tmp_path / "images").glob("*.json"))
    meta.write_text(content)
    images, _ = cached(Folder(tree), (8, 8), tmp_path)
    assert len(images) == 16 and set(json.loads(meta.read_text())) > {"images", "masks", "pixels"}


def _job(tree: Path, cache_dir: Path, barrier, results) -> None:
    torch.set_num_threads(1)
    original, built = cache._build, []
    cache._build = lambda *a: built.append(1) or original(*a)
    barrier.wait()
    images, masks = cached(Folder(tree), (16, 16), cache_dir)
    results.put((len(built), int(images[np.arange(16)].sum()), int(masks[np.arange(4)].sum())))


def test_two_jobs_that_start_together_build_it_once_and_read_the_same(tree, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    jobs = [context.Process(target=_job, args=(tree, tmp_path, barrier, results)) for _ in range(2)]
    for job in jobs:
        job.start()
    answers = [results.get(timeout=60) for _ in jobs]
    for job in jobs:
        job.join()
    assert sorted(built for built, *_ in answers) == [0, 1]
    assert answers[0][1:] == answers[1][1:]


def _killed_job(tree: Path, cache_dir: Path) -> None:
    torch.set_num_threads(1)
    source = Folder(tree)
    original = source.read_image
    source.read_image = lambda row: os.kill(os.getpid(), signal.SIGKILL) if row == 9 else original(row)
    cached(source, (16, 16), cache_dir)


def test_a_job_killed_while_it_builds_leaves_nothing_that_is_taken_for_whole(tree, tmp_path):
    job = multiprocessing.get_context("fork").Process(target=_killed_job, args=(tree, tmp_path))
    job.start()
    job.join()
    assert job.exitcode == -signal.SIGKILL
    images, _ = cached(Folder(tree), (24, 24), tmp_path)
    again, _ = cached(Folder(tree), (16, 16), tmp_path)
    assert again[np.arange(16)].any(axis=(1, 2, 3)).all() and len(images) == 16
    assert not list(tmp_path.rglob("*.part"))


def test_a_full_disk_is_a_clear_error_and_leaves_no_torn_file(tree, tmp_path):
    """The limit on file sizes makes writes fail as a full disk does, in the middle of the file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, before[1]))
        with pytest.raises(UserError, match=r"cannot write the image cache in .*cache_dir=DIR"):
            cached(Folder(tree), (24, 24), tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not [p for p in (tmp_path / "cache" / "images").rglob("*") if p.is_file() and p.suffix != ".lock"]
    assert len(cached(Folder(tree), (24, 24), tmp_path / "cache")[0]) == 16


def test_too_little_space_is_noticed_before_any_image_is_read(tree, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(100, 90, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    source = Folder(tree)
    monkeypatch.setattr(source, "read_image", lambda row: pytest.fail("an image was read"))
    with pytest.raises(UserError, match="0 MiB are free"):
        cached(source, (24, 24), tmp_path)


def test_a_cache_folder_that_cannot_be_made_is_a_clear_error(tree, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write the image cache"):
        cached(Folder(tree), (8, 8), tmp_path / "file")


def test_a_broken_image_is_named_and_nothing_is_left(tree, tmp_path):
    path = tree / "train/good/004.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"train.good.004\.png"):
        cached(Folder(tree), (8, 8), tmp_path)
    assert not list(tmp_path.rglob("*.npy")) and not list(tmp_path.rglob("*.part"))


def test_a_mask_that_does_not_fit_its_image_names_both(tree, tmp_path, save):
    save(tree / "ground_truth/dent/001_mask.png", np.ones((24, 23), np.uint8))
    with pytest.raises(UserError, match=r"dent.001_mask\.png is 23x24 .* test.dent.001\.png is 24x24"):
        cached(Folder(tree), (8, 8), tmp_path)


def test_building_leaves_the_number_of_threads_alone(tree, tmp_path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        cached(Folder(tree), (8, 8), tmp_path)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def keep(tree: Path, cache_dir: Path, how: str, side: int = 24):
    """Images and masks of a tree, kept in one of the ways."""
    found = cache.entry(Folder(tree), (side, side), cache_dir, how)
    return found.images[np.arange(16)], found.masks[np.arange(4)], found.pixels[np.arange(16)]


@pytest.mark.parametrize("side", [24, 17])
def test_images_are_the_same_wherever_they_are_kept(tree, tmp_path, side):
    on_disk = keep(tree, tmp_path / "disk", "disk", side)
    for how in ("memory", "none"):
        for ours, expected in zip(keep(tree, tmp_path / how, how, side), on_disk, strict=True):
            np.testing.assert_array_equal(ours, expected)
            assert ours.dtype == expected.dtype
        assert not list((tmp_path / how).rglob("*.images.*"))


@pytest.mark.parametrize("how", ["memory", "none"])
def test_arrays_in_memory_may_be_kept_in_any_way(tmp_path, how):
    images, _ = cached(Digits(0), (16, 16), tmp_path)
    rows = np.array([3, 1700, 5])
    np.testing.assert_array_equal(cache.entry(Digits(0), (16, 16), tmp_path, how).images[rows], images[rows])


def test_without_a_cache_a_later_start_decodes_what_its_batches_ask_for_alone(tree, tmp_path):
    keep(tree, tmp_path, "none")
    source = Folder(tree)
    read, original = [], source.read_image
    source.read_image = lambda row: read.append(row) or original(row)
    found = cache.entry(source, (24, 24), tmp_path, "none")
    assert read == []
    assert found.images[np.array([3, 5])].shape == (2, 3, 24, 24) and sorted(read) == [3, 5]
    assert found.images[np.array([], dtype=np.int64)].shape == (0, 3, 24, 24)


@pytest.mark.parametrize("how", cache.KEPT)
def test_a_loaders_worker_gets_the_images_however_they_are_kept(tree, tmp_path, how):
    found = cache.entry(Folder(tree), (24, 24), tmp_path, how)
    for rows, copied in zip(found, pickle.loads(pickle.dumps(found)), strict=True):
        np.testing.assert_array_equal(copied[np.arange(4)], rows[np.arange(4)])


def test_memory_takes_over_what_lies_on_the_disk_already(tree, tmp_path, monkeypatch):
    expected = keep(tree, tmp_path, "disk")
    monkeypatch.setattr(cache, "_read_into", lambda *_: pytest.fail("images were read"))
    for ours, theirs in zip(keep(tree, tmp_path, "memory"), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("how", ["disk", "memory", "none"])
def test_a_file_that_cannot_be_read_is_left_out_wherever_images_are_kept(tree, tmp_path, how):
    whole = keep(tree, tmp_path / "whole", "disk")
    for name in ("train/good/004.png", "test/dent/001.png"):
        (tree / name).write_bytes(b"torn")
    for _ in range(2):  # read, and remembered
        source = Folder(tree, unreadable="skip")
        lost = [
            int(np.flatnonzero(Folder(tree).records.path == n)[0]) for n in ("train/good/004.png", "test/dent/001.png")
        ]
        found = cache.entry(source, (24, 24), tmp_path / how, how)
        assert len(found.images) == len(source.records) == 14 and len(found.masks) == 3
        kept = np.delete(np.arange(16), lost)
        np.testing.assert_array_equal(found.images[np.arange(14)], whole[0][kept])
        masked = np.flatnonzero(Folder(tree).records.mask != "")
        np.testing.assert_array_equal(found.masks[np.arange(3)], whole[1][~np.isin(masked, lost)])
        np.testing.assert_array_equal(found.pixels[np.arange(14)], whole[2][kept])


def test_another_word_for_where_images_are_kept_is_refused(tree, tmp_path):
    with pytest.raises(UserError, match=r"data\.cache is disk, memory or none, got 'ram'"):
        cache.entry(Folder(tree), (8, 8), tmp_path, "ram")


def test_more_than_the_memory_of_the_machine_is_refused_before_any_image_is_read(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda _: 10)
    monkeypatch.setattr(cache, "_read_into", lambda *_: pytest.fail("images were read"))
    with pytest.raises(UserError, match=r"data\.cache=memory needs .* take data\.cache=disk or none"):
        cache.entry(Folder(tree), (24, 24), tmp_path, "memory")


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up_names_what_else_to_do_and_gets_its_space_back(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(
        UserError, match=r"No space left on device; free space there, .*cache_dir=DIR.* data\.cache=memory"
    ):
        keep(tree, tmp_path, "disk")
    assert not [p for p in (tmp_path / "images").iterdir() if p.suffix != ".lock"]
    assert len(keep(tree, tmp_path, "memory")[0]) == 16


def test_without_a_place_for_hashes_images_are_decoded_all_the_same(tree, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="every start reads all images"):
        images = keep(tree, tmp_path / "file", "none")[0]
    assert images.any(axis=(1, 2, 3)).all()


def _killed_late(tree: Path, cache_dir: Path) -> None:
    cache.CHUNK = 4
    source = Folder(tree)
    original = source.read_image
    source.read_image = lambda row: os.kill(os.getpid(), signal.SIGKILL) if row == 13 else original(row)
    cached(source, (16, 16), cache_dir)


def killed(tree: Path, cache_dir: Path) -> None:
    """A job that dies in its fourth part of four images."""
    job = multiprocessing.get_context("fork").Process(target=_killed_late, args=(tree, cache_dir))
    job.start()
    job.join()
    assert job.exitcode == -signal.SIGKILL


def rows_read(tree: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that the next job reads, whose images must be right."""
    monkeypatch.setattr(cache, "CHUNK", 4)
    source, read = Folder(tree), []
    original = source.read_image
    source.read_image = lambda row: read.append(row) or original(row)
    found = cache.entry(source, (16, 16), cache_dir)
    for ours, expected in zip(found, keep(tree, cache_dir / "fresh", "disk", 16), strict=True):
        np.testing.assert_array_equal(ours[np.arange(len(expected))], expected)
    assert not list((cache_dir / "images").glob("*.part"))
    return sorted(read)


def test_a_job_goes_on_where_one_that_was_killed_has_left_the_cache(tree, tmp_path, monkeypatch):
    killed(tree, tmp_path)
    assert rows_read(tree, tmp_path, monkeypatch) == [12, 13, 14, 15]


@pytest.mark.parametrize("name", ["images", "pixels", "masks"])
def test_of_what_a_killed_job_left_nothing_counts_that_has_other_bytes(tree, tmp_path, monkeypatch, name):
    killed(tree, tmp_path)
    part = next((tmp_path / "images").glob(f"*.{name}.part"))
    content = bytearray(part.read_bytes())
    content[130] ^= 1  # of the first rows: a header takes 128
    part.write_bytes(content)
    masked = int(np.flatnonzero(Folder(tree).records.mask != "")[0])
    first = masked // 4 * 4 if name == "masks" else 0
    assert rows_read(tree, tmp_path, monkeypatch) == sorted({*range(first, first + 4), 12, 13, 14, 15})


@pytest.mark.parametrize("content", ["", "{", '{"spans": 3}\n', "[1]\n", None])
def test_a_journal_that_cannot_be_read_counts_for_nothing(tree, tmp_path, monkeypatch, content):
    killed(tree, tmp_path)
    journal = next((tmp_path / "images").glob("*.journal.part"))
    journal.unlink() if content is None else journal.write_text(content)
    assert rows_read(tree, tmp_path, monkeypatch) == list(range(16))


def test_what_was_odd_about_files_is_told_whichever_job_has_read_them(tree, tmp_path, save, monkeypatch):
    for name in ("000", "001"):
        save(tree / f"ground_truth/dent/{name}_mask.png", np.zeros((24, 24), np.uint8))
    killed(tree, tmp_path)
    monkeypatch.setattr(cache, "CHUNK", 4)
    source, fresh = Folder(tree), Folder(tree)
    cache.entry(source, (16, 16), tmp_path)
    cache.entry(fresh, (16, 16), tmp_path / "fresh")
    assert source.read_report == fresh.read_report and source.read_report["masks_empty"]["count"] == 2


def test_ctrl_c_leaves_what_is_read_for_the_next_job(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CHUNK", 4)
    source = Folder(tree)
    original = source.read_image

    def stopped(row):
        if row == 9:
            raise KeyboardInterrupt
        return original(row)

    source.read_image = stopped
    with pytest.raises(KeyboardInterrupt):
        cached(source, (16, 16), tmp_path)
    assert rows_read(tree, tmp_path, monkeypatch) == list(range(8, 16))
