"""The small pictures of the chapter map, nbs/images/NN_name.jpg, cut from the figures that the chapters have stored: `python tools/pictures.py`.

`--report FILE` also photographs the first screen of a run's report.html for chapter 18, in Chromium (playwright; a browser named by $CHROMIUM, or `chromium` on the path)."""
import argparse
import base64
import io
import os
import shutil
from pathlib import Path

import nbformat
from PIL import Image, ImageOps

NBS = Path(__file__).resolve().parents[1]/"nbs"
IMAGES, SIZE = NBS/"images", (240, 150)
# where the first stored figure, whole, is not the one to remember: its number, counted from 0 (or -1, the last), and the part to cut out (left, top, right, bottom, in shares)
CHOSEN = {"00_settings": (0, (.34, .52, 1, 1)), "02_images": (0, (0, 0, .5, .5)), "03_shapes": (0, (0, 0, .6, 1)), "05_teachers": (0, (0, 0, .5, .5)), "06_labels": (0, (0, 0, .5, 1)), "14_figures": (7, (0, 0, 1, 1)),
          "16_widgets": (3, (0, 0, 1, 1)), "04_keypoints": (0, (0, .5, 1, 1)), "08_model": (0, (.34, 0, 1, 1)), "15_training": (2, (0, 0, 1, 1))}


def figures(notebook: Path) -> list[Image.Image]:
    "The figures that a notebook has stored, in order."
    found = []
    for cell in nbformat.read(notebook, 4).cells:
        for output in cell.get("outputs", []):
            data = next((output.data[kind] for kind in ("image/png", "image/jpeg") if kind in output.get("data", {})), None)
            if data: found.append(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    return found


def thumbnail(notebook: Path) -> Image.Image:
    "The figure of a chapter to remember, at `SIZE`."
    number, part = CHOSEN.get(notebook.stem, (0, (0, 0, 1, 1)))
    if notebook.stem == "18_report": shown = Image.open(IMAGES/"report.png").convert("RGB")     # its figure is a picture of its own
    else: shown = figures(notebook)[number]
    box = tuple(round(share * side) for share, side in zip(part, shown.size * 2))
    return ImageOps.fit(shown.crop(box), SIZE, Image.Resampling.LANCZOS)


def photograph(report: Path):
    "The first screen of a report, as a browser shows it."
    from playwright.sync_api import sync_playwright
    browser_path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as p:
        page = p.chromium.launch(executable_path=browser_path, args=["--no-sandbox"]).new_page(viewport=dict(width=1000, height=1250))
        page.goto(report.resolve().as_uri())
        page.wait_for_timeout(3000)
        picture = Image.open(io.BytesIO(page.screenshot()))
    picture.convert("RGB").quantize(128).save(IMAGES/"report.png", optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path)
    report = parser.parse_args().report
    IMAGES.mkdir(exist_ok=True)
    if report: photograph(report)
    for notebook in sorted(NBS.glob("[0-9]*.ipynb")): thumbnail(notebook).save(IMAGES/f"{notebook.stem}.jpg", quality=80, optimize=True)


if __name__ == "__main__": main()
