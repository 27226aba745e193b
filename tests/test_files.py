import json

import numpy as np
import pytest

from adbench.files import whole, write_json


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"value": 1})
    with pytest.raises(RuntimeError), whole(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"value": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_number_that_json_does_not_have_becomes_null_wherever_it_stands(tmp_path):
    value = {"a": float("nan"), "b": [1.5, float("-inf"), {"c": np.float64("inf")}], "d": (2, True, None, "nan")}
    write_json(tmp_path / "metrics.json", value)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "a": None, "b": [1.5, None, {"c": None}], "d": [2, True, None, "nan"],
    }  # fmt: skip


def test_the_temporary_file_keeps_the_suffix_that_writers_choose_their_format_by(tmp_path):
    with whole(tmp_path / "figure.png") as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"x")
