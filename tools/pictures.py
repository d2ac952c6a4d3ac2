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

NBS = Path(__file__).resolve().parents[1] / "nbs"
IMAGES, SIZE = NBS / "images", (240, 150)
# of which stored figure, counted from 0, and from which pixel on (left, top) `scale` times SIZE is cut; the others are shown whole
CUTS = {
    "00_settings": (0, 328, 45),
    "01_geometry": (0, 656, 45),
    "02_images": (1, 648, 65, 8 / 3),
    "03_shapes": (0, 1312, 45),
    "04_keypoints": (0, 0, 318),
    "05_teachers": (0, 0, 45),
    "06_labels": (1, 328, 318),
    "07_masks": (0, 336, 35, 2 / 3),
    "08_model": (0, 328, 45),
    "10_detectors": (0, 0, 45),
    "11_views": (0, 0, 20),
    "12_protocols": (0, 0, 45),
    "14_figures": (6, 0, 35, 5 / 3),
    "15_training": (3, 168, 323),
    "16_widgets": (3, 164, 20),
    "18_report": (0, 0, 0, 4.6),
    "19_cli": (0, 0, 12, 2.5),
    "20_export": (0, 0, 45),
}


def figures(notebook: Path) -> list[Image.Image]:
    "The figures that a notebook has stored, in order."
    found = []
    for cell in nbformat.read(notebook, 4).cells:
        for output in cell.get("outputs", []):
            data = next(
                (
                    output.data[kind]
                    for kind in ("image/png", "image/jpeg")
                    if kind in output.get("data", {})
                ),
                None,
            )
            if data:
                found.append(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    return found


def thumbnail(notebook: Path) -> Image.Image:
    "The part of a chapter's figure to remember it by, at `SIZE`."
    shown = (
        [Image.open(IMAGES / "report.png").convert("RGB")]
        if notebook.stem == "18_report"
        else figures(notebook)
    )  # chapter 18 shows a file
    if notebook.stem not in CUTS:
        return ImageOps.pad(shown[0], SIZE, Image.Resampling.LANCZOS, color="white")
    number, left, top, scale = (*CUTS[notebook.stem], 4 / 3)[:4]
    return shown[number].resize(
        SIZE, Image.Resampling.LANCZOS, (left, top, left + scale * SIZE[0], top + scale * SIZE[1])
    )


def photograph(report: Path):
    "The first screen of a report, as a browser shows it, with the curves unfolded."
    from playwright.sync_api import sync_playwright

    browser_path = (
        os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    )
    with sync_playwright() as p:
        page = p.chromium.launch(executable_path=browser_path, args=["--no-sandbox"]).new_page(
            viewport=dict(width=1120, height=1085)
        )
        page.goto(report.resolve().as_uri())
        page.evaluate(
            "() => document.querySelectorAll('details').forEach(part => { part.open = part.innerText.startsWith('Curves') })"
        )
        page.wait_for_timeout(3000)
        picture = Image.open(io.BytesIO(page.screenshot()))
    picture.convert("RGB").quantize(128).save(IMAGES / "report.png", optimize=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", type=Path)
    report = parser.parse_args().report
    IMAGES.mkdir(exist_ok=True)
    if report:
        photograph(report)
    for notebook in sorted(NBS.glob("[0-9]*.ipynb")):
        thumbnail(notebook).save(IMAGES / f"{notebook.stem}.jpg", quality=80, optimize=True)


if __name__ == "__main__":
    main()
