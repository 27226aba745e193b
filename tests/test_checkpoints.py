import pytest
import torch

from adbench.experiment.checkpoints import WholeFiles, damaged, newest_readable, previous


def save(path, k):
    WholeFiles().save_checkpoint({"state_dict": {"w": torch.full((1000,), float(k))}, "batches_seen": k}, path)


def test_a_torn_checkpoint_falls_back_to_the_one_before(tmp_path):
    path = tmp_path / "last.ckpt"
    save(path, 1)
    save(path, 2)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = newest_readable(path)
    assert found is not None
    assert found[0] == previous(path)
    assert found[1]["batches_seen"] == 1


@pytest.mark.parametrize("rest", [b"", b"torn", b"PK\x03\x04", b"\x80\x02]q", b"\x00" * 4096])
def test_a_file_that_is_no_checkpoint_is_damaged_and_not_taken(tmp_path, rest):
    path = tmp_path / "last.ckpt"
    path.write_bytes(rest)
    assert newest_readable(path) is None
    assert damaged(path)


def test_a_checkpoint_of_another_attempt_is_not_taken_and_not_damaged(tmp_path):
    path = tmp_path / "last.ckpt"
    WholeFiles().save_checkpoint({"batches_seen": 3, "attempt": "one"}, path)
    assert newest_readable(path, "one")[1]["batches_seen"] == 3
    assert newest_readable(path, "two") is None
    assert not damaged(path)


def test_without_any_checkpoint_there_is_nothing_to_resume(tmp_path):
    assert newest_readable(tmp_path / "last.ckpt") is None


def test_saving_leaves_the_last_and_the_one_before_and_nothing_else(tmp_path):
    path = tmp_path / "last.ckpt"
    for k in range(4):
        save(path, k)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert newest_readable(path)[1]["batches_seen"] == 3


class Payload:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_checkpoint_that_is_not_plain_tensors_is_not_loaded(tmp_path, capsys):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": Payload(), "batches_seen": 1}, path)
    assert newest_readable(path) is None
    assert "must not run" not in capsys.readouterr().out
