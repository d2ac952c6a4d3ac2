"""The report of a run, as its reader meets it: one small file that opens alone, on any screen.

The layout is tested in a real browser. That needs playwright and Chromium, as test_browser.py does,
and is skipped without them."""

import re
import shutil
from html.parser import HTMLParser

import pandas as pd
import pytest

from spfpn.apps.workbook import what_comes_next
from spfpn.core.config import Config
from spfpn.core.runs import RunFolder
from spfpn.evaluate.protocol import get_protocol
from spfpn.evaluate.results import evaluate_detectors
from spfpn.models.spfpn import PRETRAINED_DIR
from spfpn.show.gallery import measured_sequences, run_gallery
from spfpn.show.report import write_report

LARGEST = 5_000_000  # bytes: a report is mailed


class Parts(HTMLParser):
    "The tags of a page with their attributes."

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run with a student, its start, a log, two measurements and all pictures."
    run = RunFolder(tmp_path_factory.mktemp("runs") / "street")
    run.phase(3).path.mkdir(parents=True)
    shutil.copy(PRETRAINED_DIR / "spfpn-s.safetensors", run.phase(3).best)
    log = dict(step=[1, 2], epoch=[1.0, 2.0], split=["train", "val"], name="loss", value=[0.9, 0.5])
    pd.DataFrame(log).to_parquet(run.phase(3).log)
    changes = {"evaluate.sequences": "warped-samples", "evaluate.sequence_limit": 2}
    changes |= {"phase1.init_from": "spfpn-s", "labels.teacher": "harris"}
    config = Config().replace(changes)
    scenes = measured_sequences(config, run)
    protocols = [get_protocol(name) for name in ("R1", "H2:own")]
    specs = [run.phase(3).best, "spfpn-s"]
    rows = evaluate_detectors(specs, protocols, {"sequences": scenes}, run.metrics)
    run.record("run", **run.provenance(config))
    run.record("phase3", start="spfpn-s", steps=2)
    known = dict(student=rows.detector.iloc[0], start="spfpn-s", set=scenes.name)
    run.record("evaluate", **known, sequences=len(scenes), pairs=scenes.pair_count())
    write_report(run, run_gallery(config, run))
    return run


@pytest.fixture(scope="module")
def page(run):
    return run.report.read_text(encoding="utf-8")


def test_the_report_is_small_enough_to_mail(run):
    assert run.report.stat().st_size < LARGEST


def test_the_report_loads_nothing(page):
    parts = Parts(page)
    assert not {tag for tag, _ in parts.tags} & {"script", "link", "iframe", "object", "embed"}
    sources = [a["src"] for _, a in parts.tags if "src" in a]
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert not re.findall(r"url\((?!#)|@import", page)  # `#`: another part of the page
    assert not [a["href"] for a in parts.of("a") if ":" in a["href"]]


def test_every_picture_and_chart_has_a_text(page):
    parts = Parts(page)
    assert all(image["alt"] for image in parts.of("img"))
    drawn = [svg for svg in parts.of("svg") if "aria-hidden" not in svg]
    assert drawn and all(svg["role"] == "img" and svg["aria-label"] for svg in drawn)


def test_the_first_screen_answers_and_the_parts_follow_in_order(page):
    order = ["<h1>street", "Too few photographs to tell", "percentage points", "Fine-tuned"]
    order += ["R1 on warped-samples", 'class="best"', "Points before and after", "Best pair"]
    order += ["Worst pair", "Failures", "training step", ">Details</h2>", "Versions"]
    places = [page.index(text) for text in order]
    assert places == sorted(places)


def test_the_words_of_the_table_are_explained_beneath_it(page):
    words = page[page.index('class="words"') :]
    for word in ("R1", "i", "v", "random", "Found again within 3 px"):
        assert f"<dt>{word}</dt><dd>" in words[: words.index("</dl>")]


def test_the_terminal_says_what_comes_next(run):
    said = "\n".join(what_comes_next(run))
    assert "report.html" in said and "Too few photographs to tell" in said
    assert re.search(r"spfpn detect \S+ --detector \S+street/phase3/best.safetensors", said)
    assert "spfpn match" in said


@pytest.mark.parametrize(("width", "theme"), [(390, "light"), (1280, "dark")])
def test_nothing_is_wider_than_the_screen_and_text_is_readable(chromium, run, width, theme):
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(run.report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    style = "getComputedStyle(document.body)"
    ink, ground = (page.evaluate(f"{style}.{name}") for name in ("color", "backgroundColor"))
    page.close()
    assert [url for url in asked if not url.startswith("data:")] == [run.report.as_uri()]
    bright = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (ink, ground)]
    assert (bright[0] > bright[1]) == (theme == "dark") and abs(bright[0] - bright[1]) > 400
