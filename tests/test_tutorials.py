"The tutorials, executed as a person would, with small parameters."

import pandas as pd
import papermill
from PIL import Image

from spfpn.core.files import project_root
from spfpn.data.images import sample_images
from spfpn.models.spfpn import SPFPN, save_checkpoint

TUTORIALS = project_root() / "nbs" / "tutorials"
SMALL = {
    "data.height": 64,
    "data.width": 96,
    "labels.max_keypoints": 40,
    "labels.matcher": "mnn",
    "train.batch_size": 2,
    "train.views_per_epoch": 1,
    "augment.crop": 64,
}


def execute(name, folder, **parameters):
    "The measured rows that a tutorial leaves; an error in any cell fails."
    papermill.execute_notebook(
        str(TUTORIALS / f"{name}.ipynb"),
        str(folder / f"{name}.ipynb"),
        {"out": str(folder), "device": "cpu", **parameters},
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
        "your_photographs",
        tmp_path,
        images=str(folder),
        init_from=str(start),
        hold_back=4,
        epochs=1,
        overrides=SMALL,
    )
    assert {"given/mine/student", "yours/after/last", "disk", "harris", "random"} == set(
        rows.detector
    )
    assert set(rows["sequence"]) == {"v_chelsea.jpg"}  # the third of six is held back


def test_your_loss(tmp_path):
    small = SMALL | {"labels.max_reproj_error": 0}
    rows = execute("your_loss", tmp_path, limit=4, epochs=1, sequence_limit=1, overrides=small)
    trained = {"loss/huber/best", "loss/correlation/best"}
    assert trained | {"spfpn-s", "harris", "random"} == set(rows.detector)


def test_your_detector(tmp_path):
    rows = execute("your_detector", tmp_path, sequence_limit=1, compared="shi")
    means = rows.groupby("detector")["repeatability@3"].mean()
    assert means[f"{tmp_path}/hessian.py:hessian"] > 2 * means["random"]
