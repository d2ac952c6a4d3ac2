"The students inside the package: there, small, as their cards say, and worth their places."

from dataclasses import replace

import pytest
import torch

import spfpn
from spfpn.core.config import Config
from spfpn.core.files import content_digest
from spfpn.data.images import sample_images
from spfpn.data.sequences import warped_sample_sequences
from spfpn.evaluate.repeatability import R1
from spfpn.evaluate.results import summarize
from spfpn.evaluate.shape_detection import S1
from spfpn.features.factory import make_detector
from spfpn.features.keypoints import Selection
from spfpn.models.spfpn import PRETRAINED_DIR, checkpoint_metadata, list_pretrained

# what differs from the profile small, and the megabytes that it may have
STUDENTS = {
    "spfpn-s": (  # the second round of phase 2
        {
            "phase2.adaptation_views": "8",
            "phase2.epochs": "16",
            "augment.shapes_weight": "0.5",
        },
        3,
    ),
    "spfpn-l": (
        {
            "model.backbone": "mobilenetv3_large_100",
            "model.fpn_levels": "4",
            "model.fpn_channels": "64",
            "phase2.adaptation_views": "4",
            "phase2.epochs": "28",
            "augment.shapes_weight_end": "1",
        },
        7,
    ),
}
every_student = pytest.mark.parametrize("name", STUDENTS)


def test_these_are_all():
    assert set(list_pretrained()) == set(STUDENTS)


@every_student
def test_it_is_small_and_has_a_card_of_its_own(name):
    path, (_, megabytes) = list_pretrained()[name], STUDENTS[name]
    card = (PRETRAINED_DIR / f"{name}.md").read_text(encoding="utf-8")
    assert path.stat().st_size <= megabytes * 1e6
    assert content_digest(path) in card, "the card is of another file"
    header = checkpoint_metadata(path)
    assert header["config"]["backbone"] in card
    permitted, detector = ("aliked", "disk"), header.get("detector", header)
    assert detector["settings"]["labels.teacher"] in permitted, "a teacher whose license permits it"
    assert (header["config"].get("descriptor") or {"teacher": "aliked"})["teacher"] in permitted


@every_student
def test_the_profile_small_is_how_it_was_made_but_for_what_its_card_changes(name):
    header = checkpoint_metadata(list_pretrained()[name])
    header, profile = header.get("detector", header), Config.load("small", STUDENTS[name][0])
    # a setting that came later than the student has its default, which changes nothing
    made = Config.from_flat(Config().outcome() | header["settings"])
    assert header["phase"] == "phase2" and made.outcome() == profile.outcome()
    card = (PRETRAINED_DIR / f"{name}.md").read_text(encoding="utf-8")
    changes = {f"{key}={value}" for key, value in STUDENTS[name][0].items()}
    commands = [
        set(line.split())
        for line in card.splitlines()
        if line.startswith("spfpn ") and "--profile small" in line
    ]
    keys = [{word for word in command if "=" in word} for command in commands]
    start = "phase2.init_from=outputs/small/phase2/best.safetensors"
    assert any(found - {start} == changes | {"data.images=FOLDER"} for found in keys), (
        "no command of the card makes this student"
    )


def test_the_card_names_the_student_that_phase_2_began_with():
    header = checkpoint_metadata(list_pretrained()["spfpn-s"])
    card = (PRETRAINED_DIR / "spfpn-s.md").read_text(encoding="utf-8")
    assert header["detector"]["initialized_from"] in card


@every_student
def test_it_finds_most_of_its_keypoints_again(name):
    scenes = warped_sample_sequences(limit=4)  # light and viewpoint of two held-back photographs
    ours, chance = (
        R1.run(make_detector(detector, R1.selection), scenes)["repeatability@3"].mean()
        for detector in (name, "random")
    )
    assert ours > 0.6 and chance < 0.25


@every_student
def test_it_knows_the_corners_of_drawings(name):
    "Forty synthetic shapes under noise; Harris has .3 there."
    summary = summarize(replace(S1, images=40).run(make_detector(name, S1.selection)))
    assert summary.query("split == 'all' and set == 'shapes-noisy'").average_precision.item() > 0.7


@every_student
def test_it_finds_them_in_the_dark(name):
    "An eighth of the light, in eight bits."
    photos = sample_images()
    images = torch.stack([photos.load(i, (240, 320))[0] for i in range(3)])
    detector = make_detector(name, Selection(max_keypoints=200))

    def within(a, b):
        return (torch.cdist(a.xy, b.xy).amin(1) < 3).float().mean().item()

    found = [
        within(a, b)
        for a, b in zip(detector.detect(images), detector.detect((images * 255 / 8).round() / 255))
    ]
    assert sum(found) / len(found) > 0.8  # .62 when the network sees the images as they are


def test_it_is_the_default_and_finds_the_same_in_grey_and_in_halves_of_a_batch():
    photos = sample_images()
    images = torch.stack([photos.load(i, (240, 320))[0] for i in (0, 1)])
    detector = spfpn.load(max_keypoints=100)
    assert detector.name == "spfpn-s"
    for image, together in zip(images, detector.detect(images)):
        alone = detector.detect(image)
        assert len(alone) == 100 and torch.allclose(alone.xy, together.xy, atol=1e-2)
