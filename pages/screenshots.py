"""`make screenshots`: pictures of three pages of the site and of a report of small real runs, into docs/pictures.

The runs take a few minutes on two cores and no download; what is finished is not run again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from pages import DOCS, ROOT

BROWSERS = ("chromium", "chromium-browser", "google-chrome",
            "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")  # fmt: skip
#: Picture -> page of the site, and the scheme of its colours.
SITE = {
    "site-home.png": ("index.html", "light"),
    "site-method.png": ("methods/igd.html", "light"),
    "site-reference.png": ("reference/python/adbench.losses.igd.html", "dark"),
}
TEXTURES = "data=textures/brick,textures/grass,textures/gravel"
RUNS = (
    ("-m", "method=pca,brightness,nearest_neighbour", TEXTURES),
    ("-m", "method=patchcore/small,padim/small,knn/small", "pretraining=imagenet", TEXTURES),
    ("method=ssae/mirrored_small", "data=textures/brick"),
)
SIZE = {"width": 1280, "height": 800}


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Nothing: a picture is no visit worth a line."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder, served on this machine while open: the site's search needs more than file://."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def browser_path() -> str:
    """Where Chromium is.

    Raises:
        SystemExit: it is not there.
    """
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise SystemExit("error: no Chromium here; apt-get install chromium")
    return found


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=browser_path(), args=options)
        yield browser
        browser.close()


def picture(browser: Any, address: str, file: Path, scheme: str = "light", size: dict[str, int] = SIZE) -> None:
    """The top of a page, as a PNG of few colours."""
    page = browser.new_page(viewport=size, color_scheme=scheme)
    page.goto(address, wait_until="networkidle")
    page.screenshot(path=file)
    page.close()
    Image.open(file).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)


def site_pictures(browser: Any, site: Path, out: Path) -> None:
    """Pictures of three pages of a built site."""
    with served(site) as address:
        for name, (page, scheme) in SITE.items():
            picture(browser, f"{address}/{page}", out / name, scheme)


def report_picture(browser: Any, report: Path, out: Path) -> None:
    """The picture of a report's page."""
    picture(browser, report.resolve().as_uri(), out / "report.png", size={"width": 1280, "height": 1400})


def data_picture(out: Path) -> None:
    """The embedded textures, a row each: a normal crop and each kind of defect, outlined as the masks have it."""
    import numpy as np
    from scipy.ndimage import binary_dilation

    from adbench.data.textures import Textures

    bands = []
    for name in ("brick", "grass", "gravel"):
        source = Textures(name)
        defect, split = source.records.defect, source.records.split
        kinds = [kind for kind in dict.fromkeys(defect.tolist()) if kind != "good"]
        chosen = [int(np.flatnonzero((defect == kind) & (split == "test"))[0]) for kind in ("good", *kinds)]
        crops = []
        for row in chosen:
            crop = np.broadcast_to(source.read_image(row).reshape(128, 128, -1), (128, 128, 3)).copy()
            if defect[row] != "good":
                mask = source.read_mask(row).reshape(128, 128).astype(bool)
                crop[binary_dilation(mask, iterations=3) & ~binary_dilation(mask, iterations=1)] = (255, 64, 32)
            crops.append(np.pad(crop, ((2, 2), (2, 2), (0, 0)), constant_values=255))
        bands.append(np.concatenate(crops, axis=1))
    Image.fromarray(np.concatenate(bands)).save(out / "textures.jpg", quality=85)


def _python(module: str, *words: str) -> None:
    subprocess.run([sys.executable, "-m", module, *words], cwd=ROOT, check=True)  # noqa: S603 - the project's own


def small_runs(results: Path, further: Sequence[str] = ()) -> Path:
    """Small real runs and their report; returns the page. A relative folder lies below the checkout."""
    for words in RUNS:
        _python("adbench.run", *words, f"results={results}", *further)
    _python("adbench.report", str(results))
    return ROOT / results / "report" / "report.html"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pages.screenshots", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=DOCS / "pictures", metavar="DIR", help="default: docs/pictures")
    parser.add_argument("--results", type=Path, default=Path("build/pictures"), metavar="DIR",
                        help="where the runs are or go (default: build/pictures)")  # fmt: skip
    parser.add_argument("further", nargs="*", metavar="KEY=VALUE", help="further words of the runs")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    browser_path()  # before minutes of work
    data_picture(options.out)
    report = small_runs(options.results, options.further)
    with TemporaryDirectory() as site:
        _python("mkdocs", "build", "--strict", "--quiet", "--site-dir", site)
        with chromium() as browser:
            site_pictures(browser, Path(site), options.out)
            report_picture(browser, report, options.out)
    print(f"{', '.join([*SITE, 'report.png', 'textures.jpg'])} -> {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
