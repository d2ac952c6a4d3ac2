"""Detectors by name: one selection for all, and errors that help."""

import pytest
import torch

from spfpn.features.factory import CLASSICAL, make_detector
from spfpn.features.keypoints import Selection
from spfpn.features.teachers import teacher


def photo(seed=0):
    smooth = torch.nn.functional.interpolate(
        torch.rand(1, 1, 24, 32, generator=torch.Generator().manual_seed(seed)),
        size=(120, 160),
        mode="bicubic",
    )
    return smooth.clamp(0, 1)


@pytest.mark.parametrize("name", CLASSICAL)
def test_the_selection_holds_for_every_detector(name):
    selection = Selection(max_keypoints=30, nms_radius=6, border=10)
    (points,) = make_detector(name, selection).detect(photo())
    assert 0 < len(points) <= 30
    assert (points.scores[:-1] >= points.scores[1:]).all()
    assert (points.xy >= 10).all() and (points.xy <= torch.tensor([149.0, 109])).all()
    apart = (points.xy.round()[:, None] - points.xy.round()[None]).abs().amax(-1) + 100 * torch.eye(
        len(points)
    )
    assert apart.min() > 6


@pytest.mark.parametrize("name", CLASSICAL)
def test_batches_colour_and_blank_images(name):
    detector = make_detector(name)
    grey = torch.cat([photo(0), photo(1)])
    one, two = detector.detect(grey)
    assert torch.equal(two.xy, detector.detect(photo(1))[0].xy)
    if name != "random":  # whose points hang on every bit of the image
        colour = detector.detect(grey.expand(2, 3, 120, 160))[0]
        assert torch.cdist(one.xy, colour.xy).amin(1).lt(1).float().mean() > 0.95
    (nothing,) = detector.detect(torch.zeros(1, 1, 64, 64))
    assert nothing.xy.shape[1:] == (2,) and (name == "random" or len(nothing) == 0)


def test_harris_finds_the_corner_of_a_square():
    image = torch.zeros(1, 1, 64, 64)
    image[..., 20:44, 24:40] = 1
    (points,) = make_detector("harris", Selection(max_keypoints=4)).detect(image)
    truth = torch.tensor([[23.5, 19.5], [39.5, 19.5], [23.5, 43.5], [39.5, 43.5]])
    assert (
        torch.cdist(truth, points.xy).amin(1).max() < 2.5
    )  # the window reaches into the square, and an even one lies half a pixel off


@pytest.mark.parametrize("name", ["aliked", "disk"])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 16), (20, 20), (1, 40)])
@pytest.mark.parametrize("own_nms", [True, False])
def test_a_teacher_takes_an_image_smaller_than_what_its_network_needs(name, size, own_nms):
    images = torch.zeros(2, 1, *size)
    images[..., size[0] // 2 :, size[1] // 2 :] = 1
    found = teacher(name, Selection(border=0), own_nms=own_nms).detect_and_describe(images)
    for points in found:
        assert (
            (points.xy >= 0).all()
            and (points.xy <= torch.tensor([size[1], size[0]]) - 1).all()
            and points.descriptors.shape == (len(points), 128)
        )
    if size == (20, 20):
        assert torch.cdist(torch.tensor([[9.5, 9.5]]), found[0].xy).min() < 2.5, (
            "the corner in the middle"
        )


def test_unknown_names_and_missing_files():
    with pytest.raises(ValueError, match="harris, shi, fast, sift, random.*aliked"):
        make_detector("surf")
    with pytest.raises((FileNotFoundError, ValueError), match="nowhere"):
        make_detector("nowhere.safetensors")


def test_what_a_detector_does_to_its_image_is_seen_by_nobody_else(tmp_path):
    (tmp_path / "mine.py").write_text("def detect(image):\n    image *= 0\n    return [(9, 9)]\n")
    image = torch.rand(1, 1, 32, 32)
    before = image.clone()
    assert len(make_detector(tmp_path / "mine.py").detect(image)[0]) == 1 and torch.equal(
        image, before
    )
