"""The queue of images that wait for their scores, and the thread that scores them in batches."""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from adbench.data.images import decode
from adbench.detection.detector import Detector
from adbench.detection.maps import thumbnail


class Full(Exception):
    """There is no place for another image. `seconds` is when it may be worth another try."""

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Answer(NamedTuple):
    """What the worker found out about one image."""

    score: float
    map: np.ndarray | None  # (h, w) float32
    image: np.ndarray | None  # (H, W, 3) uint8, small enough for an overlay; None if nobody asked for it
    size: tuple[int, int]  # (height, width) of the image


class _Job(NamedTuple):
    path: Path
    with_image: bool
    answer: Future[Answer]


class Worker:
    """Decodes and scores images in one thread, as many together as wait, and answers each with its own score.

    A row of a batch never sees another, so that a score does not depend on what is scored beside it. Images wait as
    files: memory holds the images of one batch.

    Args:
        detector: of images.
        max_batch: images scored together at most.
        capacity: places for requests and images that are being received, wait, or are being scored.
        wait: seconds for which a batch that is not full waits for more images.
        max_pixels: larger images are refused, as are those above the run's limit.
    """

    def __init__(
        self,
        detector: Detector,
        max_batch: int = 16,
        capacity: int = 128,
        wait: float = 0.005,
        max_pixels: int | None = None,
    ) -> None:
        self.detector, self.max_batch, self.capacity, self.wait = detector, max_batch, capacity, wait
        self.reading = dict(detector.reading)
        if max_pixels is not None:
            self.reading["max_pixels"] = min(max_pixels, self.reading["max_pixels"])
        self.pool = ThreadPoolExecutor(_cores(), "adbench-decode", torch.set_num_threads, (1,))
        self.busy = 0
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._batch_seconds = 0.0
        self._thread = threading.Thread(target=self._work, args=(torch.get_num_threads(),), daemon=True)

    # -- places ---------------------------------------------------------------------------------------------------

    def take(self, places: int = 1) -> None:
        """Take places, all or none.

        Raises:
            Full: there are not as many.
        """
        with self._lock:
            if self.busy + places > self.capacity:
                batches = math.ceil(self.busy / self.max_batch)
                raise Full(max(1, math.ceil(batches * self._batch_seconds)))
            self.busy += places

    def free(self, places: int) -> None:
        """Give places back."""
        with self._lock:
            self.busy -= places

    # -- work -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to score what is submitted."""
        self._thread.start()

    def stop(self) -> None:
        """Answer what waits, then end."""
        self._jobs.put(None)
        self._thread.join()
        self.pool.shutdown()

    def submit(self, path: Path, with_image: bool = False) -> Future[Answer]:
        """The answer for an image file, or its `UserError`, as a future."""
        job = _Job(path, with_image, Future())
        self._jobs.put(job)
        return job.answer

    def _work(self, threads: int) -> None:
        torch.set_num_threads(threads)  # of this thread: those of the pool have one each
        going_on = True
        while going_on:
            jobs, going_on = self._next_batch()
            started = time.perf_counter()
            self._answer(jobs)
            if jobs:
                self._batch_seconds = time.perf_counter() - started

    def _next_batch(self) -> tuple[list[_Job], bool]:
        """The next jobs, and whether others may follow."""
        job = self._jobs.get()
        jobs: list[_Job] = []
        deadline = time.monotonic() + self.wait
        while job is not None:
            jobs.append(job)
            if len(jobs) == self.max_batch:
                return jobs, True
            try:
                job = self._jobs.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return jobs, True
        return jobs, False

    def _answer(self, jobs: Sequence[_Job]) -> None:
        ready = []
        jobs = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
        for job, reading in [(job, self.pool.submit(self._read, job)) for job in jobs]:
            try:
                ready.append((job, *reading.result()))
            except BaseException as error:  # of this image alone
                job.answer.set_exception(error)
        if ready:
            self._score(ready)

    def _read(self, job: _Job) -> tuple[Any, np.ndarray | None, tuple[int, int]]:
        pixels = decode(job.path, **self.reading)
        height, width = pixels.shape[:2]
        return self.detector.engine.prepare(pixels), thumbnail(pixels) if job.with_image else None, (height, width)

    def _score(self, ready: Sequence[tuple[_Job, Any, np.ndarray | None, tuple[int, int]]]) -> None:
        try:
            scores = self.detector.engine.score([prepared for _, prepared, *_ in ready])
        except Exception as error:  # a batch of one image fails alone
            if len(ready) == 1:
                ready[0][0].answer.set_exception(error)
                return
            for alone in ready:
                self._score([alone])
            return
        values = scores.image.tolist()
        maps = [None] * len(ready) if scores.maps is None else list(scores.maps[:, 0].numpy())
        for (job, _, image, size), value, map_ in zip(ready, values, maps, strict=True):
            job.answer.set_result(Answer(value, map_, image, size))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
