"""The page in a browser, on the real service: a person's path, and what must hold all along it."""

import re
import threading
import time
from pathlib import Path

import httpx2 as httpx
import polars as pl
import pytest

pytest.importorskip("fastapi")

import uvicorn

import iisan.service
from chromium import PATH, Chromium
from iisan.data.dataset import Dataset
from iisan.service.app import create_app
from iisan.service.served import ServedRun
from pictures import encoded, noise

FOLDER = Path(iisan.service.__file__).parent / "page"
TOKEN = "a secret"
needs_chromium = pytest.mark.skipif(PATH is None, reason="Chromium is not installed: apt-get install chromium")
ROW = "#columns .column:nth-child({}) .row"


class Site:
    """A running service: its address, and its answers without the page."""

    def __init__(self, runs, token=TOKEN, moved=None):
        service = create_app([ServedRun(each.name, each, moved or {}) for each in runs], token=token)
        self.server = uvicorn.Server(uvicorn.Config(service, port=0, log_level="error", lifespan="on"))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://localhost:{port}/"
        self.client = httpx.Client(base_url=self.url)

    def get(self, path, **query):
        return self.client.get(path, params=query).json()

    def post(self, path, **body):
        return self.client.post(path, json=body).json()

    def stop(self):
        self.client.close()
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture(scope="module")
def site(trained):
    """The service of two runs, which no test changes."""
    site = Site([trained / "similarity", trained / "ids"])
    yield site
    site.stop()


@pytest.fixture
def alone(folder):
    """The service of one run of the test's own."""
    site = Site([folder / "similarity"])
    yield site
    site.stop()


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    browser = Chromium(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def browser(window):
    """A window of the usual size, in which nothing may go wrong."""
    window.show()
    yield window
    assert window.problems == []


def shown(browser, selector):
    """Ids of the items in a list, once it is there."""
    browser.until(f"!!document.querySelector('{selector}:not(.blank)') && !document.querySelector('[aria-busy]')")
    return browser.evaluate(f"[...document.querySelectorAll('{selector}')].map((row) => row.dataset.item)")


def ids(items):
    return [item["item_id"] for item in items]


@needs_chromium
def test_a_persons_path(browser, alone, tmp_path):
    browser.open(alone.url)
    browser.until("document.body.innerText.includes('Pick items from the catalogue')")
    assert shown(browser, "#results .row") == ids(alone.get("/items")["items"])

    browser.press("/", 191)
    browser.type("red pump")
    found = alone.get("/items", search="red pump")
    browser.until(f"document.getElementById('found').innerText === '{found['total']} found'")
    assert shown(browser, "#results .row") == ids(found["items"])
    first, second = ids(found["items"])[:2]
    browser.click(f"#results [data-item={first}] .plus")
    browser.click(f"#results [data-item={second}] .plus")
    browser.until("document.querySelectorAll('.past-item').length === 2")
    history = [first, second]
    expected = alone.post("/recommend", history=history)["items"]
    assert shown(browser, "#columns .row") == ids(expected)

    browser.click("#columns .score", "Why")
    explanation = alone.post("/explain", history=history, item=expected[0]["item_id"])
    browser.until("!!document.querySelector('.panel .terms')")
    terms = browser.evaluate(
        "[...document.querySelectorAll('.terms tbody .number')].map((cell) => cell.innerText)"
    )
    written = [float(term.replace("−", "-")) for term in terms]
    assert written == pytest.approx(list(explanation["terms"].values()), abs=6e-3)
    assert f"Rank {explanation['rank']} of 30" in browser.evaluate("document.querySelector('.panel').innerText")
    assert browser.evaluate("document.querySelectorAll('.contributions tbody tr').length") == 2

    browser.click("#columns .row .open")
    browser.click("#item .tabs input[value=text]")
    by_text = alone.get(f"/items/{expected[0]['item_id']}/similar", by="text", k=12)["items"]
    browser.until(f"document.querySelector('#item .grid .row')?.dataset.item === '{by_text[0]['item_id']}'")
    assert shown(browser, "#item .grid .row") == ids(by_text)
    browser.press("Escape", 27)
    browser.until("!document.querySelector('dialog[open]')")

    title = "<b>red</b> <img src=x onerror=alert(1)> pump"
    picture = tmp_path / "picture.png"
    picture.write_bytes(encoded_noise())
    browser.click("#add")
    browser.type(title)
    browser.choose_file("#adding input[type=file]", picture)
    browser.evaluate("document.querySelector('#adding [name=item_id]').value = 'new/1 ?'")
    browser.click("#adding [name=token]")
    browser.type("another one")
    browser.click("#adding button.main")
    browser.until("!!document.querySelector('#adding .bad')")
    assert "no token, or another one" in browser.evaluate("document.querySelector('#adding .bad').innerText")
    browser.evaluate("document.querySelector('#adding [name=token]').select()")
    browser.type(TOKEN)
    browser.click("#adding button.main")
    browser.until("document.querySelector('#item')?.innerText.includes('This is where it lands')")
    browser.until("!!document.querySelector('#item .standing summary')")
    assert browser.evaluate("document.getElementById('item-title').innerText") == title
    rank = alone.post("/explain", history=history, item="new/1 ?")["rank"]
    assert browser.evaluate("document.querySelector('.standing').innerText").startswith(f"Rank {rank} of 31")
    nearest = alone.get("/items/new%2F1%20%3F/similar", by="text", k=12)["items"]
    assert shown(browser, "#item .grid .row") == ids(nearest)

    browser.click("#item button.main", "Add to history")
    browser.until("document.querySelectorAll('.past-item').length === 3")
    assert browser.evaluate("document.querySelector('.past-item:last-child .title').innerText") == title
    expected = alone.post("/recommend", history=[*history, "new/1 ?"])["items"]
    browser.until(f"document.querySelector('#columns .row')?.dataset.item === '{expected[0]['item_id']}'")
    assert shown(browser, "#columns .row") == ids(expected)

    browser.click(".past-item:last-child .open")
    browser.click("#item button", "Remove from lists")
    browser.click("#item form button.main", "Remove")
    browser.until("!document.querySelector('dialog[open]')")
    assert alone.client.get("/items/new%2F1%20%3F").status_code == 404
    assert "new/1 ?" not in shown(browser, "#results .row")
    assert browser.evaluate("document.querySelectorAll('main b, main img[onerror]').length") == 0


def encoded_noise():
    from PIL import Image

    return encoded(Image.fromarray(noise(5, 16, 16)))


@needs_chromium
def test_two_runs_stand_side_by_side_and_what_both_list_is_marked(browser, site):
    browser.open(f"{site.url}#item=i0&item=i1")
    lists = [ids(site.post("/recommend", history=["i0", "i1"], run=run)["items"]) for run in ("similarity", "ids")]
    assert [shown(browser, ROW.format(column)) for column in (1, 2)] == lists
    both = set.intersection(*map(set, lists))
    assert both
    assert browser.evaluate("document.getElementById('agreement').innerText") == f"{len(both)} of 10 in both lists"
    for column in (1, 2):
        marked = browser.evaluate(
            f"[...document.querySelectorAll('{ROW.format(column)}.both')].map((row) => row.dataset.item)"
        )
        assert set(marked) == both
    browser.choose("[name=with]", "nothing")
    browser.until("document.querySelector('.column:nth-child(2)').hidden")
    assert browser.evaluate("document.activeElement.name") == "with"
    browser.until("document.querySelectorAll('.both').length === 0")


@needs_chromium
def test_filters_are_columns_of_the_items_and_a_link_keeps_them(browser, folder, prepared, tmp_path):
    dataset = Dataset.load(prepared.dataset)
    numbers = pl.int_range(pl.len())
    columns = {
        "colour": pl.when(numbers % 3 == 0).then(pl.lit("red")).otherwise(pl.lit("blue")),
        "stock": numbers % 2,
    }
    items = dataset.items.drop("image").with_columns(**columns)
    Dataset.from_frames(items, dataset.interactions()).save(tmp_path / "dataset")
    site = Site([folder / "similarity"], moved={"dataset": tmp_path / "dataset"})
    browser.open(f"{site.url}#item=i0")
    assert len(shown(browser, "#columns .row")) == 10
    browser.choose("[name=k]", "20")
    browser.until("document.querySelectorAll('#columns .row').length === 20")
    browser.choose("[name=colour]", "red")
    browser.choose("[name=stock]", "0")
    expected = ids(site.post("/recommend", history=["i0"], k=20, where={"colour": "red", "stock": 0})["items"])
    browser.until(f"document.querySelectorAll('#columns .row').length === {len(expected)}")
    link = browser.evaluate("location.href")
    browser.open(link)
    assert shown(browser, "#columns .row") == expected
    fields = browser.evaluate("['k', 'colour', 'stock'].map((name) => document.forms.filters[name].value)")
    assert fields == ["20", '"red"', "0"]
    browser.choose("[name=per]", "colour")
    browser.until("document.querySelectorAll('#columns .row').length === 1")
    site.stop()


@needs_chromium
def test_an_answer_that_comes_late_does_not_replace_a_newer_one(browser, site):
    browser.open(f"{site.url}#with=&item=i0")
    shown(browser, "#columns .row")
    browser.evaluate("""(() => {
        const fetched = window.fetch;
        window.late = 0;
        window.fetch = async (path, options = {}) => {
            const slow = path === "/recommend" && !options.body.includes("i2");
            const answer = await fetched(path, {...options, signal: slow ? undefined : options.signal});
            if (slow) await new Promise((resolve) => setTimeout(resolve, 300));
            window.late += slow;
            return answer;
        };
    })()""")
    browser.evaluate("location.hash = 'with=&item=i1'")
    browser.until("document.querySelector('.past-item').dataset.item === 'i1'")
    browser.evaluate("location.hash = 'with=&item=i2'")
    browser.until("window.late === 1")
    assert shown(browser, "#columns .row") == ids(site.post("/recommend", history=["i2"])["items"])


@needs_chromium
def test_the_service_explains_what_it_refuses(browser, site):
    browser.open(f"{site.url}#with=&item=nowhere")
    expected = site.post("/recommend", history=["nowhere"])["detail"]
    browser.until("!!document.querySelector('#columns .bad')")
    assert browser.evaluate("document.querySelector('#columns .bad p').innerText") == expected
    browser.open(f"{site.url}#with=&item=i1&item=nowhere")
    assert shown(browser, "#columns .row") == ids(site.post("/recommend", history=["i1"])["items"])
    assert (
        browser.evaluate("document.querySelector('.past-item:last-child .mark').innerText")
        == "unknown to similarity"
    )
    browser.press("/", 191)
    browser.type("no such words")
    browser.until("document.getElementById('results-end').innerText.includes('No title contains')")


@needs_chromium
def test_a_service_that_has_stopped_is_an_error_and_can_be_tried_again(browser, folder):
    site = Site([folder / "similarity"])
    browser.open(site.url)
    first = shown(browser, "#results .row")[0]
    site.stop()
    browser.click(f"#results [data-item={first}] .plus")
    browser.until("!!document.querySelector('#columns .bad')")
    assert "does not answer" in browser.evaluate("document.querySelector('#columns .bad').innerText")
    assert browser.evaluate("document.querySelector('#columns .bad button').innerText") == "Try again"


@needs_chromium
def test_without_a_token_of_the_service_nothing_is_added_or_removed(browser, folder):
    site = Site([folder / "similarity"], token=None)
    browser.open(site.url)
    first = shown(browser, "#results .row")[0]
    browser.click(f"#results [data-item={first}] .open")
    browser.until("!!document.querySelector('#item .grid .row:not(.blank)')")
    assert browser.evaluate("document.getElementById('add').checkVisibility()") is False
    assert "Remove" not in browser.evaluate("document.getElementById('item').innerText")
    site.stop()


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1360])
def test_everything_fits_has_a_name_and_enough_contrast(browser, site, width, scheme):
    browser.show(width, 740, scheme=scheme)
    browser.open(f"{site.url}#item=i0&item=i1")
    shown(browser, "#columns .row")
    browser.click("#columns .score", "Why")
    browser.until("!!document.querySelector('.panel .nearest')")
    for view in ("page", "item", "adding"):
        if view == "item":
            browser.click("#columns .open")
            browser.until("!!document.querySelector('#item .grid .row:not(.blank)')")
            browser.until("document.querySelectorAll('#item .standing summary').length === 2")
        elif view == "adding":
            browser.press("Escape", 27)
            browser.click("#add")
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
        assert browser.evaluate(f"({FAINT})()") == []
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "searchbox", "combobox", "checkbox", "radio", "link", "dialog"}
    controls = [node for node in nodes if node.get("role", {}).get("value") in roles]
    assert controls
    assert [node for node in controls if not node["name"]["value"]] == []


#: Texts whose contrast with what is behind them is below 4.5 (WCAG 2.2, AA).
FAINT = """() => {
    const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const luminance = (colour) => {
        const [r, g, b] = parts(colour).map((each) => each / 255)
            .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
        for (; element; element = element.parentElement) {
            const colour = getComputedStyle(element).backgroundColor;
            if (parts(colour)[3] !== 0) return colour;
        }
        return "rgb(255, 255, 255)";
    };
    const inside = document.querySelector("dialog[open]") ?? document.body;
    const texts = document.createTreeWalker(inside, NodeFilter.SHOW_TEXT);
    const faint = new Set();
    while (texts.nextNode()) {
        const [element, words] = [texts.currentNode.parentElement, texts.currentNode.data.trim()];
        if (!words || !element.checkVisibility() || element.closest(".bar, .unseen, script")) continue;
        const [text, back] = [luminance(getComputedStyle(element).color), luminance(behind(element))];
        const contrast = (Math.max(text, back) + 0.05) / (Math.min(text, back) + 0.05);
        if (contrast < 4.5) faint.add(`${contrast.toFixed(2)} ${element.className} ${words}`);
    }
    return [...faint];
}"""


def test_the_files_ask_nobody_else_store_nothing_and_write_no_markup():
    sources = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert {"index.html", "page.css", "page.js"} <= sources.keys()
    for name, source in sources.items():
        addresses = set(re.findall(r"\bhttps?://[^'\" ]+", source)) - {"http://www.w3.org/2000/svg"}
        assert not addresses, name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", source
        )
        assert not re.search(r"localStorage|sessionStorage|indexedDB|\.cookie\b", source)
        assert not re.search(r"<[^>]+\s(style|on\w+)=|<style|<script(?![^>]*\ssrc=)", source) or name.endswith(
            ".js"
        )
        assert len(source.splitlines()) <= 500
