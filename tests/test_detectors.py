"""Detectors by name: one selection for all, errors that help, and what a user adds."""

import pickle
import re

import cv2
import numpy as np
import pytest
import torch

from spfpn.core.registry import DESCRIPTORS, DETECTORS, MATCHERS
from spfpn.data.images import sample_images
from spfpn.features.classical import PointDetector, ResponseDetector
from spfpn.features.descriptors import describe_keypoints, descriptor_version
from spfpn.features.factory import load, make_detector
from spfpn.features.keypoints import Keypoints, Selection
from spfpn.features.student import StudentDetector
from spfpn.matching.matchers import make_matcher
from spfpn.models.spfpn import SPFPN, load_checkpoint, optimize_for_inference

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
    assert nothing.xy.shape == (0, 2)


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
    (own,) = sift.detect_and_describe(photo())
    assert 10 < len(own) <= 40 and own.descriptors.shape == (len(own), 128)
    assert torch.allclose(own.descriptors.norm(dim=1), torch.ones(len(own)), atol=1e-5)
    assert (own.xy >= 6).all() and (own.scores[:-1] >= own.scores[1:]).all()
    assert torch.pdist(own.xy, p=torch.inf).min() < 8, "its own spacing"


def test_superpoints_own_spacing_is_its_authors(monkeypatch):
    from spfpn.features.teachers import SuperPoint

    torch.manual_seed(0)
    for radius, native, apart in ((2, True, 5), (2, False, 3), (6, True, 7)):
        options = dict(pretrained=False, native_nms=native)
        peer = SuperPoint(Selection(nms_radius=radius), **options)
        maps = torch.rand(1, 1, 120, 160), torch.rand(1, 256, 15, 20)
        monkeypatch.setattr(SuperPoint, "forward", lambda self, images: maps)  # noqa: B023
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
    assert MATCHERS.names() == ["lightglue", "mnn", "nearest"] and DESCRIPTORS.names() == ["sift"]


def test_a_descriptor_of_another_shape_is_refused(tmp_path):
    (tmp_path / "bad.py").write_text("def describe(image, xy):\n    return xy[:1]\n")
    points = Keypoints(torch.ones(3, 2), torch.ones(3))
    with pytest.raises(ValueError, match=r"returned \[1, 2\]; expected \[3, D\]"):
        describe_keypoints(f"{tmp_path}/bad.py", photo()[0], points)


def test_a_response_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="'half' returned an array of shape"):
        ResponseDetector("half", lambda image: image[::2]).detect(photo())
    with pytest.raises(ValueError, match="not finite"):
        PointDetector("lost", lambda image: [(float("nan"), 1)]).detect(photo())


# ---- what a user's function may return


def points_of(given) -> Keypoints:
    return PointDetector("mine", lambda image: given).detect(photo())[0]


@pytest.mark.parametrize("nothing", [None, [], (), np.empty((0, 2)), torch.zeros(0, 3)])
def test_no_points_in_any_form(nothing):
    assert len(points_of(nothing)) == 0


POINTS = [[40, 30], [90, 60]]


@pytest.mark.parametrize(
    "given",
    [
        POINTS,
        tuple(map(tuple, POINTS)),
        np.array(POINTS),
        np.array(POINTS, np.uint8),
        np.array(POINTS, np.float16)[:, None],
        torch.tensor(POINTS, dtype=torch.float32, requires_grad=True) * 1,
        torch.tensor(POINTS, dtype=torch.bfloat16),
        [torch.tensor([40.0, 30], requires_grad=True), torch.tensor([90.0, 60])],
        [cv2.KeyPoint(x, y, 5) for x, y in POINTS],
        tuple(cv2.KeyPoint(x, y, 5, 0, 1 / x) for x, y in POINTS),
    ],
    ids=lambda given: f"{type(given).__name__}",
)
def test_points_in_any_form(given):
    found = points_of(given)
    assert found.xy.tolist() == POINTS and found.scores[0] > found.scores[1] > 0
    assert not found.xy.requires_grad


@pytest.mark.parametrize(
    "given, what",
    [
        ([(1, 2), (3,)], "an object of type list of length 2"),
        ("corner", "an object of type str of length 6"),
        ({"xy": POINTS}, "an object of type dict of length 1"),
        ((np.ones((5, 2)), np.ones(5)), "an object of type tuple of length 2"),
        (([cv2.KeyPoint(9, 9, 5)], np.ones((1, 32))), "an object of type tuple of length 2"),
        (7, "an array of shape ()"),
        (object(), "an object of type object"),
        (np.ones((5, 2), complex), "an object of type ndarray and shape [5, 2]"),
        ([(1e300, 1)], "points or scores that are not finite"),
    ],
)
def test_nonsense_is_an_error_that_names_the_function_and_what_it_returned(given, what):
    with pytest.raises(ValueError) as error:
        points_of(given)
    assert str(error.value).startswith(f"detector 'mine' returned {what}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "given, what",
    [
        (None, "returned an array of shape (0,)"),
        (np.full((120, 160), np.nan), "not finite"),
        ("high", "returned an object of type str"),
    ],
)
def test_a_response_that_is_no_score_of_each_pixel(given, what):
    with pytest.raises(ValueError, match=f"detector 'mine' .*{re.escape(what)}"):
        ResponseDetector("mine", lambda image: given).detect(photo())
    gradient = torch.ones(120, 160, requires_grad=True)
    assert ResponseDetector("mine", lambda image: gradient).heatmap(photo()).max() == 1


BROKEN = """
def points(image):
    return list(image)[:, 0]

def response(image):
    return 1 / 0
response.tags = {"heatmap": True}

def describe(image, xy):
    raise KeyError("two\\nlines")

def nothing(image, xy):
    return None

def lists(image, xy):
    return [[1, 2, 3] for _ in xy]

class Detector:
    name = "own"
    def __init__(self, selection, device):
        self.selection = selection
    def detect(self, images):
        return images.nothing

def maker(selection, device):
    return 5
"""


def test_an_exception_in_a_users_function_names_file_and_line(tmp_path):
    (tmp_path / "mine.py").write_text(BROKEN)
    points = Keypoints(torch.tensor([[9.0, 9], [20, 20]]), torch.ones(2))

    def message(name, describe=False):
        spec = f"{tmp_path}/mine.py:{name}"
        with pytest.raises(ValueError) as error:
            if describe:
                describe_keypoints(spec, photo()[0], points)
            else:
                load(spec).detect(photo()[0])
        assert repr(spec) in str(error.value) or name == "Detector"
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "failed: TypeError: " in message("points")
    assert f"({tmp_path}/mine.py, line 3, in points)" in message("points")
    assert "failed: ZeroDivisionError: division by zero" in message("response")
    assert "failed: KeyError: 'two\\nlines'" in message("describe", True)
    line = BROKEN.splitlines().index("        return images.nothing") + 1
    assert f"mine.py, line {line}, in detect" in message("Detector")
    assert "made an object of type int; expected `detect`" in message("maker")
    assert "returned [0]; expected [2, D]" in message("nothing", True)
    found = describe_keypoints(f"{tmp_path}/mine.py:lists", photo()[0], points)
    assert found.tolist() == [[1, 2, 3]] * 2


# ---- what `detect` returns is the user's


@pytest.mark.parametrize("name", [*CLASSICAL, "spfpn-s", "aliked", "disk", "harris@1+1.5"])
def test_results_are_ordinary_tensors_that_share_nothing(name):
    detector = load(name, 50)
    one, two = detector.detect(photo()[0]), detector.detect(photo()[0])
    kept = two.xy.clone()
    one.xy.requires_grad_()
    ((one.xy * 2).sum() + one.scores.sum()).backward()
    assert (one.xy.grad == 2).all()
    two.xy.add_(5)  # neither a view of the other result nor of what is cached
    again = detector.detect(photo()[0])
    assert torch.equal(one.xy, kept) and torch.equal(again.xy, kept)
    assert again.xy.numpy().shape == (len(again), 2) and again.scores.numpy().size == len(again)
    copy = pickle.loads(pickle.dumps(again))
    assert torch.equal(copy.xy, kept) and torch.equal(copy.scores, again.scores)


def test_described_keypoints_are_not_views_of_the_given_ones():
    extractor, points = make_detector("aliked"), Keypoints(torch.full((1, 2), 40.0), torch.ones(1))
    (found,) = extractor.describe(photo(), [points])
    found.xy.add_(1)
    found.descriptors.requires_grad_()
    found.scores.zero_()
    assert points.xy.tolist() == [[40, 40]] and points.scores.tolist() == [1]


@pytest.mark.parametrize("name", [*CLASSICAL, "spfpn-s", "aliked", "harris@1+1.5"])
def test_a_repr_is_one_informative_line(name):
    detector = load(name, 50)
    points = detector.detect(photo()[0])
    assert repr(points).startswith(f"Keypoints({len(points)} points, scores ")
    for said in (repr(points), repr(detector), repr(detector.detector)):
        assert len(said) < 200 and "\n" not in said and " at 0x" not in said
    assert repr(name) in repr(detector) and "max_keypoints=50" in repr(detector)
    assert (
        repr(Keypoints(torch.zeros(0, 2), torch.zeros(0))) == "Keypoints(0 points, no descriptors)"
    )


@pytest.mark.parametrize("name", ["spfpn-s", "spfpn-l"])
def test_the_copy_that_detects_gives_what_the_checkpoint_gives(name):
    model, photo = load_checkpoint(name), sample_images(("coffee.png",)).load(0, (240, 320))[0]
    fast = optimize_for_inference(model)
    with torch.no_grad():
        assert torch.allclose(fast.heatmap(photo[None]), model.heatmap(photo[None]), atol=1e-5)
        xy = 200 * torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
        ours, theirs = (
            one.descriptor.sample(one.descriptor.dense(one.embed(photo[None])[0]), 0, xy)
            for one in (fast, model)
        )
    assert torch.allclose(ours, theirs, atol=1e-4)
    kinds = [type(layer) for layer in fast.head.modules()]
    assert torch.nn.BatchNorm2d not in kinds and torch.nn.Conv2d in kinds


SWAPPED = """
from torch import nn


class Swapped(nn.Module):
    strides, channels = (4,), (8,)

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 4, 4), nn.BatchNorm2d(3)
        self.last = nn.Conv2d(3, 8, 1)

    def forward(self, images):
        return [self.last(self.conv(self.norm(images).relu()))]


def make(pretrained):
    return Swapped()
"""


def test_a_backbone_that_runs_its_layers_in_another_order_keeps_its_heatmap(tmp_path):
    (tmp_path / "swapped.py").write_text(SWAPPED)
    model = SPFPN(f"{tmp_path}/swapped.py:make", levels=1, channels=8, prior=0.5).eval()
    torch.nn.init.normal_(model.head.last.weight)
    model.backbone.norm.running_mean.fill_(3.0)
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(StudentDetector(model).heatmap(image), model.heatmap(image))
