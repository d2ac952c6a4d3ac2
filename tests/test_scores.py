"""One scale for all scores: a threshold selects as many points after any training."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from spfpn.core.config import Config
from spfpn.core.registry import CONSISTENCY_LOSSES, KEYPOINT_LOSSES
from spfpn.data.images import sample_images
from spfpn.features.keypoints import Selection, extract_keypoints
from spfpn.features.student import StudentDetector, calibrate_scores
from spfpn.labels.labeling import make_labels
from spfpn.labels.pairs import make_pairs
from spfpn.models.spfpn import (
    SPFPN,
    binomial_blur,
    checkpoint_metadata,
    load_checkpoint,
    save_checkpoint,
)
from spfpn.train.phases import make_pseudo_labels, train_phase1, train_phase2

THRESHOLDS = (0.05, 0.1, 0.3)
TINY = Config.from_flat(
    {
        "data.limit": 6,
        "data.height": 120,
        "data.width": 160,
        "labels.teacher": "aliked",
        "labels.matcher": "mnn",
        "labels.max_keypoints": 150,
        "train.batch_size": 4,
        "train.views_per_epoch": 4,
        "phase1.epochs": 2,
        "phase1.lr": 3e-3,
        "phase1.sigma": 1.2,
        "phase2.epochs": 1,
        "phase2.sigma": 1.2,
        "phase2.adaptation_views": 1,
        "phase2.adaptation_scales": (1.0,),
        "model.fpn_channels": 8,
        "model.pretrained": False,
        "augment.shapes_per_view": 0,
    }
)


@pytest.fixture(scope="module")
def photographs():
    "Sample photographs that calibration does not use."
    images = sample_images()
    return [images.load(i, (360, 480))[0][None] for i in (0, 2, 3, 7, 8, 11)]


def counts(model, photographs, thresholds=THRESHOLDS):
    "The number of points above each threshold, over the photographs."
    detector = StudentDetector(model, Selection(10**5))
    scores = torch.cat([detector.detect(image)[0].scores for image in photographs])
    return (scores[:, None] > torch.tensor(thresholds)).sum(0).double()


@pytest.fixture(scope="module")
def reference(photographs):
    return counts(load_checkpoint("spfpn-s"), photographs)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    make_labels(TINY, folder / "labels")
    make_pairs(TINY, folder / "pairs")
    return folder


@pytest.fixture(scope="module")
def first(stores):
    "Checkpoints of a phase 1 by its loss, each trained once."
    made = {}

    def train(loss):
        if loss not in made:
            config = TINY.replace({"phase1.loss": loss})
            made[loss] = train_phase1(config, stores / "labels", stores / loss, progress=False)
        return made[loss]

    return train


def is_on_the_scale(path, photographs, reference, factor=3):
    "A student of seconds may have fewer peaks in all than are wanted: then all must be above."
    *found, peaks = counts(load_checkpoint(path), photographs, (*THRESHOLDS, 0.0))
    for points, wanted in zip(found, reference.clamp(max=peaks)):
        assert wanted / factor < points < wanted * factor, (found, reference)


@pytest.mark.parametrize("loss", sorted(KEYPOINT_LOSSES.names()))
def test_phase_1_is_on_the_scale_with_any_loss(loss, first, photographs, reference):
    is_on_the_scale(first(loss), photographs, reference)


@pytest.mark.parametrize("loss", sorted(CONSISTENCY_LOSSES.names()))
def test_phase_2_on_pairs_is_on_the_scale_with_any_loss(
    loss, first, stores, photographs, reference
):
    config = TINY.replace({"phase2.loss": loss, "phase2.targets": "matched_pairs"})
    path = train_phase2(config, stores / "pairs", first("bce"), stores / loss, progress=False)
    is_on_the_scale(path, photographs, reference)
    validation = checkpoint_metadata(path)["validation"]
    assert validation["precision"] > 0.05 and validation["recall"] > 0.05, "not a flat 0"


@pytest.mark.parametrize("loss", ["bce", "focal"])
def test_phase_2_on_its_own_labels_is_on_the_scale(loss, first, stores, photographs, reference):
    config, own = TINY.replace({"phase2.targets": "pseudo_labels"}), stores / f"own-{loss}"
    make_pseudo_labels(config, own, first(loss))
    path = train_phase2(config, own, first(loss), stores / f"self-{loss}", progress=False)
    is_on_the_scale(path, photographs, reference)


def test_the_bundled_students_share_the_scale(photographs, reference):
    small, large = (load_checkpoint(name) for name in ("spfpn-s", "spfpn-l"))
    assert (small.scale, small.shift, large.scale, large.shift) == (1, 0, 1, 0)
    ratio = counts(large, photographs) / reference
    assert (ratio[:2] - 1).abs().max() < 0.15 and ratio[2] > 0.5
    calibrate_scores(small)
    assert abs(small.scale - 1) < 0.01 and abs(small.shift) < 0.01


@pytest.mark.parametrize("scale, shift", [(0.2, -3.0), (5.0, 4.0), (0.3, 0.0)])
def test_calibration_undoes_the_range_of_masks_and_keeps_the_order(scale, shift, photographs):
    student, plain = load_checkpoint("spfpn-s"), load_checkpoint("spfpn-s")
    student.rescale(scale, shift)
    calibrate_scores(student)
    assert student.scale * scale == pytest.approx(1, abs=1e-2)
    choice = Selection(200)
    with torch.no_grad():
        expected = extract_keypoints(plain.heatmap(photographs[0]), choice)[0]
        found = extract_keypoints(student.heatmap(photographs[0]), choice)[0]
    assert torch.allclose(found.scores, expected.scores, atol=2e-3)
    same = (found.xy == expected.xy).all(1).float().mean()
    assert same > 0.97, "rounding may change the order of near ties"


def test_a_student_without_peaks_stays_as_it_is():
    student = SPFPN(channels=8).eval()
    torch.nn.init.zeros_(student.head.last.weight)
    calibrate_scores(student)
    assert (student.scale, student.shift) == (1, 0)


def old_checkpoint(path, **header):
    "A checkpoint with the header of an earlier version."
    saved = save_checkpoint(SPFPN(channels=8), path)
    with safe_open(saved, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        facts = {key: json.loads(value) for key, value in file.metadata().items()}
    facts = {key: value for key, value in facts.items() if key not in ("scale", "shift")}
    save_file(tensors, path, {key: json.dumps(value) for key, value in (facts | header).items()})
    return path


def test_older_checkpoints_keep_their_scores(tmp_path):
    image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    first = load_checkpoint(old_checkpoint(tmp_path / "one.safetensors", low=0.0, high=1.0))
    with torch.no_grad():
        logits = binomial_blur(first(image))
        assert torch.equal(first.heatmap(image), logits.sigmoid())
    pairs = load_checkpoint(old_checkpoint(tmp_path / "two.safetensors", low=0.1, high=0.9))
    middle = torch.logit(torch.tensor([0.3, 0.5, 0.7]))
    before = (middle.sigmoid() - 0.1) / 0.8
    assert torch.allclose(torch.sigmoid(pairs.scale * middle + pairs.shift), before, atol=0.02)
    with torch.no_grad():
        assert (pairs.heatmap(image) > 0).all(), "no score is clamped"


def test_the_calibration_is_kept_in_the_file(tmp_path):
    student = SPFPN(channels=8).eval()
    student.scale, student.shift = 0.7, -2.5
    path = save_checkpoint(student, tmp_path / "s.safetensors")
    assert {"scale": 0.7, "shift": -2.5}.items() <= checkpoint_metadata(path).items()
    image = torch.rand(1, 1, 64, 96)
    with torch.no_grad():
        expected = torch.sigmoid(0.7 * binomial_blur(student(image)) - 2.5)
        assert torch.equal(load_checkpoint(path).heatmap(image), expected)
