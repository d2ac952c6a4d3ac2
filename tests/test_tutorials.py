"The tutorials, executed as a person would, with small parameters."

import pandas as pd
import papermill
from PIL import Image

from spfpn.core.files import project_root
from spfpn.data.images import sample_images
from spfpn.models.spfpn import SPFPN, save_checkpoint

TUTORIALS = project_root() / "nbs" / "tutorials"
SMALL = dict(height=64, width=96, max_keypoints=40, batch=2, crop=64, repeats=1, device="cpu")


def execute(name, folder, **parameters):
    "The measured rows that a tutorial leaves; an error in any cell fails."
    papermill.execute_notebook(
        str(TUTORIALS / f"{name}.ipynb"),
        str(folder / f"{name}.ipynb"),
        dict(out=str(folder), **parameters),
        kernel_name="python3",
        language="python",
        progress_bar=False,
    )
    return pd.read_parquet(next(folder.rglob("metrics.parquet")))


def test_every_tutorial_is_tested():
    assert sorted(p.stem for p in TUTORIALS.glob("*.ipynb")) == [
        "your_detector",
        "your_loss",
        "your_photographs",
    ]


def test_your_photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for path in sample_images(limit=6).paths:
        Image.open(path).convert("RGB").resize((96, 64)).save(folder / f"{path.stem}.jpg")
    start = save_checkpoint(SPFPN(channels=8), tmp_path / "given" / "mine" / "student.safetensors")
    rows = execute(
        "your_photographs", tmp_path, images=str(folder), start=str(start), phase1_epochs=1, **SMALL
    )
    assert {"given/mine/student", "yours/after/best", "disk", "harris", "random"} == set(
        rows.detector
    )
    assert set(rows["sequence"]) == {"v_chelsea.jpg"}  # the third of six is held back


def test_your_loss(tmp_path):
    rows = execute(
        "your_loss",
        tmp_path,
        limit=4,
        phase1_epochs=1,
        phase2_epochs=1,
        matcher="nearest",
        sequence_limit=1,
        **SMALL,
    )
    assert {
        "loss/huber/best",
        "loss/correlated/best",
        "loss/phase1/best",
        "harris",
        "random",
    } == set(rows.detector)


def test_your_detector(tmp_path):
    rows = execute("your_detector", tmp_path, sequence_limit=1, compared="shi")
    means = rows.groupby("detector")["repeatability@3"].mean()
    assert means[f"{tmp_path}/hessian.py:hessian"] > 2 * means["random"]
