"""Time the explorers: milliseconds from a key pressed on a slider to the new picture.

`python tools/reaction.py [--presses 20]` drives JupyterLab in Chromium on a VGA photograph. The
clock is the page's own. It starts when the key goes down, and stops with the first frame after
plotly has drawn for the last time. It needs what the browser tests need.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import nbformat
import pandas as pd
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from test_browser import Notebook, jupyterlab, launch, write

SETUP = """
from spfpn.data.images import sample_images
from spfpn.features.factory import make_detector
from spfpn.features.keypoints import Selection
from spfpn.show.image_explorers import HeatmapExplorer, MaskExplorer
from spfpn.show.warp_explorer import WarpExplorer

vga, photographs, names = (480, 640), sample_images(), ("spfpn-s", "harris", "sift")
student, harris, sift = (make_detector(name, Selection(max_keypoints=300)) for name in names)
"""
EXPLORERS = (
    "HeatmapExplorer(photographs, [student, harris, sift], vga).widget",
    "MaskExplorer(photographs, harris, vga, student).widget",
    "WarpExplorer(photographs, harris, vga, student).widget",
)
SLIDERS = ("points", "opacity", "NMS radius", "σ", "rotation °", "scale")
CLOCK = """plot => {
    window.times = {};
    const start = () => { window.times = {down: performance.now()} };
    const stop = () => requestAnimationFrame(() => { window.times.drawn = performance.now() });
    document.addEventListener('keydown', start, {capture: true});
    plot.on('plotly_afterplot', stop);
}"""


def reactions(explorer, slider: str, presses: int) -> pd.Series:
    "Return the milliseconds of each press."
    explorer.box.locator(".js-plotly-plot").first.evaluate(CLOCK)
    times = []
    for k in range(presses + 2):  # the first two warm up
        explorer.press(slider, "ArrowRight" if k % 2 == 0 else "ArrowLeft", 1)
        explorer.page.wait_for_function("window.times.drawn")
        explorer.page.wait_for_timeout(800)  # a redraw comes in several messages
        times.append(explorer.page.evaluate("() => window.times.drawn - window.times.down"))
    return pd.Series(times[2:])


def measure(presses: int, folder: Path, browser) -> dict[str, pd.Series]:
    "Return the milliseconds of each slider of the explorers, in a notebook in `folder`."
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in (SETUP, *EXPLORERS)]
    write(folder / "reaction.ipynb", cells)
    with jupyterlab(folder) as (address, token):
        page = browser.new_page(viewport={"width": 1400, "height": 2000})
        notebook = Notebook(page, address, token, "reaction.ipynb")
        notebook.run(120)
        if errors := notebook.error_outputs():
            sys.exit("\n".join(errors))
        return {name: reactions(notebook.explorer(name), name, presses) for name in SLIDERS}


def main():
    "Print the median and the slowest reaction of each slider."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--presses", type=int, default=20)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        browser = launch(p)
        times = measure(parser.parse_args().presses, Path(folder), browser)
        browser.close()
    table = pd.DataFrame(
        {name: {"median": t.median(), "slowest": t.max()} for name, t in times.items()}
    )
    print(table.T.round().astype(int).to_string())


if __name__ == "__main__":
    main()
