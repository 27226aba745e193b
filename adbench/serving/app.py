"""The HTTP interface of a detector."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import logging
import math
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from adbench import __version__
from adbench.data.images import TooLarge, Unreadable
from adbench.data.listing import printable
from adbench.detection.detector import Detector, is_anomalous
from adbench.detection.maps import write_map
from adbench.evaluation.thresholds import Threshold
from adbench.serving.uploads import Limits, Upload, drain, plain, read_uploads
from adbench.serving.worker import Answer, Full, Worker
from adbench.types import UserError

log = logging.getLogger("adbench.serving")
PAGES = Path(__file__).parent / "pages"


class Maps(StrEnum):
    """Pictures in an answer."""

    NONE = "none"
    PNG = "png"
    OVERLAY = "overlay"
    BOTH = "both"


class Result(BaseModel):
    """What the detector says of one image."""

    name: str  # of the file, as it was sent
    width: int
    height: int
    score: float | None  # higher is more anomalous, any range; null if it is no finite number
    threshold: float | None  # null: no normal images were held out in training
    decision: str | None  # "anomalous" if the score is above the threshold, else "normal"
    anomalous: bool | None
    p_value: float | None  # share of held-out normal images that score as high, this image counted in
    map: str | None = (
        None  # base64 of a 16-bit grey PNG; its text chunks `low` and `high` are the scores of 0 and 65535
    )
    overlay: str | None = None  # base64 of a JPEG: the map's colours over the grey image


class Results(BaseModel):
    """An answer of POST /score: a result for each image, in the order in which they were sent."""

    method: str
    data: str
    false_alarm_rate: float | None  # of the threshold
    results: list[Result]


class Health(BaseModel):
    """The state of the server."""

    ready: bool  # true: the model is there before the server listens, and connections are refused once it stops
    method: str
    data: str
    image_size: list[int]  # (height, width) that the method sees
    maps: bool
    threshold: float | None
    false_alarm_rate: float | None
    busy: int  # places that are taken, of `places`
    places: int
    adbench: str


class Problem(BaseModel):
    """Every answer but 200."""

    detail: str  # one sentence


@dataclass
class Service:
    """A detector that is served.

    Attributes:
        detector: of images.
        worker: scores them.
        threshold: as `Detector.threshold` gives it.
        limits: of a request.
        maps: whether the method has anomaly maps.
    """

    detector: Detector
    worker: Worker
    threshold: Threshold | None
    limits: Limits
    maps: bool

    @property
    def method(self) -> str:
        """The method's name."""
        return printable(self.detector.card["method"])

    @property
    def data(self) -> str:
        """The data set's name, which a folder whose name is no text may have given."""
        return printable(self.detector.card["data"])

    @property
    def level(self) -> float | None:
        """The score above which an image is called anomalous; None without held-out scores."""
        return None if self.threshold is None else self.threshold["value"]

    @property
    def rate(self) -> float | None:
        """The false-alarm rate of the threshold, in (0, 1); None without held-out scores."""
        return None if self.threshold is None else self.threshold["false_alarm_rate"]

    async def score(self, request: Request, pictures: Maps) -> Results:
        """Receive the images of a request, have them scored, and answer; its places are free afterwards.

        Raises:
            HTTPException: 503 all places are taken; 500 the server failed; others as `read_uploads` and `problem`.
        """
        places = 0
        try:
            self.worker.take()
            places = 1
            with tempfile.TemporaryDirectory(prefix="adbench-serve-") as folder:
                uploads = await read_uploads(request, self.limits, Path(folder))
                self.worker.take(len(uploads) - 1)
                places = len(uploads)
                with_image = pictures in (Maps.OVERLAY, Maps.BOTH)
                futures = [asyncio.wrap_future(self.worker.submit(one.path, with_image)) for one in uploads]
                outcomes = await asyncio.gather(*futures, return_exceptions=True)
            answers = []
            for upload, outcome in zip(uploads, outcomes, strict=True):
                if isinstance(outcome, BaseException):
                    raise problem(upload, outcome, self.worker.reading["max_pixels"])
                answers.append((upload, outcome, pictures))
            results = await asyncio.gather(*(asyncio.to_thread(self.result, *answer) for answer in answers))
        except Full as error:
            sentence = f"all {self.worker.capacity} places are taken; try again in {error.seconds} s"
            raise HTTPException(503, sentence, {"Retry-After": str(error.seconds)}) from None
        except HTTPException:
            raise
        except Exception as error:
            log.error("a request failed: %s: %s", type(error).__name__, error)
            raise HTTPException(500, "the server failed on this request; its log says why") from None
        finally:
            self.worker.free(places)
        return Results(method=self.method, data=self.data, false_alarm_rate=self.rate, results=results)

    def result(self, upload: Upload, answer: Answer, pictures: Maps) -> Result:
        """The answer for one image, with the pictures that were asked for."""
        score, level = answer.score, self.level
        anomalous = None if level is None else bool(is_anomalous(score, level))
        result = Result(
            name=upload.name, width=answer.size[1], height=answer.size[0], threshold=level, anomalous=anomalous,
            score=score if math.isfinite(score) else None,
            decision=None if anomalous is None else ("anomalous" if anomalous else "normal"),
            p_value=None if level is None else float(self.detector.p_value([score])[0]),
        )  # fmt: skip
        if answer.map is not None and pictures in (Maps.PNG, Maps.BOTH):
            content = io.BytesIO()
            write_map(content, answer.map)
            result.map = _base64(content)
        if answer.map is not None and answer.image is not None:
            content = io.BytesIO()
            self.detector.overlay_of(answer.image, answer.map).save(content, format="JPEG", quality=90)
            result.overlay = _base64(content)
        return result

    def health(self) -> Health:
        """What is served, and how busy it is."""
        return Health(
            ready=True, method=self.method, data=self.data, image_size=self.detector.card["input"]["size"],
            maps=self.maps, threshold=self.level, false_alarm_rate=self.rate, busy=self.worker.busy,
            places=self.worker.capacity, adbench=__version__,
        )  # fmt: skip


def _base64(content: io.BytesIO) -> str:
    return base64.b64encode(content.getvalue()).decode()


def problem(upload: Upload, error: BaseException, max_pixels: int) -> HTTPException:
    """What went wrong with an image, without the server's own paths."""
    if isinstance(error.__cause__, TooLarge):
        return HTTPException(413, f"{upload.name} has more than {max_pixels:,} pixels; send a smaller image")
    if isinstance(error, MemoryError):
        return HTTPException(413, f"{upload.name} takes more memory than there is; send a smaller image")
    if isinstance(error, Unreadable):
        reason = plain(error.reason.replace(str(upload.path), upload.name), 200)
        return HTTPException(422, f"{upload.name} cannot be read as an image: {reason}")
    if isinstance(error, UserError):  # the graph takes images of one size
        return HTTPException(422, f"{upload.name}: {error}")
    log.error("an image could not be scored: %s: %s", type(error).__name__, error)
    return HTTPException(500, f"{upload.name} could not be scored; the server's log says why")


def create_app(service: Service) -> FastAPI:
    """The application: POST /score, GET /health, the page and the description of the interface."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.worker.stop)

    app = FastAPI(
        title=f"adbench: {service.method} on {service.data}", version=__version__, lifespan=lifespan,
        docs_url=None, redoc_url=None,  # their pages load scripts from elsewhere: /docs is one of our own
        description="Scores images by a trained anomaly detector. Errors are `{\"detail\": \"one sentence\"}`.",
    )  # fmt: skip
    _add_handlers(app, service)
    _add_routes(app, service)
    return app


BINARY = {"type": "string", "format": "binary"}
BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"image": {"type": "array", "items": BINARY}}}
        },
        "image/*": {"schema": BINARY},
        "application/octet-stream": {"schema": BINARY},
    },
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "No image, an empty one, or a form that cannot be read"},
    408: {"model": Problem, "description": "The body did not arrive in time"},
    413: {"model": Problem, "description": "Too many bytes, pixels or images"},
    415: {"model": Problem, "description": "A body of another type"},
    422: {"model": Problem, "description": "A file that is no image, or a torn one; an unknown value of `map`"},
    500: {"model": Problem, "description": "The detector failed on an image"},
    503: {"model": Problem, "description": "Too many requests at once: wait for the seconds of `Retry-After`"},
}


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post("/score", response_model=Results, responses=PROBLEMS, openapi_extra={"requestBody": BODY})
    async def score(
        request: Request,
        map: Annotated[
            Maps, Query(description="pictures in the answer: the map, its overlay on the image, or both")
        ] = Maps.NONE,
    ) -> Results:
        """Score one image, or several files of a form. If one of them cannot be scored, none is."""
        return await service.score(request, map)

    @app.get("/health", response_model=Health)
    async def health() -> Health:
        """What is served, and how busy it is."""
        return service.health()

    for path, name in (("/", "score.html"), ("/docs", "docs.html")):
        content = (PAGES / name).read_text(encoding="utf-8")
        policy = _policy(content)

        @app.get(path, response_class=HTMLResponse, include_in_schema=False)
        async def page(content: str = content, policy: str = policy) -> HTMLResponse:
            return HTMLResponse(content, headers={"Content-Security-Policy": policy})


def _policy(page: str) -> str:
    """A page's own script and style may run; it may talk to this server alone."""

    def hashes(tag: str) -> str:
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(p.encode()).digest()).decode()}'" for p in parts)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; img-src data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _add_handlers(app: FastAPI, service: Service) -> None:
    async def refusal(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if error.status_code != 408:  # which has waited enough
            await drain(request, 8 * service.limits.max_bytes)
        sentence = error.detail
        if error.status_code in (404, 405) and not sentence.islower():  # Starlette's own: a phrase that names nothing
            sentence = (
                f"{request.method} {plain(request.url.path)} is not served; POST /score, GET /health and /docs are"
            )
        return JSONResponse({"detail": sentence}, error.status_code, error.headers)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        await drain(request, 8 * service.limits.max_bytes)
        first = error.errors()[0]
        value = plain(str(first.get("input", "")), 60)
        return JSONResponse({"detail": f"{first['loc'][-1]}={value} is not possible: {first['msg'].lower()}"}, 422)

    app.add_exception_handler(HTTPException, refusal)
    app.add_exception_handler(RequestValidationError, invalid)

    app.add_middleware(Edge)


HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]


class Edge:
    """Notes in the scope whether a body was read to its end, and adds headers to every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["adbench.body"] = body = {"complete": False}

        async def noting() -> Any:
            message = await receive()
            body["complete"] |= message["type"] != "http.request" or not message.get("more_body", False)
            return message

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        await self.app(scope, noting, with_headers)
