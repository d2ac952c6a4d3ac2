"""Photograph the first screen of a run's report.html for the chapter on the report.

`python tools/pictures.py outputs/quick/report.html` writes nbs/images/report.png. It needs
playwright, and Chromium: a browser named by $CHROMIUM, or `chromium` on the path.
"""

import io
import os
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).resolve().parents[1] / "nbs" / "images" / "report.png"


def photograph(report: Path):
    "Save the first screen of a report as a browser shows it."
    browser = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1280, "height": 1130})
        page.goto(report.resolve().as_uri())
        picture = Image.open(io.BytesIO(page.screenshot()))
    picture.convert("RGB").quantize(128).save(PICTURE, optimize=True)


if __name__ == "__main__":
    photograph(Path(sys.argv[1]))
