import base64
import json
import re
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from iisan.errors import ConfigError, MissingExtraError, RunError
from iisan.experiments.records import Record, table
from iisan.experiments.report import conclusion, write_report

EVIL = '<script>alert("1")</script> & "co"'


class Page(HTMLParser):
    """Tags with their attributes, the text, and the text of every table cell."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.said, self.cells, self.open = [], "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.said += data
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data

    def attributes(self, tag, name):
        return [attrs[name] for each, attrs in self.tags if each == tag and name in attrs]


def write(folder, name, **fields):
    whole = {
        "kind": "iisan-record",
        "schema": 2,
        "experiment": "table-3",
        "scale": "demo",
        "row": "LoRA",
        "seed": 0,
        "status": "finished",
        "protocol": "full ranking of 10 items",
        "data": "abc123",
        "machine": {"processor": "Abacus", "cores": 2},
        "test": {"hr@10": 0.1, "ndcg@10": 0.05},
        "history": [{"epoch": epoch, "hr@10": 0.03 * epoch} for epoch in (1, 2, 3)],
    }
    (folder / f"{name}.json").write_text(json.dumps(whole | fields))


def cost(seconds, size, memory):
    return {"seconds_per_epoch": seconds, "trainable_parameters": size, "peak_memory_bytes": memory}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "records"
    folder.mkdir()
    write(folder, "a0", position=1, efficiency=cost(9, 800, 4e9))
    test = {"hr@10": 0.12, "ndcg@10": 0.05}
    write(folder, "a1", position=1, seed=1, test=test, efficiency=cost(9, 800, 4e9))
    write(folder, "b0", row="IISAN", efficiency=cost(2, 4000, 5e8), gates={"text": [0.4, 0.5], "inter": [0.7]})
    write(folder, "c0", row=EVIL, position=2, status="failed", error="<b>no</b> memory", test={}, history=[])
    write(folder, "d0", experiment="table-4", row="no gate", encoder_parameters={"text": 500})
    write(folder, "d1", experiment="table-4", row="larger", encoder_parameters={"text": 7000}, history=[])
    return folder


@pytest.fixture
def page(folder, tmp_path):
    out = write_report([folder], tmp_path / "out" / "report.html")
    return Page(out.read_text(encoding="utf-8"))


def test_tables_facts_and_failures_are_on_the_page(page):
    assert page.cells[page.cells.index("LoRA") :][:2] == ["LoRA", "11.00 ± 1.41 (2)"]
    assert page.cells.index("IISAN") < page.cells.index("LoRA") < page.cells.index(EVIL)
    for said in ("table-3 (demo)", "table-4 (demo)", "full ranking of 10 items", "abc123", "processor: Abacus"):
        assert said in page.said
    assert "5, of which" not in page.said
    assert "4, of which 1 failed" in page.said
    assert f"{EVIL}, seed 0: <b>no</b> memory" in page.said


def test_the_main_comparison_comes_first_and_fingerprints_are_folded(folder, tmp_path):
    for name in ("layerdrop", "versa-ablation", "figure-4", "table-7"):
        write(folder, f"z-{name}", experiment=name)
    text = write_report([*sorted(folder.glob("*.json"), reverse=True)], tmp_path / "r.html").read_text(
        encoding="utf-8"
    )
    order = ["table-3", "table-4", "table-7", "figure-4", "versa-ablation", "layerdrop"]
    assert re.findall("<h2>(.+?) ", text) == order
    for folded in re.findall("<details>.*?</details>", text, re.DOTALL):
        assert "processor: Abacus" in folded
        assert "full ranking" not in folded
    assert text.count("<details>") == text.count("full ranking") == text.count("Abacus") == len(order)


def test_conclusions_by_hand():
    def said(**rows):
        records = [
            Record(experiment="e", row=row, seed=seed, status="finished", test={"hr@10": value})
            for row, values in rows.items()
            for seed, value in enumerate(values)
        ]
        return conclusion(table(records))

    assert (
        said(A=[0.1], B=[0.12])
        == "Best test HR@10: B, 12.00 %, 2.00 points above A; with one seed, that may be chance."
    )
    # Leads of 1, 2 and 3 points: t = 2 / (1 / √3) = 3.46 with 2 degrees of freedom.
    assert said(A=[0.11, 0.12, 0.13], B=[0.1, 0.1, 0.1]).endswith(
        "A, 12.00 %, 2.00 points above B; over 3 seeds, that may be chance (paired t-test, p = 0.074)."
    )
    assert said(A=[0.111, 0.119, 0.12], B=[0.1, 0.109, 0.11]).endswith(
        "that is more than chance (paired t-test, p = 0.001)."
    )
    assert said(A=[0.2, 0.2], B=[0.1, 0.1]).endswith("that is more than chance (paired t-test, p = 0).")
    assert said(A=[0.2]) == "Best test HR@10: A, 20.00 %, the only row with a result."
    assert conclusion(table([Record(experiment="e", row="A", status="failed")])) == "No run was tested."


def test_names_cannot_become_markup(page):
    assert not {"script", "b"} & {tag for tag, _ in page.tags}
    assert all("<" not in name and '"' not in name for name in page.attributes("a", "download"))


def test_charts_fit_what_the_records_hold(page):
    names = [name for name in page.attributes("a", "download") if name.endswith(".svg")]
    assert names == [
        "table-3-demo-quality-cost.svg",
        "table-3-demo-tpme.svg",
        "table-3-demo-learning.svg",
        "table-3-demo-gates.svg",
        "table-4-demo-hr.svg",
        "table-4-demo-quality-size.svg",
        "table-4-demo-learning.svg",
    ]
    alts = page.attributes("img", "alt")
    assert len(alts) == len(names)
    assert "LoRA 5.00 % at 9 s" in alts[0]
    assert "Line chart of test HR@10 over the encoders' parameters: no gate 10.00 %; larger 10.00 %." in alts
    assert "over the parameters of the text encoder" in page.said
    assert f"Not drawn, as there are no such figures: {EVIL}." in page.said
    # LoRA is worst in time and memory and best in parameters: 0.45 + 0.45; IISAN the reverse: 0.10.
    assert "over these rows alone: IISAN 10.00, LoRA 90.00." in page.said


def test_downloads_are_whole_files(page):
    files = zip(page.attributes("a", "download"), page.attributes("a", "href")[2:], strict=True)
    for name, address in files:
        content = base64.b64decode(address.partition(",")[2])
        if name.endswith(".svg"):
            assert ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
        else:
            assert content.startswith(b"%PDF")
            assert address.startswith("data:application/pdf;")


def test_nothing_is_loaded_from_outside(page, tmp_path):
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://", text)
    assert not {"link", "iframe", "object", "script"} & {tag for tag, _ in page.tags}
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.attributes("img", "src"))
    for source in page.attributes("img", "src"):
        drawing = base64.b64decode(source.partition(",")[2]).decode()
        outside = re.sub(r'xmlns(:\w+)?="http[^"]*"', "", drawing)
        assert "http" not in outside
        assert set(re.findall(r'href="(.)', drawing)) <= {"#"}
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in [a for _, a in page.tags]


def test_the_same_records_give_the_same_page(folder, tmp_path):
    one, two = (write_report([folder], tmp_path / name).read_bytes() for name in ("1.html", "2.html"))
    assert one == two


def test_a_failing_report_leaves_the_old_page_and_no_rest(folder, tmp_path):
    out = tmp_path / "report.html"
    out.write_text("old")
    (folder / "damaged.json").write_text("{")
    with pytest.raises(RunError, match="not readable JSON"):
        write_report([folder], out)
    with pytest.raises(ConfigError, match="no record"):
        write_report([], out)
    assert out.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"records", "report.html"}


def test_records_of_failures_alone_make_a_page(tmp_path):
    write(tmp_path, "a", status="failed", error="stopped", test={}, history=[])
    page = Page(write_report([tmp_path / "a.json"], tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "LoRA, seed 0: stopped" in page.said
    assert not page.attributes("img", "src")


def test_without_jinja2_the_cure_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r'pip install "iisan\[report\]"'):
        write_report([folder], tmp_path / "report.html")


def check_of(folder, name="check", **fields):
    seen = [
        {"name": "equal scores tie", "status": "failed", "seen": EVIL, "values": {}},
        {"name": "equal lists", "status": "finding", "seen": "2%", "values": {"share": 0.02}},
    ]
    whole = {"kind": "iisan-check", "schema": 1, "run": "my-run", "protocol": "full", "failed": 1, "checks": seen}
    (folder / f"{name}.json").write_text(json.dumps(whole | fields))


def test_checks_of_runs_have_a_table_beside_records_and_alone(tmp_path):
    check_of(tmp_path)
    alone = Page(write_report([tmp_path], tmp_path / "report.html").read_text())
    assert alone.cells == [
        "Check",
        "Result",
        "Seen",
        "equal scores tie",
        "failed",
        EVIL,
        "equal lists",
        "finding",
        "2%",
    ]
    assert "Check of my-run" in alone.said
    assert "1 failed." in alone.said
    write(tmp_path, "record")
    both = Page(write_report([tmp_path], tmp_path / "report.html").read_text())
    assert both.attributes("section", "id") == ["s1", "s2"]
    assert both.attributes("a", "href")[:2] == ["#s1", "#s2"]
    assert both.cells[-9:] == alone.cells


def test_a_damaged_or_newer_check_is_refused(tmp_path):
    check_of(tmp_path, checks=None)
    with pytest.raises(RunError, match=r"check.json' is a damaged check"):
        write_report([tmp_path], tmp_path / "report.html")
    check_of(tmp_path, schema=2)
    with pytest.raises(RunError, match="has schema 2; expected schema 1 or older"):
        write_report([tmp_path], tmp_path / "report.html")
