"""Detectors by name: one selection for all, errors that help, and what a user adds."""

import pytest
import torch

from spfpn.core.registry import DESCRIPTORS, DETECTORS, MATCHERS
from spfpn.features.classical import PointDetector
from spfpn.features.descriptors import describe_keypoints, descriptor_version
from spfpn.features.factory import make_detector
from spfpn.features.keypoints import Keypoints, Selection
from spfpn.match.matchers import make_matcher

CLASSICAL = ("harris", "shi", "fast", "sift", "random")


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
    pixels = points.xy.round()
    apart = (pixels[:, None] - pixels[None]).abs().amax(-1) + 100 * torch.eye(len(points))
    assert apart.min() > 6


@pytest.mark.parametrize("name", CLASSICAL)
def test_batches_color_and_blank_images(name):
    detector = make_detector(name)
    gray = torch.cat([photo(0), photo(1)])
    one, two = detector.detect(gray)
    assert torch.equal(two.xy, detector.detect(photo(1))[0].xy)
    if name != "random":  # whose points depend on every bit of the image
        color = detector.detect(gray.expand(2, 3, 120, 160))[0]
        assert torch.cdist(one.xy, color.xy).amin(1).lt(1).float().mean() > 0.95
    (nothing,) = detector.detect(torch.zeros(1, 1, 64, 64))
    assert nothing.xy.shape[1:] == (2,) and (name == "random" or len(nothing) == 0)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (40, 33), (64, 96)])
@pytest.mark.parametrize("native_nms", [True, False])
def test_edgepoint2_takes_an_image_of_any_size(size, native_nms):
    from spfpn.features.edgepoint2 import EdgePoint2

    images = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0))
    options = dict(pretrained=False, native_nms=native_nms)
    peer = EdgePoint2("edgepoint2-s64", Selection(border=0), **options)
    assert peer.heatmap(images).shape == images.shape
    for points in peer.detect_and_describe(images.expand(2, 3, *size)):
        assert (points.xy >= 0).all()
        assert (points.xy <= torch.tensor([size[1], size[0]]) - 1).all()
        assert points.descriptors.shape == (len(points), 64)


def test_sift_describes_its_own_choice_of_points():
    selection = Selection(max_keypoints=40, nms_radius=8, border=6)
    sift = make_detector("sift", selection)
    (own,), (spread,) = sift.detect_and_describe(photo()), sift.detect(photo())
    assert len(own) == 40 > len(spread) and own.descriptors.shape == (40, 128)
    assert torch.allclose(own.descriptors.norm(dim=1), torch.ones(40), atol=1e-5)
    assert (own.xy >= 6).all() and (own.scores[:-1] >= own.scores[1:]).all()
    assert torch.pdist(own.xy, p=torch.inf).min() < 8, "its own spacing"


def test_superpoints_own_spacing_is_its_authors(monkeypatch):
    from spfpn.features.teachers import SuperPoint

    torch.manual_seed(0)
    for radius, native, apart in ((2, True, 5), (2, False, 3), (6, True, 7)):
        options = dict(pretrained=False, native_nms=native)
        peer = SuperPoint(Selection(nms_radius=radius), **options)
        (found,) = peer.detect_and_describe(photo())
        assert torch.pdist(found.xy, p=torch.inf).min() == apart


def test_harris_finds_the_corner_of_a_square():
    image = torch.zeros(1, 1, 64, 64)
    image[..., 20:44, 24:40] = 1
    (points,) = make_detector("harris", Selection(max_keypoints=4)).detect(image)
    truth = torch.tensor([[23.5, 19.5], [39.5, 19.5], [23.5, 43.5], [39.5, 43.5]])
    # the window reaches into the square, and an even one lies half a pixel off
    assert torch.cdist(truth, points.xy).amin(1).max() < 2.5


@pytest.mark.parametrize("name", ["aliked", "disk"])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 16), (20, 20), (1, 40)])
@pytest.mark.parametrize("native_nms", [True, False])
def test_a_teacher_takes_an_image_smaller_than_what_its_network_needs(name, size, native_nms):
    images = torch.zeros(2, 1, *size)
    images[..., size[0] // 2 :, size[1] // 2 :] = 1
    teacher = make_detector(name, Selection(border=0), native_nms=native_nms)
    found = teacher.detect_and_describe(images)
    for points in found:
        assert (points.xy >= 0).all()
        assert (points.xy <= torch.tensor([size[1], size[0]]) - 1).all()
        assert points.descriptors.shape == (len(points), 128)
    if size == (20, 20):
        corner = torch.tensor([[9.5, 9.5]])
        assert torch.cdist(corner, found[0].xy).min() < 2.5, "the corner in the middle"


def test_unknown_names_and_missing_files():
    with pytest.raises(ValueError, match="aliked.*fast, harris, random, shi, sift"):
        make_detector("surf")
    with pytest.raises((FileNotFoundError, ValueError), match="nowhere"):
        make_detector("nowhere.safetensors")


def test_the_detectors_that_all_means():
    standard = ["aliked", "disk", "fast", "harris", "shi", "sift", "superpoint"]
    assert DETECTORS.names(standard=True) == standard
    extractors = {"aliked", "disk", "superpoint", "superpoint-open", "xfeat"}
    extractors |= {f"edgepoint2-{size}" for size in ("t32", "s64", "e64")}
    assert extractors <= set(DETECTORS.names(extractor=True))
    assert DETECTORS.names(student=True) == ["spfpn-l", "spfpn-s"]


def test_what_a_detector_does_to_its_image_is_seen_by_nobody_else(tmp_path):
    (tmp_path / "mine.py").write_text("def detect(image):\n    image *= 0\n    return [(9, 9)]\n")
    image = torch.rand(1, 1, 32, 32)
    before = image.clone()
    (points,) = make_detector(tmp_path / "mine.py").detect(image)
    assert len(points) == 1 and torch.equal(image, before)


MINE = """
import torch

from spfpn.core.registry import DESCRIPTORS, DETECTORS, MATCHERS
from spfpn.features.extractor import Extractor


@DETECTORS.register("{name}", extractor=True)
class Tilde(Extractor):
    def __init__(self, **options):
        super().__init__(torch.nn.Conv2d(1, 16, 8, 8), **options)

    def dense(self, images):
        return images + 0.01, self.net(images)


@DETECTORS.register("{name}-response", heatmap=True)
def response(image):
    return image


class Own:
    def __init__(self, selection, device):
        self.selection = selection

    def detect(self, images):
        return []


def patch(image, xy):
    return image[0, xy[:, 1].long(), xy[:, 0].long()][:, None]


class First:
    def __init__(self, features, device):
        self.features = features

    def match(self, keypoints0, keypoints1, size0, size1):
        return torch.zeros(1, 2, dtype=torch.long)
"""


@pytest.fixture
def mine(tmp_path):
    name = f"tilde-{tmp_path.name}"  # a registry keeps what a file registers
    (tmp_path / "mine.py").write_text(MINE.format(name=name))
    yield tmp_path / "mine.py", name
    DETECTORS._entries.pop(name, None)
    DETECTORS._entries.pop(f"{name}-response", None)


def test_an_extractor_in_a_file_is_a_detector_a_teacher_and_a_descriptor(mine):
    file, name = mine
    detector = make_detector(f"{file}:Tilde", Selection(20))
    again = make_detector(name, Selection(20), native_nms=False)
    assert detector.name == f"{file}:Tilde" and again.name == name
    (points,) = again.detect_and_describe(photo())
    assert points.descriptors.shape == (20, 16)
    assert DETECTORS.tags(f"{file}:Tilde") == {"extractor": True, "heatmap": True}
    assert make_detector(f"{file}:Tilde@1+2").heatmap(photo()).shape == (1, 1, 120, 160)
    assert describe_keypoints(name, photo()[0], points).shape == (20, 16)


def test_the_version_of_what_comes_from_a_file_depends_on_the_file(mine):
    file, _ = mine
    specs = [f"{file}:Tilde", f"{file}:response", f"{file}:Own"]
    torch.manual_seed(0)
    before = [make_detector(spec).version for spec in specs]
    file.write_text(file.read_text() + "\n# changed\n")
    torch.manual_seed(0)
    after = [make_detector(spec).version for spec in specs]
    assert all(before) and all(a != b for a, b in zip(before, after, strict=True))


def test_a_function_with_a_heatmap_goes_to_several_scales(mine):
    file, _ = mine
    detector = make_detector(f"{file}:response@1+2", Selection(5))
    assert torch.allclose(detector.heatmap(photo()), photo(), atol=0.05)
    with pytest.raises(ValueError, match="no heatmap"):
        make_detector(f"{file}:patch@1+2")


def test_descriptors_and_matchers_in_a_file(mine):
    file, _ = mine
    points = Keypoints(torch.tensor([[3.0, 4], [9, 9]]), torch.ones(2))
    assert describe_keypoints(f"{file}:patch", photo()[0], points).shape == (2, 1)
    assert descriptor_version(f"{file}:patch") and descriptor_version("sift") == ""
    matcher = make_matcher(f"{file}:First", "aliked")
    assert matcher.name == f"{file}:First" and matcher.features == "aliked"
    assert MATCHERS.names() == ["lightglue", "mnn"] and DESCRIPTORS.names() == ["sift"]


def test_a_descriptor_of_another_shape_is_refused(tmp_path):
    (tmp_path / "bad.py").write_text("def describe(image, xy):\n    return xy[:1]\n")
    points = Keypoints(torch.ones(3, 2), torch.ones(3))
    with pytest.raises(ValueError, match=r"returned \[1, 2\]; expected \[3, D\]"):
        describe_keypoints(f"{tmp_path}/bad.py", photo()[0], points)


def test_a_response_of_another_shape_is_refused():
    from spfpn.features.classical import ResponseDetector

    with pytest.raises(ValueError, match="'half' returned an array of shape"):
        ResponseDetector("half", lambda image: image[::2]).detect(photo())
    with pytest.raises(ValueError, match="not finite"):
        PointDetector("lost", lambda image: [(float("nan"), 1)]).detect(photo())
