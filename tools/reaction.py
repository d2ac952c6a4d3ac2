#!/usr/bin/env python
"""Milliseconds from a key pressed on a slider to the new picture on the screen: JupyterLab in Chromium, the kernel, and the drawing, on a VGA photograph.

    python tools/reaction.py [--presses 20]

The clock is the page's own. It starts when the key goes down, and stops with the first frame after the last time that plotly drew for it. Needs what the browser tests need."""

import argparse
import sys
import tempfile
from pathlib import Path

import nbformat
import pandas as pd
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from test_browser import Notebook, jupyterlab, launch, write

CELLS = (
    """
from spfpn.features.factory import make_detector
from spfpn.data.images import sample_images
from spfpn.features.keypoints import Selection
from spfpn.show.image_explorers import HeatmapExplorer, MaskExplorer
from spfpn.show.warp_explorer import WarpExplorer
vga, photographs = (480, 640), sample_images()
student, harris, sift = (build(name, Selection(max_keypoints=300)) for name in ("spfpn-s", "harris", "sift"))""",
    "HeatmapExplorer(photographs, [student, harris, sift], vga).widget",
    "MaskExplorer(photographs, harris, vga, student).widget",
    "WarpExplorer(photographs, harris, vga, student).widget",
)
SLIDERS = ("threshold", "opacity", "NMS radius", "σ", "rotation °", "scale")
CLOCK = """plot => { window.times = {};
    document.addEventListener('keydown', () => { window.times = {down: performance.now()} }, {capture: true});
    plot.on('plotly_afterplot', () => requestAnimationFrame(() => { window.times.drawn = performance.now() })) }"""


def reactions(explorer, slider: str, presses: int) -> list[float]:
    "Milliseconds of each press."
    explorer.box.locator(".js-plotly-plot").first.evaluate(CLOCK)
    took = []
    for k in range(presses + 2):  # the first two warm up
        explorer.press(slider, "ArrowRight" if k % 2 == 0 else "ArrowLeft", 1)
        explorer.page.wait_for_function("window.times.drawn")
        explorer.page.wait_for_timeout(800)  # a redraw comes in several messages
        took.append(explorer.page.evaluate("() => window.times.drawn - window.times.down"))
    return took[2:]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--presses", type=int, default=20)
    presses = parser.parse_args().presses
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        work = Path(folder) / "work"
        work.mkdir()
        write(
            work / "reaction.ipynb", [nbformat.v4.new_code_cell(source.strip()) for source in CELLS]
        )
        browser = launch(p)
        with jupyterlab(work) as (address, token):
            notebook = Notebook(
                browser.new_page(viewport=dict(width=1400, height=2000)),
                address,
                token,
                "reaction.ipynb",
            )
            notebook.run(120)
            if notebook.error_outputs():
                sys.exit("\n".join(notebook.error_outputs()))
            rows = {
                slider: pd.Series(reactions(notebook.explorer(slider), slider, presses))
                for slider in SLIDERS
            }
        browser.close()
    print(
        pd.DataFrame(
            {
                slider: dict(median_ms=ms.median(), slowest_ms=ms.max(), presses=len(ms))
                for slider, ms in rows.items()
            }
        )
        .T.round()
        .astype(int)
        .to_string()
    )
