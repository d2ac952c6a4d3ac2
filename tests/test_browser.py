"""The explorers in JupyterLab, in a real browser.

The tests run cells, move sliders by their keys, and read what the page's figure draws. `make test`
has two explorers over small photographs, and `make test-all` all six of nbs/explore.ipynb.
They need playwright (in the extra `dev`) and Chromium (`apt-get install chromium`, or another
Chrome named by $CHROMIUM), and are skipped without them. $SCREENSHOTS names a folder for pictures
of the explorers, and $THEME a theme of JupyterLab ("JupyterLab Dark") to see them in.
"""

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from spfpn.core.config import Config
from spfpn.core.runs import RunFolder, default_cache
from spfpn.data.sequences import warped_sample_sequences
from spfpn.evaluate.protocol import PredictionCache
from spfpn.evaluate.repeatability import R1
from spfpn.evaluate.results import evaluate_detectors
from spfpn.models.spfpn import SPFPN, save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
SIZE = (96, 128)

_EXTENSIONS = "@jupyterlab/apputils-extension", "@jupyterlab/notebook-extension"
SETTINGS = {
    f"{_EXTENSIONS[0]}/notification": {"checkForUpdates": False, "fetchNews": "false"},
    f"{_EXTENSIONS[1]}/tracker": {"windowingMode": "none"},  # cells out of sight stay in the page
    f"{_EXTENSIONS[0]}/themes": {"theme": os.environ.get("THEME", "JupyterLab Light")},
}
FLAGS = (
    "--no-browser",
    "--allow-root",
    "--ServerApp.ip=127.0.0.1",
    "--ServerApp.port_retries=0",
    "--LabApp.expose_app_in_browser=True",
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
    "--MappingKernelManager.cull_idle_timeout=300",  # should the tests be killed
    "--ServerApp.shutdown_no_activity_timeout=300",
)

SMALL = (
    """
from spfpn.features.factory import make_detector
from spfpn.data.images import sample_images
from spfpn.features.keypoints import Selection
from spfpn.show.image_explorers import HeatmapExplorer
from spfpn.show.warp_explorer import WarpExplorer
images = sample_images(limit=2)
harris = make_detector("harris", Selection(max_keypoints=50))""",
    """
heatmaps = HeatmapExplorer(images, [harris, make_detector("shi")], (96, 128))
heatmaps.controls["points"].value = 40
heatmaps.widget""",
    "heatmaps.controls['radius'].value = 3",
    "WarpExplorer(images, harris, (96, 128)).widget",
    """
import time
import plotly.graph_objects as go
from spfpn.show.widgets import Explorer, slider
class Slow(Explorer):
    def show(self, changed):
        time.sleep(2 if changed else 0)
        if self["work"] == 2:
            raise ValueError("too much work")
        return "done"
Slow(go.Figure(go.Scatter(y=[1, 2])), work=slider("work", 0, 0, 2, 1)).widget""",
)


def first_true(condition, seconds: float):
    "The first true value of `condition()`, or None when none comes."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    return None


def wait(condition, seconds: float, what: str):
    "The first true value of `condition()`; fails when none comes, on a busy machine much later."
    if not (found := first_true(condition, 6 * seconds)):
        pytest.fail(f"{what}: not within {6 * seconds:g} s")
    return found


def number(readout: str) -> float:
    return float(readout.replace("\N{MINUS SIGN}", "-"))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def write(path: Path, cells: list):
    "A notebook that names its kernel: JupyterLab would ask."
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=cells,
            metadata=dict(
                kernelspec=dict(name="python3", display_name="python3", language="python")
            ),
        ),
        path,
    )


def start_jupyterlab(folder: Path, port: int, token: str) -> subprocess.Popen:
    "Start a server whose state lies beside `folder`."
    state = folder.parent / "state"
    places = {
        "JUPYTERLAB_SETTINGS_DIR": state / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": state / "workspaces",
        "JUPYTER_DATA_DIR": state / "data",
        "JUPYTER_RUNTIME_DIR": state / "runtime",
        "JUPYTER_CONFIG_DIR": state / "config",
        "IPYTHONDIR": state / "ipython",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    where = f"--ServerApp.port={port}", f"--ServerApp.root_dir={folder}"
    command = [sys.executable, "-m", "jupyterlab", *FLAGS, *where]
    with open(folder.parent / "lab.log", "wb") as log:
        return subprocess.Popen(
            [*command, f"--IdentityProvider.token={token}"],
            env={**os.environ, **{k: str(v) for k, v in places.items()}},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def answers(server: subprocess.Popen, address: str, log: Path) -> bool:
    "Say whether a server answers; fail when it has ended."
    if server.poll() is not None:
        pytest.fail("JupyterLab ended: " + log.read_text()[-2000:])
    try:
        return urllib.request.urlopen(address, timeout=2).status == 200
    except OSError:
        return False


@contextmanager
def jupyterlab(folder: Path, settings: dict = SETTINGS):
    "JupyterLab over `folder`: yields address and token, and ends with its kernels."
    for name, values in settings.items():
        path = folder.parent / "state" / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    port, token = free_port(), secrets.token_hex(16)
    address, log = f"http://127.0.0.1:{port}", folder.parent / "lab.log"
    server = start_jupyterlab(folder, port, token)
    try:
        wait(lambda: answers(server, f"{address}/api?token={token}", log), 60, "JupyterLab")
        yield address, token
    finally:
        server.terminate()  # it ends its kernels first
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, 9)


class Notebook:
    "A notebook open in JupyterLab in Chromium; `errors` are the console's."

    def __init__(self, page, address: str, token: str, name: str):
        self.page, self.sessions, self.errors = page, f"{address}/api/sessions?token={token}", []
        page.on(
            "console",
            lambda message: self.errors.append(message.text) if message.type == "error" else None,
        )
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(f"{address}/doc/tree/{name}?token={token}")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=360_000)

    def run(self, seconds: float):
        "Run all cells; what went wrong in them is empty."
        wait(self.connected, 60, "a kernel")  # before, JupyterLab would ask for one
        self.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
        wait(self.done, seconds, "the notebook's cells")

    def reload(self):
        "Load the page again, and again when a busy kernel does not give it the widgets in time."
        for _ in range(3):
            self.errors.clear()
            self.page.reload()
            if first_true(self.page.locator(".js-plotly-plot").first.is_visible, 120):
                return
        pytest.fail("no figure, but: " + self.page.inner_text("body")[-2000:])

    def connected(self) -> bool:
        with urllib.request.urlopen(self.sessions, timeout=5) as answer:
            return any(
                s["kernel"]["connections"] and s["kernel"]["execution_state"] == "idle"
                for s in json.load(answer)
            )

    def done(self) -> bool:
        prompts = self.page.evaluate(
            "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(p => p.textContent)"
        )
        return all(re.fullmatch(r"\[\d+\]:", p) for p in prompts) or bool(self.error_outputs())

    def error_outputs(self) -> list[str]:
        kind = "[data-mime-type='application/vnd.jupyter.error']"
        return self.page.evaluate(
            f'[...document.querySelectorAll("{kind}")].map(e => e.textContent)'
        )

    def explorer(self, label: str):
        "The outermost box of the explorer that has a control of that label."
        return Explorer(
            self.page,
            self.page.locator(
                ".jp-OutputArea-output > .widget-vbox, .jp-OutputArea-output > * > .widget-vbox"
            )
            .filter(has=self.page.get_by_text(label, exact=True))
            .first,
        )


class Explorer:
    "An explorer's box in the page."

    def __init__(self, page, box):
        self.page, self.box = page, box
        box.wait_for(timeout=360_000)
        box.scroll_into_view_if_needed()
        wait(
            lambda: box.locator(".js-plotly-plot").first.evaluate(
                "plot => plot._fullData && plot._fullData.length"
            ),
            60,
            "a figure with traces",
        )

    @property
    def message(self) -> str:
        return self.box.locator(".widget-html-content").first.inner_text()

    def control(self, label: str):
        return self.box.locator(".widget-inline-hbox").filter(
            has=self.page.get_by_text(label, exact=True)
        )

    def press(self, label: str, key: str, times: int):
        "Move a slider by its keys; returns what its readout says."
        control = self.control(label)
        readout, handle = control.locator(".widget-readout"), control.locator(".noUi-handle")
        before = readout.inner_text()
        handle.focus()
        for _ in range(times):
            self.page.keyboard.press(key)
        wait(lambda: readout.inner_text() != before, 5, f"{label} at another value than {before}")
        return readout.inner_text()

    def range(self, axis: str) -> list[float]:
        return self.box.locator(".js-plotly-plot").first.evaluate(
            "(plot, axis) => Array.from(plot._fullLayout[axis].range)", axis
        )

    def zoom(self):
        "Drag a rectangle in the first panel."
        at = self.box.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
        x, y = (at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
        self.page.mouse.move(x - 50, y - 40)
        self.page.mouse.down()
        self.page.mouse.move(x + 50, y + 40, steps=5)
        self.page.mouse.up()

    def toggle(self, label: str):
        self.box.get_by_role("button", name=label, exact=True).click()

    def choose(self, label: str, option: str):
        self.control(label).locator("select").select_option(label=option)

    def panel_widths(self) -> list[float]:
        "Widths of the first two panels of the page's figure, in pixels of the screen."
        return self.box.locator(".js-plotly-plot").first.evaluate(
            """plot => [...plot.querySelectorAll('.nsewdrag')].slice(0, 2)
            .map(panel => panel.getBoundingClientRect().width)"""
        )

    def hover(self, trace: int, k: int):
        "Put the mouse on a point of a trace."
        plot = self.box.locator(".js-plotly-plot").first
        place = """(plot, [trace, k]) => {
            plot.scrollIntoView({block: 'center'});
            const t = plot._fullData[trace], layout = plot._fullLayout;
            const [x, y] = [layout['xaxis' + t.xaxis.slice(1)], layout['yaxis' + t.yaxis.slice(1)]];
            const at = plot.getBoundingClientRect();
            return [at.x + x._offset + x.l2p(t.x[k]), at.y + y._offset + y.l2p(t.y[k])] }"""
        x, y = plot.evaluate(place, [trace, k])
        self.page.mouse.move(x + 40, y + 40)
        self.page.mouse.move(x, y, steps=4)

    @property
    def hovered(self) -> str:
        "What appears under the mouse; empty when nothing does."
        return self.box.locator(".js-plotly-plot").first.evaluate(
            """plot => { const text = plot.querySelector('.hoverlayer .hovertext .nums');
            return text ? text.textContent.replaceAll('\\n', '') : '' }"""
        )

    @property
    def busy(self) -> bool:
        "Whether the page shows that the explorer computes."
        return self.box.get_by_role("status").evaluate_all(
            "signs => signs.some(sign => +getComputedStyle(sign).opacity > 0.5)"
        )

    def screenshot(self, name: str):
        if "SCREENSHOTS" in os.environ:
            self.page.wait_for_timeout(2000)
            self.box.screenshot(path=Path(os.environ["SCREENSHOTS"]) / f"{name}.png")

    def pictures(self, figure: int = 0) -> list[str]:
        "The addresses of the pictures in the page's figure."
        return (
            self.box.locator(".js-plotly-plot")
            .nth(figure)
            .evaluate(
                """plot => [...plot.querySelectorAll('.imagelayer image, .layer-below image')]
                .map(i => i.getAttribute('href') || i.getAttribute('xlink:href'))"""
            )
        )

    def points(self, trace: int, figure: int = 0) -> np.ndarray:
        "What a trace of the page's figure draws, [N, 2]."
        plot = self.box.locator(".js-plotly-plot").nth(figure)
        return np.array(
            plot.evaluate(
                """(plot, k) => { const t = plot._fullData[k];
                return Array.from(t.y).map((y, i) => [t.x ? t.x[i] : i, y]) }""",
                trace,
            ),
            float,
        ).reshape(-1, 2)


@pytest.fixture(scope="module")
def small(chromium, tmp_path_factory):
    "Two explorers over Harris and small photographs."
    folder = tmp_path_factory.mktemp("small") / "work"
    folder.mkdir()
    write(folder / "small.ipynb", [nbformat.v4.new_code_cell(source.strip()) for source in SMALL])
    with jupyterlab(folder) as (address, token):
        notebook = Notebook(
            chromium.new_page(viewport=dict(width=1400, height=1600)), address, token, "small.ipynb"
        )
        notebook.run(90)
        yield notebook


def rotated(xy: np.ndarray, degrees: float, size=SIZE) -> np.ndarray:
    "H·x about the center of an image of `size`, +x towards +y; those inside the image."
    a, center = np.radians(degrees), (np.array(size[::-1]) - 1) / 2
    moved = (xy - center) @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) + center
    return moved[((moved >= 0) & (moved <= np.array(size[::-1]) - 1)).all(1)]


def check_points(explorer: Explorer, times: int):
    "A slider to the left leaves fewer points, in the page's figure and in its words."
    before = explorer.points(0)
    shown = int(explorer.press("points", "ArrowLeft", times))
    wait(lambda: len(explorer.points(0)) == shown < len(before), 20, "fewer points")
    wait(lambda: f": {shown} of " in explorer.message, 20, "their number in words")


def check_fits(explorer: Explorer, wide: int):
    "Two panels side by side are each `wide` pixels wide, and nothing is wider than its place."
    page, before = explorer.page, explorer.page.viewport_size

    def fits():
        return explorer.box.evaluate(
            """box => [box.closest('.jp-OutputArea-output'), box, ...box.querySelectorAll(
            '.widget-hbox, .widget-vbox, .js-plotly-plot')].every(
            e => e.scrollWidth <= e.clientWidth + 1)"""
        )

    for width in (1366, 1000):
        page.set_viewport_size(dict(width=width, height=768))
        wait(fits, 20, f"a page of {width} px that holds its figures")
        if width == 1366:
            wait(lambda: min(explorer.panel_widths()) >= wide, 20, f"panels of {wide} px")
    page.set_viewport_size(before)


def check_rotation(explorer: Explorer, size):
    "The points on the warp are those of the photograph, carried by the slider's rotation."
    before, first = (
        explorer.points(1),
        number(explorer.control("rotation °").locator(".widget-readout").inner_text()),
    )
    degrees = number(explorer.press("rotation °", "ArrowRight", 10))
    assert degrees == first + 10

    def right():
        drawn, expected = explorer.points(1), rotated(explorer.points(0), degrees, size)
        return drawn.shape == expected.shape and np.allclose(drawn, expected, atol=1e-3)

    wait(right, 20, "the points at H·x")
    assert explorer.points(1).shape != before.shape or not np.allclose(explorer.points(1), before)


def check_hover(explorer: Explorer, trace: int, k: int):
    "A point tells its place, its score and its rank."
    expected = explorer.points(trace)[k]
    explorer.hover(trace, k)

    def told():  # on its way the mouse has met other points
        found = re.search(r"x (\S+?)y (\S+?)score (\S+?)rank (\d+)", explorer.hovered)
        here = found and np.allclose([float(found[1]), float(found[2])], expected, atol=0.01)
        return found if here else None

    found = wait(told, 10, f"the place, score and rank of the point at {expected}")
    assert float(found[3]) > 0 and int(found[4]) >= k + 1


def test_number_of_points_in_the_browser(small):
    assert small.error_outputs() == []
    heatmaps = small.explorer("points")
    assert len(heatmaps.points(0)) == len(heatmaps.points(1)) == 40  # of each detector
    check_points(heatmaps, 5)
    assert small.errors == []


@pytest.mark.parametrize("label, trace", [("points", 0), ("points", 1), ("rotation °", 1)])
def test_a_point_under_the_mouse_tells_its_score_and_rank(small, label, trace):
    check_hover(small.explorer(label), trace, 2)
    assert small.errors == []


@pytest.mark.parametrize("label", ["points", "rotation °"])
def test_two_panels_fill_a_screen_of_1366_px_and_no_more(small, label):
    check_fits(small.explorer(label), 480)


def test_every_detector_is_offered_in_the_browser(small):
    heatmaps = small.explorer("points")
    offered = heatmaps.control("panel 2").locator("option").all_inner_texts()
    assert {"spfpn-s", "spfpn-l", "aliked", "sift"} <= set(offered)
    heatmaps.choose("panel 2", "spfpn-s")
    wait(lambda: "spfpn-s: " in heatmaps.message, 60, "another detector")
    wait(lambda: len(heatmaps.points(1)) == len(heatmaps.points(0)), 20, "its points")
    heatmaps.choose("panel 2", "shi")
    wait(lambda: "shi: " in heatmaps.message, 20, "the detector before")


def test_random_moves_the_sliders_in_the_browser(small):
    warps, labels = small.explorer("rotation °"), ("rotation °", "scale", "tilt x", "shift y")

    def readouts():
        return [warps.control(label).locator(".widget-readout").inner_text() for label in labels]

    def moved():
        return sum(new != old for new, old in zip(readouts(), before))

    before = readouts()
    warps.toggle("random")
    wait(lambda: moved() >= 3, 20, "other values")  # one may land where it stood
    warps.toggle("reset")
    wait(lambda: list(map(number, readouts())) == [0, 1, 0, 0], 20, "no warp")


def test_a_busy_sign_in_the_browser(small):
    slow = small.explorer("work")
    assert not slow.busy
    for said in ("done", "ValueError: too much work"):
        slow.press("work", "ArrowRight", 1)
        wait(lambda: slow.busy, 2, "a sign that it computes")
        wait(lambda: not slow.busy, 20, "its end")
        assert said in slow.message


def test_rotation_in_the_browser(small):
    check_rotation(small.explorer("rotation °"), SIZE)
    assert small.errors == []


def test_a_page_that_is_loaded_again_shows_what_was_shown(small):
    def shown():
        heatmaps = small.explorer("points")
        wait(
            lambda: f"harris: {len(heatmaps.points(0))} of " in heatmaps.message,
            20,
            "as many points as the words say",
        )
        assert len(heatmaps.pictures()) == 4 and all(
            len(source) > 1500 for source in heatmaps.pictures()
        )  # a blank one has 200 characters
        return heatmaps.points(0), heatmaps.pictures()

    points, pictures = shown()
    small.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    small.reload()
    again, as_before = shown()
    assert np.allclose(again, points) and as_before == pictures
    assert small.errors == []


def test_the_figures_of_a_page_share_one_import(small):
    "Plotly's 5 MB for each figure took so long that some figures were given up."
    for label in ("points", "rotation °", "work"):
        small.explorer(label)
    assert small.page.evaluate("window.spfpnModules.size") == 1


def write_log(run: RunFolder, epochs: int):
    rows = [
        dict(step=10 * e, epoch=e, split=split, name="loss", value=1 / e)
        for e in range(1, epochs + 1)
        for split in ("train", "val")
    ]
    pd.DataFrame(rows).to_parquet(run.phase(1).log)


def make_run(run: RunFolder):
    "A run with a student, two epochs of a log and their pictures, and a measured detector."
    phase = run.phase(1)
    phase.picture(0).parent.mkdir(parents=True)
    save_checkpoint(SPFPN(channels=8), phase.best)
    write_log(run, 2)
    for epoch in (1, 2):
        Image.new("L", (64, 48), 100 * epoch).save(phase.picture(epoch))
    cache = PredictionCache(default_cache(run.path.parent))
    views = {"sequences": warped_sample_sequences(2)}
    evaluate_detectors(["harris"], [R1], views, run.metrics, cache=cache)


@pytest.fixture(scope="module")
def explore(chromium, tmp_path_factory):
    "The explorer notebook in a project of its own, with a run to explore; its cells have run."
    project = tmp_path_factory.mktemp("explore") / "project"
    (project / "nbs").mkdir(parents=True)
    (project / "settings.ini").write_text("[paths]\noutputs = outputs\n")
    run = RunFolder(project / "outputs" / "seen")
    make_run(run)
    cells = nbformat.read(ROOT / "nbs" / "explore.ipynb", 4).cells
    code = [nbformat.v4.new_code_cell(c.source) for c in cells if c.cell_type == "code"]
    write(project / "nbs" / "explore.ipynb", code)
    with jupyterlab(project / "nbs") as server:
        page = chromium.new_page(viewport=dict(width=1400, height=2000))
        notebook = Notebook(page, *server, "explore.ipynb")
        notebook.run(300)
        notebook.seen = run
        yield notebook
        assert notebook.errors == []


@pytest.mark.slow
def test_heatmaps_of_several_detectors(explore):
    assert explore.error_outputs() == []
    heatmaps = explore.explorer("panel 1")
    check_points(heatmaps, 20)
    counts = [len(heatmaps.points(k)) for k in range(4)]
    assert counts == [80] * 4
    check_hover(heatmaps, 2, 10)
    check_fits(heatmaps, 480)
    before = heatmaps.range("xaxis")
    heatmaps.zoom()
    wait(lambda: heatmaps.range("xaxis") != before, 20, "a zoom")
    heatmaps.screenshot("heatmaps")
    assert heatmaps.range("xaxis2") == heatmaps.range("xaxis3") == heatmaps.range(
        "xaxis"
    ) and heatmaps.range("yaxis2") == heatmaps.range("yaxis")


@pytest.mark.slow
def test_masks_beside_a_prediction(explore):
    masks = explore.explorer("σ")
    readout = masks.control("σ").locator(".widget-readout").inner_text()
    assert float(readout) == Config.load().phase1.sigma
    check_fits(masks, 480)
    masks.choose("mask", "smoothed")
    wait(lambda: "values 0.100 to" in masks.message, 20, "a smoothed mask")
    target, before = masks.points(3)[:, 1], masks.box.inner_text()
    assert np.isclose(target.min(), 0.1, atol=1e-3) and target.max() > 0.8
    masks.press("σ", "ArrowRight", 20)
    wait(lambda: masks.points(3)[:, 1].mean() > target.mean(), 20, "a wider blob")
    masks.screenshot("masks")
    assert "Bernoulli KL" in before and masks.box.inner_text() != before


@pytest.mark.slow
def test_warps_matches_and_consistency(explore):
    warps = explore.explorer("rotation °")
    check_rotation(warps, (240, 320))
    check_fits(warps, 480)
    warps.toggle("matches")
    kept = int(
        wait(lambda: re.search(r"LightGlue: (\d+) matches kept", warps.message), 60, "matches")[1]
    )
    wait(lambda: warps.box.locator(".js-plotly-plot").count() == 2, 20, "their figure")
    wait(lambda: len(warps.points(0, figure=1)) == 3 * kept > 0, 20, "a line a match")
    warps.choose("consistency", "huber")
    wait(lambda: "Huber, mean of the map" in warps.message, 20, "the loss")
    warps.screenshot("warps")
    warps.toggle("matches")
    wait(lambda: warps.box.locator(".js-plotly-plot").count() == 2, 20, "consistency alone")
    shown = warps.pictures(figure=1)
    assert len(shown) == 4
    warps.press("rotation °", "ArrowRight", 10)
    wait(
        lambda: all(new != old for new, old in zip(warps.pictures(figure=1)[1:], shown[1:])),
        20,
        "the consistency of another warp",
    )


@pytest.mark.slow
def test_a_pair_is_matched_and_aligned(explore):
    pairs = explore.explorer("inlier px")

    def counts(side: str) -> list[int]:
        found = re.search(rf"{side}: (\d+) matches, (\d+) inliers, (\d+) right", pairs.message)
        return [int(n) for n in found.groups()] if found else []

    matches, inliers, right = wait(lambda: counts("A"), 60, "the matches of a known warp")
    assert 100 < inliers <= matches and right > 0.8 * matches
    assert len(pairs.points(0)) == 3 * inliers, "a line an inlier"
    assert len(pairs.points(1)) == 3 * (matches - inliers)
    pairs.hover(0, 0)
    told = r"x (\S+?)y (\S+?)score .*partner x (\S+?)partner y (\S+?)match score ([\d.]+?)error"
    wait(lambda: re.search(told, pairs.hovered), 10, "partner and score of a match")
    check_fits(pairs, 480)
    pairs.screenshot("pairs")
    shown = pairs.pictures(figure=1)
    pairs.press("opacity", "ArrowRight", 5)
    wait(lambda: pairs.pictures(figure=1)[0] != shown[0], 20, "another overlay")
    pairs.choose("matcher", "mnn")
    before = wait(lambda: (now := counts("A")) and now[0] != matches and now, 60, "mnn's matches")
    pairs.press("ratio", "ArrowLeft", 15)
    wait(lambda: (now := counts("A")) and now[0] < before[0], 60, "fewer by the ratio test")
    pairs.press("points", "ArrowLeft", 20)
    wait(lambda: (now := counts("B")) and now[0] <= 100, 60, "matches of 100 points")
    other = pairs.control("second").locator("option").nth(2).inner_text()
    pairs.choose("second", other)
    wait(lambda: pairs.message.count("do not seem to show the same place") == 2, 60, "words")
    pairs.choose("second", "the first one, warped")
    wait(lambda: counts("A") and counts("B"), 60, "the warp again")


@pytest.mark.slow
def test_training_is_followed(explore):
    training = explore.explorer("runs")
    assert "predictions of epoch 2" in training.message and training.box.locator("img").count() == 1
    shown = training.box.locator("img").get_attribute("src")
    assert training.press("epoch", "ArrowLeft", 1) == "1"
    wait(lambda: "predictions of epoch 1" in training.message, 20, "the epoch before")
    wait(lambda: training.box.locator("img").get_attribute("src") != shown, 20, "its picture")
    training.toggle("follow")
    write_log(explore.seen, 5)
    wait(lambda: len(training.points(0)) == 5, 30, "the new epochs")
    training.screenshot("training")
    training.toggle("follow")


@pytest.mark.slow
def test_results_of_a_pair(explore):
    results = explore.explorer("ε px")
    repeat = len(results.points(0))
    results.press("ε px", "ArrowLeft", 4)
    wait(lambda: len(results.points(0)) < repeat, 20, "fewer points at a smaller ε")
    results.choose("order", "worst first")
    shown = results.message
    wait(lambda: results.message != shown, 20, f"the worst pair after {shown}")
    row = results.box.locator("tbody tr").nth(3)
    sequence, pair = row.locator("td").all_inner_texts()[:2]
    row.click()
    wait(lambda: results.message.startswith(f"{sequence} {pair}"), 20, "the pair of the row")
    wait(lambda: "chosen" in (row.get_attribute("class") or ""), 20, "its mark")
    check_hover(results, 0, 0)
    check_fits(results, 480)
    results.screenshot("results")


@pytest.mark.slow
@pytest.mark.parametrize(
    "label, controls",
    [("panel 1", 11), ("σ", 8), ("rotation °", 14), ("inlier px", 12), ("runs", 4), ("ε px", 4)],
)
def test_every_control_is_reached_by_tab(explore, label, controls):
    "Tab goes through all controls from the first on: nobody needs a mouse to move a slider."
    count = explore.explorer(label).box.evaluate(
        """box => { window.wanted = [...box.querySelectorAll(
            'select, input:not([type=file]), button:not([disabled]):not(.modebar-btn), '
            + '.noUi-target:not([disabled]) .noUi-handle')];
        window.wanted[0].focus(); return window.wanted.length }"""
    )
    for _ in range(2 * count):  # a slider's number is a stop as well
        explore.page.evaluate("() => { document.activeElement.dataset.reached = 'yes' }")
        explore.page.keyboard.press("Tab")
    assert count >= controls
    missed = """() => window.wanted.filter(e => !e.dataset.reached)
        .map(e => e.outerHTML.slice(0, 100))"""
    assert explore.page.evaluate(missed) == []
