"""The images in the body of a request, received as files within limits."""

from __future__ import annotations

import asyncio
import shutil
import unicodedata
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import NamedTuple

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

RAW = "application/octet-stream"
ACCEPTED = "send multipart/form-data with the images as files, or one image as the body with Content-Type image/*"


class Limits(NamedTuple):
    """What a request may hold."""

    max_bytes: int = 32 * 2**20  # of the body
    max_images: int = 16
    seconds: float = 60.0  # until the body is there


class Upload(NamedTuple):
    """An image as it was sent."""

    name: str
    path: Path


async def read_uploads(request: Request, limits: Limits, folder: Path) -> list[Upload]:
    """Write the images of a request into a folder.

    Raises:
        HTTPException: 400 no image, or no multipart; 408 too slow; 413 too large or too many; 415 of another type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "a compressed body (Content-Encoding) is not accepted; send the image file as it is")
    if kind != "multipart/form-data" and kind != RAW and not kind.startswith("image/"):
        raise HTTPException(415, f"the body is of type {plain(kind) or 'unknown'}; {ACCEPTED}")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.max_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.seconds):
            if kind == "multipart/form-data":
                uploads = await _files_of_form(request, limits, folder)
            else:
                uploads = [await _body(request, limits, folder)]
    except TimeoutError:
        raise HTTPException(408, f"the images did not arrive within {limits.seconds:g} seconds") from None
    except ClientDisconnect:
        raise HTTPException(400, "the connection ended before the images had arrived") from None
    if not uploads:
        raise HTTPException(400, f"the request holds no file; {ACCEPTED}")
    for upload in uploads:
        if not upload.path.stat().st_size:
            raise HTTPException(400, f"{upload.name} is empty")
    return uploads


async def drain(request: Request, most: int, seconds: float = 5.0) -> None:
    """Read what is left of a body and forget it: a client that is still sending would not see its refusal."""
    size, body = 0, request.scope["adbench.body"]
    try:
        async with asyncio.timeout(seconds):
            while not body["complete"] and size <= most:
                size += len((await request.receive()).get("body", b""))
    except TimeoutError:
        return


def plain(text: str, longest: int = 120) -> str:
    """A client's text as one short line without control characters."""
    line = "".join(c if unicodedata.category(c)[0] != "C" else "?" for c in text)
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def _too_large(limits: Limits) -> HTTPException:
    return HTTPException(413, f"the request is larger than {limits.max_bytes:,} bytes; send smaller or fewer images")


async def _pieces(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """The body in pieces, counted as it comes: its length may have been left out or be wrong."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limits.max_bytes:
            raise _too_large(limits)
        yield chunk


async def _body(request: Request, limits: Limits, folder: Path) -> Upload:
    path = folder / "0"
    with path.open("wb") as file:
        async for chunk in _pieces(request, limits):
            await asyncio.to_thread(file.write, chunk)
    return Upload("the image", path)


async def _files_of_form(request: Request, limits: Limits, folder: Path) -> list[Upload]:
    parser = MultiPartParser(
        request.headers, _pieces(request, limits), max_files=limits.max_images, max_fields=limits.max_images
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many"):
            raise HTTPException(413, f"a request holds {limits.max_images} images at most") from None
        raise HTTPException(400, f"the form cannot be read: {plain(error.message)}") from None
    uploads: list[Upload] = []
    try:
        for number, (_, part) in enumerate(form.multi_items()):
            if isinstance(part, UploadFile):
                path = folder / str(number)
                await asyncio.to_thread(_copy, part, path)
                uploads.append(Upload(plain(part.filename or "") or f"image {len(uploads) + 1}", path))
    finally:
        await form.close()
    return uploads


def _copy(part: UploadFile, path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(part.file, file)
