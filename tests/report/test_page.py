"""The HTML page: nothing from a run folder becomes markup, and a real browser sorts, filters and fetches nothing."""

import json
import os
import re
from html.parser import HTMLParser

import numpy as np

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&</style></textarea>{{ 7 * 191919191 }}«ü\u202eя»"


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]

    def handle_data(self, data):
        self.texts.append(data)


def evil_results(results, pictures):
    """Every text that a run folder can hold is an attack."""
    rows = [(f"{EVIL}/a.png", 0, "good", 0.1), ("b", 0, "good", 0.3), (EVIL, 1, EVIL, 0.2), ("d", 1, EVIL, 0.9)]
    for data in ("mvtec/bottle", "textures/brick"):
        folder = results.run(EVIL[:8], data, rows=rows, pretraining="x", suffix=EVIL.replace("/", ""))
        record = json.loads((folder / "metrics.json").read_text())
        used = {EVIL: {"name": EVIL, "origin": EVIL, "sha256": EVIL}}
        record |= {
            "method": EVIL,
            "pretraining": EVIL,
            "pretraining_weights": used,
            "data_fingerprint": EVIL + data,
            "selection": f"test {EVIL}",
            "changed": {EVIL: EVIL},
        }
        record["budget"]["name"] = EVIL
        (folder / "metrics.json").write_text(json.dumps(record))
        pictures(folder, [{"role": "found", "file": "gallery-found-0.jpg", "path": EVIL, "defect": EVIL, "score": 0.5}])
    results.run("pca", "mvtec/bottle")
    results.run("pca", "textures/brick")
    results.run("cbigan", "mvtec/bottle", changed={"method.alpha": EVIL}, suffix="-c", selection=f"test {EVIL}")
    results.run("egbad", "mvtec/screw", status="failed", error=EVIL)
    for seed in (0, 1):
        place = {"root": EVIL, "id": EVIL}
        results.run("vae", "own", seed, place=place, data_fingerprint=f"{EVIL}{seed}", suffix="-own")
        folder = next(results.path.glob(f"vae/**/seed{seed}-own"))
        record = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps(record | {"data": "folder"}))
    odd = results.path / EVIL.replace("/", "")
    odd.mkdir()
    (odd / "metrics.json").write_text(json.dumps({EVIL: 1}))
    return results


def test_nothing_from_a_run_folder_becomes_markup(results, report, pictures):
    code, out, _ = report(evil_results(results, pictures))
    assert code == 0
    page = Reader((out / "report.html").read_text(encoding="utf-8"))
    assert (page.tags.count("script"), page.tags.count("style"), page.tags.count("textarea")) == (1, 1, 0)
    assert not [a for a in page.attributes if a[1].startswith("on")]
    sources = {a[2][:23] for a in page.attributes if a[1] in ("src", "href") and not a[2].startswith("#")}
    assert sources <= {"data:image/jpeg;base64,", "data:,"}
    assert sum("<script>alert(1)</script>" in text for text in page.texts) > 5  # it is all there, as text
    assert sum("{{ 7 * 191919191 }}«ü" in text for text in page.texts) > 5  # no template sees it as its own
    for name in ("report.html", "report.md", "tables.tex", "runs.csv"):
        assert "1343434337" not in (out / name).read_text(encoding="utf-8")
    assert "<script" not in (out / "report.md").read_text(encoding="utf-8")
    for chart in (out / "charts").glob("*.svg"):
        assert "<script" not in chart.read_text()


def test_names_that_are_no_text_and_halves_of_characters_are_shown_escaped(results, report, pictures):
    half = "\ud800"
    odd = os.fsdecode(b"caf\xe9")
    for seed in (0, 1):
        folder = results.run("vae", f"own/{odd}", seed, status="finished" if seed else "failed", error=half)
    pictures(folder, [{"role": "found", "file": "gallery-found-0.jpg", "path": half, "defect": half, "score": 0.5}])
    (results.path / odd).mkdir()
    (results.path / odd / "metrics.json").write_text("torn")
    code, out, said = report(results)
    assert code == 0
    for name in ("report.html", "report.md", "runs.csv"):
        assert "caf\\udce9" in (out / name).read_text(encoding="utf-8").replace("\\\\", "\\")
    assert "\\ud800" in (out / "report.html").read_text(encoding="utf-8")
    assert "caf\\udce9" in said


def test_the_page_allows_its_own_script_and_no_connection(results, report):
    results.run()
    _, out, _ = report(results)
    text = (out / "report.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text).group(1)
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[\w+/]+='", policy)
    assert "unsafe-inline" not in policy.split("script-src")[1]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


def test_pictures_are_embedded_small_and_bounded_in_number(results, report, pictures):
    from PIL import Image

    for data in ("digits/0", "digits/1", "digits/2"):
        folder = results.run("cbigan", data)
        pictures(folder)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 2400, 3), dtype=np.uint8)).save(
            folder / "figures" / "panels.png"
        )
    _, out, _ = report(results, "--pictures", "2")
    text = (out / "report.html").read_text()
    assert text.count("data:image/jpeg") == 2
    assert "cbigan on digits/2" in text and "--pictures N" in text
    assert len(text) < 3_000_000
    _, out, _ = report(results, "--pictures", "0")
    assert "data:image/jpeg" not in (out / "report.html").read_text()


def test_torn_pictures_and_paths_out_of_the_folder_are_left_out(results, report, pictures):
    from PIL import Image

    folder = results.run("cbigan", "digits/0")
    Image.new("RGB", (9, 9)).save(folder / "secret.jpg")
    names = ("../secret.jpg", "torn.jpg", "absent.jpg", "a\0b.jpg", 3, None, [])
    entries: list = [{"role": "found", "file": name, "score": 1.0} for name in names]
    entries += [{"role": role, "file": "torn.jpg"} for role in ([], {}, None)] + [{"role": "found"}]
    pictures(folder, [])
    (folder / "figures" / "gallery.json").write_text(json.dumps([*entries, 7, {"role": "nonsense", "file": "x.jpg"}]))
    (folder / "figures" / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    (folder / "figures" / "panels.png").write_bytes(b"\x89PNG torn")
    code, out, _ = report(results)
    assert code == 0
    assert "data:image/jpeg" not in (out / "report.html").read_text()


def test_a_results_folder_without_a_finished_run_still_gives_a_page(results, report):
    results.run(status="failed", error="no data")
    code, out, _ = report(results)
    assert code == 0
    assert "No run has finished." in (out / "report.html").read_text()


# -- a real browser -----------------------------------------------------------------------------------------------


class Visit:
    """A page opened from disk, what it asked for and what it complained of."""

    def __init__(self, browser, path, **options):
        self.page = browser.new_page(**options)
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append("dialog"), dialog.dismiss()))
        self.page.goto(path.as_uri())

    def column(self, table, at):
        rows = self.page.locator(f"#{table} tbody tr:visible").all()
        return [row.locator("td").nth(at).inner_text() for row in rows]

    def head(self, table, at):
        return self.page.locator(f"#{table} thead th").nth(at)


def test_a_click_sorts_by_value_and_another_turns_it_around(results, report, browser):
    for method, value in (("cbigan", 0.9), ("egbad", 0.10), ("igd", 0.5), ("vae", None)):
        results.run(method, metrics={"image_auroc": value, "pixel_auroc": 0.5})
    _, out, _ = report(results)
    visit = Visit(browser, out / "report.html")
    assert visit.column("settings", 0) == ["cbigan", "egbad", "igd", "vae"]
    visit.head("settings", 6).get_by_role("button").click()
    assert visit.column("settings", 0) == ["cbigan", "igd", "egbad", "vae"]  # numbers start with the highest
    assert visit.head("settings", 6).get_attribute("aria-sort") == "descending"
    visit.head("settings", 6).get_by_role("button").click()
    assert visit.column("settings", 0) == ["egbad", "igd", "cbigan", "vae"]  # what is missing stays last
    visit.head("settings", 0).get_by_role("button").click()
    assert visit.column("settings", 0) == ["cbigan", "egbad", "igd", "vae"]
    visit.page.get_by_label("filter").first.fill("egb")
    assert visit.column("settings", 0) == ["egbad"]
    assert visit.complaints == []
    assert visit.requests == [(out / "report.html").as_uri()]


def test_an_attacked_page_runs_nothing_and_fetches_nothing(results, report, pictures, browser):
    _, out, _ = report(evil_results(results, pictures))
    visit = Visit(browser, out / "report.html")
    for details in visit.page.locator("details").all():
        details.evaluate("element => element.open = true")
    visit.page.wait_for_timeout(100)
    assert visit.complaints == []
    assert {url.split(":")[0] for url in visit.requests} <= {"file", "data"}
    assert [url for url in visit.requests if url.startswith("file")] == [(out / "report.html").as_uri()]
    broken = "() => [...document.images].filter(image => !image.complete || !image.naturalWidth).length"
    assert visit.page.evaluate(broken) == 0
    assert visit.page.locator("img").count() > 0


def test_text_is_readable_in_light_and_dark_and_nothing_overflows(results, report, browser):
    for method in ("cbigan", "pca"):
        for data in ("mvtec/bottle", "mvtec/screw", "textures/brick"):
            results.run(method, data)
    _, out, _ = report(results)
    contrast = """() => {
      const rgb = (text) => text.match(/[0-9.]+/g).slice(0, 3).map(Number);
      const light = (text) => { const [r, g, b] = rgb(text).map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$/.test(c)) return c; } };
      const worst = [];
      for (const e of document.querySelectorAll("p, td, th button, h2, h3, a, .mark, svg text")) {
        const style = getComputedStyle(e), ink = light(e.tagName === "text" ? style.fill : style.color), paper = light(behind(e));
        worst.push((Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05));
      }
      return Math.min(...worst);
    }"""  # noqa: E501
    for scheme in ("light", "dark"):
        visit = Visit(browser, out / "report.html", color_scheme=scheme, viewport={"width": 900, "height": 700})
        assert visit.page.evaluate(contrast) > 4.5
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 900
    before = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    visit.page.locator("#theme").click()
    assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") != before
