"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it is synced and renamed over `path`.

    If the block raises, the temporary file is removed and whatever was at `path` stays as it was. The suffix is kept,
    because writers such as matplotlib or NumPy choose the format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner can read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def shortened(name: str, longest: int) -> str:
    """A file name of at most `longest` bytes: a longer one keeps its beginning and ends in a hash of all of it."""
    content = name.encode(errors="surrogateescape")
    if len(content) <= longest:
        return name
    return f"{content[: longest - 13].decode(errors='ignore')}-{hashlib.sha256(content).hexdigest()[:12]}"


def write_text(path: Path | str, text: str) -> None:
    """Write a text file whole."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON whole; NaN and infinities, which JSON does not have, become null."""
    write_text(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Plain JSON values: null for a number that is not finite, lists and numbers for arrays and tensors."""
    if isinstance(value, Mapping):
        return {str(key): finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return finite(value.tolist()) if hasattr(value, "tolist") else str(value)
