"""Tables of numbers from CSV, .npz, .npy and .mat files: read whole, or refused with the place that is wrong.

NumPy reads the numbers of a CSV file. What it cannot read, Python's csv module reads again, slowly, to find out why.
"""

from __future__ import annotations

import codecs
import csv
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adbench.types import UserError

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")
# What stands in the place of a number: with a unit, a decimal comma or a thousands separator, hexadecimal, missing.
NUMBER_LIKE = re.compile(
    rf"({NUMBER.pattern})\s*([%°µ]|[°µ]?[a-z]{{1,3}}(/[a-z]{{1,3}})?)?"
    rf"|{DECIMAL_COMMA.pattern}|[+-]?\d{{1,3}}(,\d{{3}})+(\.\d+)?|[+-]?0x[\da-f]+"
    r"|[+-]?(inf|infinity)|[+-]?nan|na|n/a|#n/a|null|none|nil|missing|-+|\?",
    re.IGNORECASE,
)
TAKEN = "comma, semicolon or tab between the fields, decimal points, and at most one line of names at the top"


class Table(NamedTuple):
    """The numbers of a file."""

    names: list[str] | None  # D, of the columns; None where the file has no header
    values: np.ndarray  # (N, D) float64, all finite


class Form(NamedTuple):
    """How a CSV file is written."""

    encoding: str
    separator: str
    names: list[str] | None
    columns: int
    skipped: int  # lines above the first row


def read_csv(path: Path | str) -> Table:
    """Every row of a CSV file.

    The first line is a header only if no field of it is a number or stands in the place of one (`NA`, `Infinity`,
    `1.2mm`, `0x1f`, `0,5`): a row with such a field is a row with a wrong value. Empty lines are passed over.

    Raises:
        UserError: a field is no finite number or a row has another number of fields; the message names line and column.
    """
    path = Path(path)
    try:
        form = _form(path)
        values = _fast(path, form)
        if values is None or not np.isfinite(values).all():
            values = _slow(path, form)
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"cannot read the table {path}: {error}; save it as CSV in UTF-8 ({TAKEN})") from error
    if len(values) and form.names is None and (values[0] == np.arange(form.columns)).all() and form.columns > 2:
        warnings.warn(
            f"{path}: the first line is 0, 1, 2, ... and counts as a row; if it is a header, give the columns names",
            stacklevel=2,
        )
    return Table(form.names, values)


def _form(path: Path) -> Form:
    with path.open("rb") as file:
        start = file.read(4)
    utf16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if utf16 else "utf-8-sig"  # both without the byte-order mark
    with path.open(encoding=encoding, newline="") as file:
        first = next((line for line in file if line.strip()), "")
    outside = re.sub(r'"[^"]*"?', "", first)  # of quotes
    separator = next((one for one in "\t;" if one in outside), ",")
    for fields, number in _records(path, encoding, separator):
        header = is_header(fields)
        return Form(encoding, separator, fields if header else None, len(fields), number if header else 0)
    raise UserError(f"the table {path} is empty")


def is_header(fields: Sequence[str]) -> bool:
    """Whether the fields of a first line are names: there is a word, and nothing in the place of a number."""
    return any(fields) and not any(NUMBER_LIKE.fullmatch(field) for field in fields)


def _records(path: Path, encoding: str, separator: str) -> Iterator[tuple[list[str], int]]:
    """The fields of each line that is not empty, without spaces around them, and the number of its last line."""
    with path.open(encoding=encoding, newline="") as file:
        reader = csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)
        for fields in reader:
            if len(fields) > 1 or any(field.strip() for field in fields):
                yield [field.strip() for field in fields], reader.line_num


def _fast(path: Path, form: Form) -> np.ndarray | None:
    """(N, D) float64, not all of them finite perhaps; None if NumPy cannot say."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a file without rows
            values = np.loadtxt(
                path, delimiter=form.separator, comments=None, quotechar='"', skiprows=form.skipped, ndmin=2,
                encoding=form.encoding,
            )  # fmt: skip
    except ValueError:
        return None
    return values if values.size and values.shape[1] == form.columns else None


def _slow(path: Path, form: Form) -> np.ndarray:
    """(N, D) float64; the first field that is wrong is named."""
    rows = []
    for fields, line in _records(path, form.encoding, form.separator):
        if line <= form.skipped:
            continue
        if len(fields) != form.columns:
            raise UserError(
                f"{path}, line {line}: {len(fields)} fields, and the first line has {form.columns}; a table has {TAKEN}"
            )
        wrong = [place for place, field in enumerate(fields) if not NUMBER.fullmatch(field)]
        values = np.array([0.0 if place in wrong else float(field) for place, field in enumerate(fields)])
        if not wrong:
            wrong = np.flatnonzero(~np.isfinite(values)).tolist()  # 1e999
        if wrong:
            column = f"{wrong[0] + 1}" + (f" ({form.names[wrong[0]]})" if form.names else "")
            raise UserError(f"{path}, line {line}, column {column}: {_why(fields[wrong[0]], line)}")
        rows.append(values)
    if not rows:
        raise UserError(f"the table {path} has a header and no row")
    return np.stack(rows)


def _why(field: str, line: int) -> str:
    if not field:
        return "the field is empty; fill in missing values first, the table is scored whole or not at all"
    if DECIMAL_COMMA.fullmatch(field):
        return f"{field!r} has a decimal comma; write decimal points"
    top = "" if line > 1 else " (a first line is a header only if no field of it is, or stands for, a number)"
    return f"{field!r} is no finite number{top}; write plain numbers and fill in missing values first"


# -- arrays -----------------------------------------------------------------------------------------------------------


def read_arrays(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Arrays of a .npz or .mat file by name.

    Args:
        path: of the file.
        names: of the arrays.

    Returns:
        the arrays in the order of their names, in the shapes and types of the file.

    Raises:
        UserError: the file cannot be read, lacks one, or one is an array of objects.
    """
    if path.suffix.lower() == ".mat":
        from scipy.io import loadmat

        try:
            arrays: Any = loadmat(path)
        except Exception as error:  # scipy's own, zlib's, ...
            raise UserError(f"cannot read {' and '.join(names)} from {path}: {error}") from error
        inside = [name for name in arrays if not name.startswith("__")]
        return [_one(path, arrays, name, names, inside) for name in names]
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [_one(path, arrays, name, names, list(arrays)) for name in names]
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy each raise their own
        raise UserError(f"cannot read {' and '.join(names)} from {path}: {error}") from error


def _one(path: Path, arrays: Any, name: str, names: Sequence[str], inside: Sequence[str]) -> np.ndarray:
    if name not in inside:
        holds = ", ".join(inside) or "nothing"
        raise UserError(f"cannot read {' and '.join(names)} from {path}: it lacks {name}; it holds {holds}")
    try:
        array = np.asarray(arrays[name])
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        array = np.empty(0, dtype=object)
    if array.dtype == object:
        raise UserError(f"{path}: {name} is an array of Python objects (dtype object), which is not read; {SAVE}")
    return array


SAVE = "save it as numbers, as in np.savez(file, X=x.astype(float), ...)"


def as_numbers(array: np.ndarray, what: str) -> np.ndarray:
    """(N, D) numbers of any type -> float64.

    Args:
        array: what a file or a user gave.
        what: names it in messages, as in "t.npz: X".

    Raises:
        UserError: these are no numbers, some are missing or infinite, or float64 would make different ones equal.
    """
    array = np.asarray(array)
    if array.dtype.kind not in "fiub":
        kinds = {
            "U": "text",
            "S": "text",
            "O": "Python objects",
            "c": "complex numbers",
            "M": "dates",
            "m": "durations",
        }
        kind = kinds.get(array.dtype.kind, "something else")
        raise UserError(f"{what} is an array of {kind} (dtype {array.dtype}), and numbers are needed; {SAVE}")
    if array.ndim != 2:
        raise UserError(f"{what} must be (N, D) numbers, got shape {array.shape}")
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, dtype=np.float64)
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, column = wrong[0]
        raise UserError(
            f"{what} has {len(wrong)} missing or infinite values, the first in row {row}, column {column} (counted "
            "from 0); fill them in first"
        )
    if array.dtype.kind in "iu" and array.size and np.abs(values).max() >= 2.0**53:
        for column in range(array.shape[1]):
            if len(np.unique(array[:, column])) != len(np.unique(values[:, column])):
                raise UserError(
                    f"{what}: column {column} holds whole numbers that float64 cannot tell apart; subtract an offset"
                )
    return values
