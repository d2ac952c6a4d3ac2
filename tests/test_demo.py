"""The page that matches two photographs in the browser, in Chromium.

It needs playwright, Chromium as in test_browser.py, and the npm package onnxruntime-web, and is
skipped without them. $SCREENSHOTS names a folder for pictures of the page.
"""

import functools
import http.server
import os
import re
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from spfpn.runtime import light
from spfpn.runtime.matching import match_descriptors

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
book = pytest.importorskip("book", reason="needs the extra docs")
NOT_THE_SAME = "These photographs do not seem to show the same place."
SECONDS = 120  # for the network, on a busy machine

DETECT = """async ([name, settings]) => {
    const demo = await import("./demo.js");
    const picture = await demo.readPicture(await (await fetch(name)).blob(), name);
    const found = await demo.detect(picture, settings);
    return [found.xy, found.scores, found.descriptors].map((values) => [...values]);
}"""


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    "The built page."
    folder = tmp_path_factory.mktemp("site") / "demo"
    try:
        book.build_demo(folder)
    except book.DemoError as error:
        pytest.skip(str(error))
    return folder


@pytest.fixture(scope="module")
def address(folder):
    "The address of a server of the page."
    handler = functools.partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()


@pytest.fixture(scope="module")
def page(chromium, address):
    "The page with its example pair; it fails for errors, and for requests to other hosts."
    page = chromium.new_page(viewport=dict(width=1280, height=900))
    page.set_default_timeout(1000 * SECONDS)
    errors, requests = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.context.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    wait_for_result(page)
    yield page
    assert errors == []
    assert other_hosts(requests) == []
    assert any(url.endswith(".onnx") for url in requests), "the worker's requests were not seen"


def wait_for_result(page):
    "Wait until the page has matched what it shows."
    page.wait_for_selector("body[aria-busy=false]")
    page.wait_for_function("document.getElementById('message').textContent.includes('inliers')")


def other_hosts(urls: list[str]) -> list[str]:
    "Return the addresses that lead to another machine."
    local = {"data", "blob"}
    parts = [(url, urlsplit(url)) for url in urls]
    return [url for url, part in parts if part.scheme not in local and part.hostname != "127.0.0.1"]


def state(page) -> dict:
    "Return counts of the page, and its homography."
    return page.evaluate(
        """async () => { const { pairs, inliers, matrix } = (await import("./demo.js")).state();
        return { matches: pairs.length, inliers: inliers.length, matrix } }"""
    )


def example_corners() -> tuple[np.ndarray, np.ndarray]:
    "Return the corners of the second example, and where they lie in the first."
    w, h = book.EXAMPLE_SIZE
    second = np.array([[0, 0], [w - 1, 0], [w - 1, h - 1], [0, h - 1]], float)
    return project(np.linalg.inv(book.EXAMPLE_HOMOGRAPHY), second), second


def project(H, xy: np.ndarray) -> np.ndarray:
    x = np.pad(xy, ((0, 0), (0, 1)), constant_values=1) @ np.asarray(H, float).reshape(3, 3).T
    return x[:, :2] / x[:, 2:]


def detect(page, name: str, points: int, radius: int = 2) -> list[np.ndarray]:
    "Return the points, scores and descriptors that the page finds in a file beside it."
    settings = {"maxKeypoints": points, "nmsRadius": radius}
    xy, scores, descriptors = page.evaluate(DETECT, [name, settings])
    return [np.reshape(xy, (-1, 2)), np.array(scores), np.reshape(descriptors, (-1, 128))]


def slide(page, name: str, value: float):
    "Move a slider, as the mouse does."
    page.locator(f"#{name}").fill(str(value))
    wait_for_result(page)


def write_gray(path: Path):
    "Write a photograph with a part that has no contrast."
    pixels = np.asarray(Image.open(path.parent / "coffee.png").convert("L")).copy()
    pixels[:, :120] = 90
    Image.fromarray(pixels[:301, :403]).save(path)


@pytest.mark.parametrize("name, radius", [("gray.png", 2), ("coffee.png", 2), ("gray.png", 4)])
def test_the_page_finds_the_keypoints_of_the_library(page, folder, name, radius):
    if name == "gray.png":
        write_gray(folder / name)
    xy, scores, descriptors = detect(page, name, 300, radius)
    detector = light.load(max_keypoints=300, nms_radius=radius)
    expected = detector.detect(folder / name, describe=True)
    assert len(xy) == len(expected) > 100
    nearest = np.linalg.norm(xy[:, None] - expected.xy[None], axis=-1).argmin(1)
    assert sorted(nearest) == list(range(len(xy))), "one to one"
    assert np.abs(xy - expected.xy[nearest]).max() <= 0.05
    assert np.allclose(scores, expected.scores[nearest], atol=1e-3)  # WebAssembly rounds otherwise
    assert (descriptors * expected.descriptors[nearest]).sum(1).min() > 0.999


@pytest.mark.parametrize("ratio, score", [(1, -1), (0.9, 0.5)])
def test_the_page_finds_the_matches_of_the_library(page, ratio, score):
    rng = np.random.default_rng(0)
    one, two = (rng.normal(size=(n, 128)).astype(np.float32) for n in (60, 50))
    two[:40] = one[:40] + rng.uniform(0, 2, (40, 1)).astype(np.float32) * two[:40]
    one, two = (d / np.linalg.norm(d, axis=1, keepdims=True) for d in (one, two))
    pairs = page.evaluate(
        """async ([one, two, ratio, minScore]) => (await import("./demo.js")).match(
        Float32Array.from(one), Float32Array.from(two), { ratio, minScore }).pairs""",
        [one.ravel().tolist(), two.ravel().tolist(), ratio, score],
    )
    expected, _ = match_descriptors(one, two, score, ratio)
    assert len(expected) > 10 and pairs == expected.tolist()


def test_a_homography_is_found_among_wrong_matches(page):
    rng = np.random.default_rng(0)
    xy0 = rng.uniform(0, 400, (100, 2))
    xy1 = project(book.EXAMPLE_HOMOGRAPHY, xy0)
    xy1[:60] = rng.uniform(0, 400, (60, 2))
    found = page.evaluate(
        """async ([xy0, xy1]) => (await import("./demo.js")).homography(xy0, xy1)""",
        [xy0.tolist(), xy1.tolist()],
    )
    assert set(range(60, 100)) <= set(found["inliers"])
    first, second = example_corners()
    assert np.abs(project(found["matrix"], first) - second).max() < 0.5


def test_the_example_pair_aligns(page):
    first, second = example_corners()
    error = np.linalg.norm(project(state(page)["matrix"], first) - second, axis=1)
    assert error.max() < 2
    assert page.locator("#overlay").is_visible()
    for k in range(2):
        assert re.search(r"500 keypoints in \d+ ms", page.inner_text(f"#count{k}"))
    if pictures := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(pictures) / "demo.png", full_page=True)


def test_sliders_change_the_result(page):
    before = state(page)
    slide(page, "ratio", 0.8)
    assert 20 <= state(page)["matches"] < before["matches"]
    slide(page, "ratio", 1)
    slide(page, "points", 200)
    assert "200 keypoints" in page.inner_text("#count0")
    slide(page, "points", 500)
    assert state(page) == before


def test_other_photographs_give_the_sentence(page, tmp_path):
    data = pytest.importorskip("skimage.data")
    for k, name in enumerate(("chelsea", "rocket")):
        Image.fromarray(getattr(data, name)()).save(tmp_path / f"{name}.jpg", quality=95)
        page.set_input_files(f"#file{k}", tmp_path / f"{name}.jpg")
        page.wait_for_function(f"/{name}.*keypoints/.test({f'count{k}'}.textContent)")
    wait_for_result(page)
    assert NOT_THE_SAME in page.inner_text("#message")
    assert page.locator("#overlay").is_hidden() and state(page)["matrix"] is None
    page.click("#examples")
    page.wait_for_selector("#overlay")
    wait_for_result(page)
    assert NOT_THE_SAME not in page.inner_text("#message")


def test_a_file_that_is_no_photograph_is_named(page, tmp_path):
    (tmp_path / "notes.png").write_text("no photograph")
    page.set_input_files("#file0", tmp_path / "notes.png")
    page.wait_for_selector("#message.error")
    assert "cannot read notes.png" in page.inner_text("#message")
    page.click("#examples")
    page.wait_for_selector("#message:not(.error)")
    wait_for_result(page)


def test_all_controls_have_names_and_are_reached_by_tab(page):
    wanted = page.evaluate(
        """() => [...document.querySelectorAll("main button:enabled, main input")].map(e => e.id)"""
    )
    reached = set()
    page.locator("header a").focus()
    for _ in range(len(wanted)):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert len(wanted) >= 8 and reached == set(wanted)
    names = "e => e.labels?.[0]?.textContent || e.getAttribute('aria-label') || e.textContent"
    assert all(page.locator(f"#{name}").evaluate(names).strip() for name in wanted)


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_page(page, width):
    page.set_viewport_size(dict(width=width, height=844))
    page.wait_for_function(f"document.documentElement.scrollWidth <= {width}")


def test_the_page_works_without_a_network_once_loaded(page):
    page.context.set_offline(True)
    try:
        page.click("#examples")
        slide(page, "points", 300)
        assert state(page)["matrix"]
    finally:
        page.context.set_offline(False)


def test_the_page_is_left_out_without_npm(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(book, "RUNTIME_CACHE", tmp_path / "npm" / "package")
    monkeypatch.setattr(book, "HTML", tmp_path)
    monkeypatch.setattr(book.shutil, "which", lambda name: None)
    assert not book.try_demo()
    assert "npm is not installed" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
