"Six files that a stranger would write: each works by its name, with no edit to the library."

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from spfpn.apps.cli import app
from spfpn.core.runs import RunFolder
from spfpn.data.images import sample_images
from spfpn.labels.store import LabelStore
from spfpn.models.spfpn import checkpoint_metadata, load_checkpoint

FILES = {
    "teacher.py": """
import torch.nn.functional as F
from torch import nn

from spfpn.data.images import to_gray
from spfpn.features.extractor import Extractor
from spfpn.features.keypoints import Selection


class Contrast(Extractor):
    name, dim, cell = "contrast", 8, 8
    tags = {"extractor": True, "heatmap": True}

    def __init__(self, selection=Selection(), device="cpu", **options):
        super().__init__(nn.Conv2d(1, self.dim, 8, 8), selection, device, **options)

    def dense(self, images):
        gray = to_gray(images)
        mean = F.avg_pool2d(gray, 5, 1, 2)
        return (F.avg_pool2d(gray**2, 5, 1, 2) - mean**2).clamp(0, 1), self.net(gray)
""",
    "detector.py": """
import cv2
import numpy as np


def detect(image):
    response = np.abs(cv2.GaussianBlur(image, (0, 0), 1.6) - cv2.GaussianBlur(image, (0, 0), 2.6))
    y, x = np.nonzero(response > 0.02)
    return np.stack([x, y, response[y, x]], 1)
""",
    "head.py": """
import torch.nn.functional as F
from torch import nn


class LinearHead(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.last = nn.Conv2d(channels, 1, 1)

    def forward(self, maps, gray):
        return F.interpolate(self.last(maps[0]), gray.shape[-2:], mode="bilinear")
""",
    "keypoint_loss.py": """
from spfpn.core.registry import KEYPOINT_LOSSES


@KEYPOINT_LOSSES.register("dice", mask="blob")
def dice(logits, mask, valid=None):
    if valid is not None:
        logits, mask = logits.masked_fill(~valid, -20), mask * valid
    p = logits.sigmoid()
    return 1 - 2 * (p * mask).sum() / (p.square() + mask.square()).sum().clamp_min(1)
""",
    "consistency_loss.py": """
import torch.nn.functional as F


def loss(pair):
    carried, valid = pair.carried()
    a, b = ((x.sigmoid() * valid).flatten(1) for x in (carried, pair.logits_warped))
    return 1 - F.cosine_similarity(a, b).mean()
""",
    "protocol.py": """
from dataclasses import dataclass

from spfpn.core.registry import PROTOCOLS
from spfpn.evaluate.protocol import PlanarPairProtocol
from spfpn.features.keypoints import Selection


@dataclass(frozen=True)
class Coverage(PlanarPairProtocol):
    def measure(self, first, second, H):
        return {"coverage": len((first.keypoints.xy // 32).unique(dim=0)) / 80}


PROTOCOLS.register("Coverage", Coverage("Coverage", Selection(max_keypoints=1000)))
""",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "The six files, and the path of each."
    folder = tmp_path_factory.mktemp("files")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return lambda name: str(folder / name)


def spfpn(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_run_of_six_files(files, tmp_path):
    values = {
        "data.limit": 4,
        "data.height": 64,
        "data.width": 96,
        "labels.teacher": files("teacher.py") + ":Contrast",
        "labels.matcher": "mnn",
        "labels.max_keypoints": 60,
        "labels.max_reproj_error": 0,
        "model.head": files("head.py") + ":LinearHead",
        "model.fpn_channels": 8,
        "phase1.init_from": "",
        "phase1.loss": files("keypoint_loss.py") + ":dice",
        "phase1.epochs": 1,
        "phase2.loss": files("consistency_loss.py"),
        "phase2.epochs": 1,
        "train.batch_size": 2,
        "train.views_per_epoch": 1,
        "evaluate.sequence_limit": 1,
        "evaluate.detectors": files("detector.py") + ",harris",
        "evaluate.protocols": files("protocol.py") + ":Coverage,R1",
        "run.device": "cpu",
    }
    options = [part for key, value in values.items() for part in ("-p", f"{key}={value}")]
    spfpn("run", "--profile", "quick", "--run", tmp_path / "mine", *options)
    run = RunFolder(tmp_path / "mine")
    assert set(LabelStore(run.labels).summary()["teacher"]) == {"contrast"}
    assert "LinearHead" in json.dumps(load_checkpoint(run.phase(2).best).config)
    made_with = checkpoint_metadata(run.phase(2).best)["settings"]
    assert made_with["phase1.loss"].endswith("keypoint_loss.py:dice")
    assert made_with["phase2.loss"].endswith("consistency_loss.py")
    log = pd.read_parquet(run.phase(1).log)
    assert log.query("split == 'train' and name == 'loss'")["value"].between(0, 1).all()  # Dice's
    rows = pd.read_parquet(run.metrics)
    measured = rows[rows.protocol == "Coverage"]
    assert measured.coverage.between(0, 1).all() and measured.detector.nunique() >= 4
    assert any("detector.py" in name for name in measured.detector)


@pytest.mark.parametrize("name", ["detector.py", "teacher.py:Contrast"])
def test_a_detector_and_a_teacher_are_measured_by_a_protocol_of_ones_own(files, tmp_path, name):
    shown = spfpn(
        "evaluate",
        *("--protocol", files("protocol.py") + ":Coverage", "--detector", files(name)),
        *("--sequences", "warped-samples", "--limit", 1, "--metrics", tmp_path / "m.parquet"),
    )
    assert "coverage" in shown
    assert set(pd.read_parquet(tmp_path / "m.parquet").protocol) == {"Coverage"}


def test_a_teacher_detects_and_describes(files):
    from spfpn.features.factory import make_detector
    from spfpn.features.keypoints import Selection

    image = sample_images().load(0, (64, 96))[0][None]
    teacher = make_detector(files("teacher.py") + ":Contrast", Selection(max_keypoints=20))
    (found,) = teacher.detect_and_describe(image)
    assert found.descriptors.shape == (len(found), 8)
    assert 10 < len(found) <= 20


def test_a_loss_that_is_not_there_is_refused_before_any_work(tmp_path):
    (tmp_path / "bad.py").write_text("def loss(pair):\n    return pair.logits\n")
    result = CliRunner().invoke(
        app,
        ["run", "--run", str(tmp_path / "bad"), "-p", f"phase2.loss={tmp_path}/bad.py:missing"],
    )
    assert result.exit_code == 2
    assert "bad.py" in result.output and "missing" in result.output
    assert not (tmp_path / "bad" / "labels").exists()
