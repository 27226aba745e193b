"""The pages in a real browser: drop an image, see overlay and decision; nothing leaves this machine."""

import base64

import pytest
from servers import pictures

pytest.importorskip("fastapi")

DROP = """async ([name, content]) => {
  const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type: "image/png" }));
  for (const kind of ["dragover", "drop"]) {
    document.getElementById("drop").dispatchEvent(
      new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }
}"""
CONTRAST = """() => {
  const rgb = (text) => text.match(/[0-9.]+/g).slice(0, 3).map(Number);
  const light = (text) => { const [r, g, b] = rgb(text).map((v) => { v /= 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(c)) return c; } return "rgb(255, 255, 255)"; };
  const worst = [];
  const texts = "h1, h2, h3, p, a, dt, dd, button, strong, span, pre, .decision, .problem";
  for (const e of document.querySelectorAll(texts)) {
    const ink = light(getComputedStyle(e).color), paper = light(behind(e));
    worst.push((Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05));
  }
  return Math.min(...worst);
}"""


class Visit:
    """A page of the server, what it asked for and what it complained of."""

    def __init__(self, browser, address, **options):
        self.page = browser.new_page(**options)
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address)

    def drop(self, name, content):
        self.page.evaluate(DROP, [name, base64.b64encode(content).decode()])

    def leaves(self, address):
        """What is fetched from elsewhere than the server and the page itself."""
        return [url for url in self.requests if not url.startswith((f"{address}/", "data:", "blob:"))]


def test_a_dropped_image_is_shown_with_overlay_score_and_decision(browser, address, client):
    content = pictures(1)[0]
    wanted = client.post("/score", files={"image": ("part.png", content)}).json()["results"][0]
    assert wanted["decision"] == "anomalous"
    visit = Visit(browser, f"{address}/")
    visit.page.get_by_role("heading", name="pca on mvtec/bottle").wait_for()
    visit.drop("part.png", content)
    card = visit.page.locator("article")
    card.get_by_text("anomalous", exact=True).wait_for()
    text = card.inner_text()
    assert "part.png" in text and f"{wanted['score']:.4g}"[:5] in text and f"{wanted['p_value']:.4g}" in text
    image = card.locator("img")
    image.evaluate("element => element.decode()")
    assert image.get_attribute("src").startswith("data:image/jpeg")
    assert image.evaluate("element => [element.naturalWidth, element.naturalHeight]") == [
        wanted["width"],
        wanted["height"],
    ]
    card.get_by_role("button", name="show the image").click()
    image.evaluate("element => element.decode()")
    assert image.get_attribute("src").startswith("blob:")
    assert image.evaluate("element => element.naturalWidth") == wanted["width"]
    assert visit.complaints == []
    assert visit.leaves(address) == []


def test_files_that_are_chosen_are_scored_and_what_is_no_image_says_so(browser, address, tmp_path):
    files = []
    for k, content in enumerate(pictures(6)):
        files.append(tmp_path / f"part{k}.png")
        files[-1].write_bytes(content)
    files.append(tmp_path / "<img src=x onerror=alert(1)>.png")
    files[-1].write_bytes(b"no image")
    visit = Visit(browser, f"{address}/")
    visit.page.locator("#file").set_input_files(files)
    visit.page.get_by_text("cannot be read as an image").wait_for()
    visit.page.wait_for_function("document.querySelectorAll('article img').length === 6")
    assert visit.page.locator("article").count() == 7
    assert visit.page.locator("article .decision.anomalous").count() >= 2
    refused = [text for text in visit.complaints if "422" not in text]  # the browser notes the refusal itself
    assert refused == []
    assert visit.leaves(address) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_pages_are_readable_and_fit_a_phone(browser, address, scheme):
    papers = {}
    for path in ("/", "/docs"):
        visit = Visit(browser, f"{address}{path}", color_scheme=scheme, viewport={"width": 360, "height": 640})
        if path == "/":
            visit.drop("part.png", pictures(1)[0])
            visit.drop("a-name-that-is-much-too-long-for-a-line-of-a-phone-and-has-no-space-in-it.png", b"no image")
            visit.page.locator("article dl").wait_for()
            visit.page.locator("article .problem").wait_for()
        else:
            visit.page.get_by_role("heading", name="POST /score").wait_for()
        assert visit.page.evaluate(CONTRAST) > 4.5
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 360
        papers[path] = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = [int(papers["/"].split("(")[1].split(",")[0]), 128]
    assert (brightness[0] > brightness[1]) == (scheme == "light")


def test_the_page_of_the_interface_is_whole_without_a_network(browser, address):
    visit = Visit(browser, f"{address}/docs")
    visit.page.get_by_role("heading", name="POST /score").wait_for()
    text = visit.page.locator("main").inner_text()
    for part in (
        "GET /health",
        "none | png | overlay | both",
        "p_value",
        "503",
        "multipart/form-data",
        f"{address}/score",
    ):
        assert part in text
    assert visit.complaints == []
    assert visit.leaves(address) == []


def test_a_full_server_is_asked_again_by_the_page(browser, address):
    visit = Visit(browser, f"{address}/")
    answers = iter([503, 503])

    def busy(route):
        status = next(answers, None)
        if status is None:
            route.continue_()
        else:
            route.fulfill(status=status, headers={"Retry-After": "1"}, json={"detail": "all places are taken"})

    visit.page.route("**/score*", busy)
    visit.drop("part.png", pictures(1)[0])
    visit.page.locator("article dl").wait_for()
    assert next(answers, "none left") == "none left"
