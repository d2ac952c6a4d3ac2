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


def run_notebook(name, folder, **parameters):
    "The tutorial with its outputs; an error in any cell fails."
    return papermill.execute_notebook(
        str(TUTORIALS / f"{name}.ipynb"),
        str(folder / f"{name}.ipynb"),
        parameters,
        kernel_name="python3",
        language="python",
        progress_bar=False,
    )


def execute(name, folder, **parameters):
    "The measured rows that a tutorial leaves."
    run_notebook(name, folder, out=str(folder), device="cpu", **parameters)
    return pd.read_parquet(next(folder.rglob("metrics.parquet")))


def test_every_tutorial_is_tested():
    assert sorted(p.stem for p in TUTORIALS.glob("*.ipynb")) == [
        "align_two_photographs",
        "your_detector",
        "your_loss",
        "your_photographs",
    ]


def test_align_two_photographs(tmp_path):
    photo = Image.open(sample_images(("coffee.png",)).paths[0]).convert("RGB").resize((400, 300))
    photo.save(tmp_path / "a.jpg")
    photo.rotate(12).crop((40, 30, 360, 270)).save(tmp_path / "b.jpg")
    files = dict(first=str(tmp_path / "a.jpg"), second=str(tmp_path / "b.jpg"))
    done = run_notebook("align_two_photographs", tmp_path, **files)
    outputs = [output for cell in done.cells for output in cell.get("outputs", ())]
    said = "".join(output.get("text", "") for output in outputs)
    assert said.count("3×3 homography") >= 2 and "pixels off" not in said  # no truth is known
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert pictures == 5


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
