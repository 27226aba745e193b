"""The site: built without a warning, complete, readable on a phone, and loading nothing from elsewhere."""

import logging
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from filelock import FileLock

from pages import DOCS, ROOT, hooks, reference

pytest.importorskip("mkdocs", reason="the extra `docs` builds the site")


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The built site, made once for all workers. Every warning is an error."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    folder, done = shared / "site", shared / "site.done"
    with FileLock(shared / "site.lock"):
        if not done.exists():
            _build(folder)
            done.touch()
    return folder


def _build(folder: Path) -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    logging.getLogger("mkdocs").setLevel(logging.WARNING)
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))
    config.plugins.on_startup(command="build", dirty=False)
    build(config)


class Loads(HTMLParser):
    """Addresses that a browser loads by itself to show a page, and those of its links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes) -> None:
        given = dict(attributes)
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(given.get("href"))
        elif tag != "a":
            self.loaded += [given[key] for key in ("src", "srcset", "poster", "data") if given.get(key)]


def test_no_page_loads_anything_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        found = Loads(page.read_text(encoding="utf-8")).loaded
        assert [address for address in found if re.match(r"(https?:)?//", address)] == [], page
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert re.findall(r"(?:url\(|@import\s+)[\"']?(?:https?:)?//[^)\"']+", text) == [], sheet


def test_every_link_of_the_site_leads_to_a_page_and_an_anchor(site):
    anchors = {
        page: set(re.findall(r'\bid="([^"]+)"', page.read_text(encoding="utf-8"))) for page in site.rglob("*.html")
    }
    for page in anchors:
        if page.name == "404.html":
            continue
        for link in Loads(page.read_text(encoding="utf-8")).links:
            address, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", link):
                continue
            place = (page.parent / unquote(address)).resolve() if address else page
            place = place / "index.html" if place.is_dir() else place
            assert place.is_file(), f"{page.relative_to(site)}: {link}"
            if anchor and not anchor.startswith(("__", "L")) and place in anchors:
                assert unquote(anchor) in anchors[place], f"{page.relative_to(site)}: {link}"


def test_every_page_of_docs_is_in_the_navigation(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    everything = home + "".join(page.read_text(encoding="utf-8") for page in site.glob("*/*.html"))
    for page in DOCS.rglob("*.md"):
        assert page.relative_to(DOCS).with_suffix(".html").name in everything, page


def test_a_page_that_is_not_there_leaves_the_navigation():
    nav = ["a.md", {"B": ["b.md", {"C": "c.md"}]}, {"D": ["d.md"]}]
    assert hooks._without(nav, {"a.md", "c.md"}) == ["a.md", {"B": [{"C": "c.md"}]}]


# -- the reference ----------------------------------------------------------------------------------------------------


def test_the_reference_has_every_configuration_file(site):
    for group in ("method", "data", "protocol", "pretraining", "budget", "trainer", "logger", "experiment"):
        text = (site / "reference" / "configuration" / f"{group}.html").read_text(encoding="utf-8")
        for path in (ROOT / "conf" / group).rglob("*.yaml"):
            name = path.relative_to(ROOT / "conf" / group).with_suffix("").as_posix()
            if not path.stem.startswith("_"):
                assert f'id="{reference.slug(name)}"' in text, name


def test_a_keys_meaning_is_its_comment_or_its_arguments(tmp_path):
    path = ROOT / "conf" / "method" / "igd.yaml"
    keys = {key.name: key for key in reference.keys(path)}
    assert keys["zeta"] == ("zeta", "0.2", "released; the paper draws U(0, 1): uniform")
    assert keys["recipe.budget.paper"].value == "{max_epochs: 256}"
    assert "epochs between two E-steps" in reference.arguments("adbench.methods.igd.IGD")["e_step_every"]
    assert reference.target_of(ROOT / "conf/method/igd/small.yaml") == "adbench.methods.igd.IGD"
    assert reference.target_of(ROOT / "conf/method/egbad/small.yaml") == "adbench.methods.cbigan.CBiGAN"


def test_the_reference_has_every_command_with_its_help(site):
    text = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for name in (*reference.COMMANDS, *reference.OTHERS):
        assert f'id="{name}"' in text
    for word in ("--false-alarm-rate", "--format", "--pictures", "--budget", "--per-defect"):
        assert word in text


def test_the_reference_has_the_python_interface(site):
    text = (site / "reference" / "python" / "adbench.api.html").read_text(encoding="utf-8")
    for name in ("train", "evaluate", "compare", "create_method", "create_data", "fit", "Run"):
        assert f'id="adbench.api.{name}"' in text
    losses = (site / "reference" / "python" / "adbench.losses.igd.html").read_text(encoding="utf-8")
    assert 'id="adbench.losses.igd.gaussian"' in losses


# -- two clicks from README -------------------------------------------------------------------------------------------


def _links(page: Path) -> dict[Path, str]:
    """Pages that a page links to, with their text."""
    found = {}
    for target in re.findall(r"\]\(([^)\s#]+)", page.read_text(encoding="utf-8")):
        place = (page.parent / target).resolve()
        if place.is_file() and place.suffix in (".md", ".py"):
            found[place] = place.read_text(encoding="utf-8")
    return found


def within_two_clicks(words: str) -> bool:
    first = _links(ROOT / "README.md")
    second = {place: text for page in first if page.suffix == ".md" for place, text in _links(page).items()}
    return any(re.search(words, text) for text in (first | second).values())


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("the equation behind a loss term", r"\[`gaussian`\].*l\\_h = 1 - exp.*Eqs\. 5 and 8"),
        ("the equation's code", r"def gaussian\(z: Tensor, center: Tensor, variance: Tensor\)"),
        ("the meaning of a key of metrics.json", r"\| `threshold.false_alarm_rate` \| asked for"),
        ("the definition of a metric", r"\| `pixel_pro` \| PRO: mean share of each anomalous region"),
        ("how to add a method", r"## A method\n\nA method is a class below"),
        ("how to resume", r"## Resuming\n\nType the same command again"),
        (
            "what CBiGAN's paper printed for mvtec/screw, and ours",
            r"`mvtec/screw` \| `cbigan/small` \|[^|]*\| [01]\.\d{3} ± .*\| 0\.58 \|",
        ),
        (
            "what SSAE's paper printed for mvtec/screw, and ours",
            r"`mvtec/screw` \| `ssae/small` \|[^|]*\| 0\.401 .*\| 0\.989 \|",
        ),
        ("a key of a method's configuration", r"lambda_3: weight of the adversarial term"),
    ],
)
def test_a_reader_finds_it_in_two_clicks(wanted, words):
    assert within_two_clicks(words), wanted


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("methods/igd.html", "adbench.losses.igd.html#adbench.losses.igd.gaussian"),
        ("run_folder.html", "threshold.false_alarm_rate"),
        ("extending.html", 'id="a-method"'),
        ("guide/faults.html", 'id="resuming"'),
        ("results/measured.html", "mvtec/screw"),
    ],
)
def test_the_sites_first_page_leads_to_it(site, page, words):
    assert page in Loads((site / "index.html").read_text(encoding="utf-8")).links
    assert words in (site / page).read_text(encoding="utf-8")


# -- in a browser -----------------------------------------------------------------------------------------------------

WIDE = [
    "index.html", "start.html", "guide/protocols.html", "methods/esad.html", "results/measured.html",
    "reference/configuration/method.html", "reference/commands.html", "reference/python/adbench.losses.igd.html",
]  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_is_wider_than_a_phone(site, browser, scheme):
    from pages.screenshots import served

    with served(site) as address:
        page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
        elsewhere = []
        page.on("request", lambda request: elsewhere.append(request.url) if address not in request.url else None)
        for name in WIDE:
            page.goto(f"{address}/{name}", wait_until="load")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        assert page.evaluate("document.body.getAttribute('data-md-color-scheme')") == (
            "slate" if scheme == "dark" else "default"
        )
        assert [url for url in elsewhere if not url.startswith(("data:", "blob:"))] == []
        page.close()


def test_the_search_finds_a_key_without_a_network(site, browser):
    from pages.screenshots import served

    with served(site) as address:
        page = browser.new_page()
        page.goto(f"{address}/index.html", wait_until="networkidle")
        page.locator(".md-search__input").first.fill("false_alarm_interval_95")
        found = page.locator('.md-search-result__link[href*="run_folder.html"]')
        found.first.wait_for(state="attached", timeout=20_000)
        assert found.count() >= 1
        page.close()


def test_pictures_of_the_site_and_of_a_report_are_drawn(site, browser, tmp_path):
    from PIL import Image

    from pages.screenshots import SITE, report_picture, site_pictures

    site_pictures(browser, site, tmp_path)
    report_picture(browser, site / "index.html", tmp_path)
    for name in (*SITE, "report.png"):
        drawn, kept = Image.open(tmp_path / name), Image.open(DOCS / "pictures" / name)
        assert drawn.size == kept.size
        assert len(drawn.getcolors(256)) > 8
