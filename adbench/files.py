"""Files that appear whole or not at all, and locks: on local disks, and on network file systems that can do less."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock

# What a file system answers that has no locks, or none now (NFS without its lock service, FUSE, some cluster disks).
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


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
            sync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        with suppress(PermissionError, NotImplementedError):  # a mount whose rights are the mount's
            temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner can read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(handle: int) -> None:
    """Bring an open file to the disk, where the file system has a way to."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS):
            raise


class Lock:
    """An exclusive lock on a path, as a context manager.

    It is the system's lock (`flock`), which ends with the process. On a file system without, it is a file `PATH.held`
    that holds process and machine: one that a process of this machine has left behind is taken over, one of another
    machine is not, because nothing here tells whether that process lives.

    Args:
        path: of the lock's file, which stays.
        timeout: seconds to wait for another holder; -1 for ever.
    """

    def __init__(self, path: Path | str, timeout: float = -1) -> None:
        self.path, self.timeout = Path(path), timeout
        self._held: BaseFileLock | None = None

    @property
    def marker(self) -> Path:
        """The file that stands for the lock where the file system has none."""
        return self.path.with_name(f"{self.path.name}.held")

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            filelock.Timeout: another process holds it.
        """
        try:
            self._held = FileLock(self.path, timeout=self.timeout)
            self._held.acquire()
        except (OSError, NotImplementedError) as error:  # Timeout is an OSError, without a number
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            self.path.touch()
            self._held = SoftFileLock(self.marker, timeout=self.timeout)
            self._held.acquire()

    def release(self) -> None:
        if self._held is not None:
            self._held.release()

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


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
