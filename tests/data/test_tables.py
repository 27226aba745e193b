"""A table is read whole, or refused with the place that is wrong."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adbench.data.odds import Odds
from adbench.data.tables import as_numbers, is_header, read_csv
from adbench.types import UserError

ROWS = "-0.537,0.581,0.365\n-0.736,-0.163,-4.82e-1\n-0.782,-0.257,.008\n"
VALUES = [[-0.537, 0.581, 0.365], [-0.736, -0.163, -0.482], [-0.782, -0.257, 0.008]]


def written(tmp_path, text: str, encoding: str = "utf-8"):
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("text, names", [
    (ROWS, None),
    ("a,b,c\n" + ROWS, ["a", "b", "c"]),
    ("e,E,e1\n" + ROWS, ["e", "E", "e1"]),  # letters of exponents, and of nothing else
    ("1e,x,y2\n" + ROWS, None),  # refused below: 1e stands for a number
    ('"a, b","c ""d""",e\n' + ROWS, ["a, b", 'c "d"', "e"]),
    ('"two\nlines",b,c\n' + ROWS, ["two\nlines", "b", "c"]),
    (",b,c\n" + ROWS, ["", "b", "c"]),
    ("\n\na,b,c\n" + ROWS, ["a", "b", "c"]),
    (ROWS.replace("\n", "\r\n"), None),
    (ROWS.replace("\n", "\n\n"), None),
    (ROWS.replace("\n", "\n   \n"), None),
    (ROWS.rstrip("\n"), None),
    (ROWS.replace(",", ", "), None),
    (ROWS.replace(",", ";"), None),
    (ROWS.replace(",", "\t"), None),
    ("größe;b;c\n" + ROWS.replace(",", ";"), ["größe", "b", "c"]),
    ('"-0.537","0.581","0.365"\n"-0.736", "-0.163","-0.482"\n-0.782,-0.257,0.008', None),
])  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_usual_form_of_a_table_has_all_of_its_rows(tmp_path, text, names, encoding):
    path = written(tmp_path, text, encoding)
    if text.startswith("1e,"):
        with pytest.raises(UserError, match="line 1, column 1"):
            read_csv(path)
        return
    table = read_csv(path)
    assert table.names == names
    np.testing.assert_array_equal(table.values, VALUES)


BAD = ["NA", "NaN", "nan", "Infinity", "-inf", "inf", "1.2mm", "3 kg", "20°C", "5%", "0x1f", "n/a", "?", "-", "null",
       "1e999", "1_000", "half", ""]  # fmt: skip


@pytest.mark.parametrize("field", BAD)
@pytest.mark.parametrize("line", [1, 2, 4])
@pytest.mark.parametrize("header", ["", "a,b,c\n"])
def test_a_field_that_is_no_finite_number_is_named_and_costs_the_whole_table(tmp_path, field, line, header):
    rows = ("0.346,0.822,0.33\n" + ROWS).splitlines()
    rows[line - 1] = f"0.1,{field},0.2"
    path = written(tmp_path, header + "\n".join(rows))
    place = line + bool(header)
    with pytest.raises(
        UserError, match=rf"t\.csv, line {place}, column 2( \(b\))?: .*({'empty' if not field else ''})"
    ):
        read_csv(path)


@pytest.mark.parametrize("first, message", [
    ("0,1;0,2;0,3", "line 1, column 1: '0,1' has a decimal comma; write decimal points"),
    ("NA,b,c", "'NA' is no finite number .a first line is a header only if"),
    ("1.2mm,3mm,4mm", "line 1, column 1: '1.2mm'"),
    ("1,2,3,4", "line 2: 3 fields, and the first line has 4"),
    ("1,2", "line 2: 3 fields, and the first line has 2"),
    ("1,2,3,", "line 1, column 4: the field is empty"),
])  # fmt: skip
def test_a_first_line_that_is_no_row_and_no_header_is_refused(tmp_path, first, message):
    rows = ROWS.replace(",", ";") if ";" in first else ROWS
    with pytest.raises(UserError, match=message):
        read_csv(written(tmp_path, f"{first}\n{rows}"))


@pytest.mark.parametrize("content, message", [
    (b"", "is empty"),
    (b"\n \n", "is empty"),
    (b"a,b\n", "has a header and no row"),
    ("größe,b\n1,2\n".encode("latin-1"), "save it as CSV in UTF-8"),
    (b'a,"b\n1,2\n', "cannot read the table"),
])  # fmt: skip
def test_a_file_that_is_no_table_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_csv(tmp_path / "t.csv")
    assert "t.csv" in str(error.value)


def test_a_first_line_that_counts_columns_is_a_row_and_said_to_be_one(tmp_path):
    with pytest.warns(UserWarning, match="counts as a row"):
        table = read_csv(written(tmp_path, "0,1,2\n" + ROWS))
    assert len(table.values) == 4


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None)
@given(st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=5))
def test_numbers_come_back_as_they_were_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_text("a,b,c\n" + "\n".join(",".join(map(repr, row)) for row in rows))
    np.testing.assert_array_equal(read_csv(path).values, np.array(rows))


@settings(deadline=None)
@given(st.lists(st.one_of(NUMBERS.map(repr), st.sampled_from([*BAD[:15], "name", "x y"])), min_size=1, max_size=5))
def test_a_line_with_anything_like_a_number_is_never_taken_for_a_header(fields):
    words = {"name", "x y"}
    assert is_header(fields) == (set(fields) <= words)


# -- arrays ----------------------------------------------------------------------------------------------------------


X, Y = np.arange(40.0).reshape(20, 2), np.arange(20) % 4 == 0


@pytest.mark.parametrize("arrays, message", [
    ({"X": X.astype(str)}, r"X is an array of text \(dtype <U32\)"),
    ({"X": np.array([["a", "b"]] * 20)}, r"X is an array of text \(dtype <U1\)"),
    ({"X": X.astype(object)}, r"X is an array of Python objects"),
    ({"X": X.astype(complex)}, r"X is an array of complex numbers"),
    ({"X": X.astype("datetime64[s]")}, r"X is an array of dates \(dtype datetime64\[s\]\)"),
    ({"y": Y.astype(object)}, r"y is an array of Python objects"),
    ({"y": np.where(Y, "bad", "good")}, r"y is an array of dtype <U4; labels are the numbers 0"),
    ({"X": np.where(X == 7, np.inf, X)}, r"1 missing or infinite values, the first in row 3, column 1"),
    ({"X": 2**60 + X.astype(np.int64)}, r"column 0 holds whole numbers that float64 cannot tell apart"),
])  # fmt: skip
def test_an_array_that_holds_no_numbers_is_named_with_its_type(tmp_path, arrays, message):
    np.savez(tmp_path / "t.npz", **({"X": X, "y": Y} | arrays), allow_pickle=True)
    with pytest.raises(UserError, match=message) as error:
        Odds("t", tmp_path / "t.npz", 0, 2)
    assert "t.npz" in str(error.value)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int8, np.int64, np.uint64, bool])
def test_numbers_of_any_type_are_taken(kind):
    assert as_numbers(np.ones((2, 3), kind), "x").dtype == np.float64


# -- a table to train on ---------------------------------------------------------------------------------------------


def labelled(tmp_path, header: str = "a,outlier,b"):
    lines = [header] * bool(header) + [f"{a},{int(y)},{b}" for (a, b), y in zip(X.tolist(), Y, strict=True)]
    return written(tmp_path, "\n".join(lines))


@pytest.mark.parametrize("header, label", [("a,outlier,b", "outlier"), ("a,outlier,b", 2), ("", "2")])
def test_a_csv_file_trains_as_the_arrays_do(tmp_path, header, label):
    np.savez(tmp_path / "t.npz", X=X, y=Y)
    arrays = Odds("t", tmp_path / "t.npz", 3, 2)
    table = Odds("t", labelled(tmp_path, header), 3, 2, label=label)
    np.testing.assert_array_equal(table.features, arrays.features)
    np.testing.assert_array_equal(table.records.label, arrays.records.label)
    np.testing.assert_array_equal(table.records.split, arrays.records.split)
    assert table.fingerprint() == arrays.fingerprint()


@pytest.mark.parametrize("label, message", [
    (None, r"data\.label=COLUMN; its columns are a, outlier, b"),
    ("class", r"no column data\.label=class; its columns are a, outlier, b"),
    (0, r"no column data\.label=0"),
    (4, r"no column data\.label=4"),
    ("a", r"data\.label=a must be 0 .normal. or 1 .anomalous., got \[0\.0, 2\.0"),
])  # fmt: skip
def test_a_column_that_holds_no_labels_is_refused(tmp_path, label, message):
    with pytest.raises(UserError, match=message):
        Odds("t", labelled(tmp_path), 0, 2, label=label)


def test_a_label_column_of_an_array_file_is_refused(tmp_path):
    np.savez(tmp_path / "t.npz", X=X, y=Y)
    with pytest.raises(UserError, match=r"data\.label=y names a column of a CSV file"):
        Odds("t", tmp_path / "t.npz", 0, 2, label="y")


def test_a_table_that_was_moved_and_renamed_is_the_same_data(tmp_path):
    np.savez(tmp_path / "t.npz", X=X, y=Y)
    before = Odds("t", tmp_path / "t.npz", 0, 2)
    (tmp_path / "t.npz").rename(tmp_path / "u.npz")
    after = Odds("t", tmp_path / "u.npz", 0, 2)
    assert after.fingerprint() == before.fingerprint() and (after.records.path == before.records.path).all()
    np.savez(tmp_path / "u.npz", X=X + 1e-9, y=Y)
    assert Odds("t", tmp_path / "u.npz", 0, 2).fingerprint() != before.fingerprint()
