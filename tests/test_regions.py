"""Where keypoints may be: not where the image is flat, and not outside a mask."""

import json
import os
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import spfpn
from spfpn.apps.cli import app
from spfpn.data.images import ImageError, sample_images
from spfpn.features.export import RuntimeDetector
from spfpn.features.factory import make_detector
from spfpn.features.graphs import StudentGraph
from spfpn.features.keypoints import Selection, extract_keypoints, keypoint_region
from spfpn.features.teachers import SuperPoint
from spfpn.features.xfeat import XFeat
from spfpn.labels.labeling import ImageLoader, label_images
from spfpn.models.spfpn import SPFPN, load_checkpoint
from spfpn.runtime.keypoints import CONTRAST_RADIUS

FUNCTION = (
    "def detect(image):\n    return [(x, y) for y in range(0, 99, 9) for x in range(0, 99, 9)]\n"
)
CLASS = """
import torch
from spfpn.features.keypoints import Keypoints


class Own:
    def __init__(self, selection, device):
        self.selection = selection

    def detect(self, images):
        axes = [torch.arange(0, 99, 9)] * 2
        y, x = (i.flatten().float() for i in torch.meshgrid(*axes, indexing="ij"))
        return [Keypoints(torch.stack((x, y), 1), torch.ones(len(x))) for _ in images]
"""
NAMES = ("harris", "shi", "fast", "sift", "random", "spfpn-s", "spfpn-l", "spfpn-s@1+1.5")
OTHERS = ("aliked", "aliked:nms", "disk", "superpoint", "xfeat", "export", "function", "class")
PHOTO = sample_images(("coffee.png",)).load(0, (120, 160))[0][None]


@cache
def made(name, folder, **choice):
    selection = Selection(**choice)
    torch.manual_seed(0)  # of weights that are random
    if name == "superpoint":
        return SuperPoint(selection, pretrained=False)
    if name == "xfeat":
        return XFeat(selection, pretrained=False)
    if name == "export":
        runtime = RuntimeDetector.__new__(
            RuntimeDetector
        )  # without an export, which takes a minute
        runtime.selection, runtime.size = selection, None
        runtime.process, runtime.name = os.getpid(), "export"
        runtime.run = lambda images: [load_checkpoint("spfpn-s").heatmap(images)]
        return runtime
    if name in ("function", "class"):
        file = folder / f"{name}.py"
        file.write_text(FUNCTION if name == "function" else CLASS)
        return make_detector(file if name == "function" else f"{file}:Own", selection)
    return make_detector(name.split(":")[0], selection, native_nms=":" not in name)


@pytest.fixture(params=NAMES + OTHERS)
def detector(request, tmp_path_factory):
    return made(request.param, tmp_path_factory.getbasetemp())


def test_an_image_without_contrast_has_no_keypoints(detector):
    levels = torch.tensor([0, 1, 128, 255])[:, None, None, None] / 255
    found = detector.detect(levels.expand(4, 1, 96, 128))
    assert [len(points) for points in found] == [0, 0, 0, 0]


def test_a_flat_half_has_no_keypoints_but_near_the_texture(detector):
    image = PHOTO.clone()
    image[..., :80] = 0.5
    (points,) = detector.detect(image)
    assert len(points) and (points.xy[:, 0] >= 80 - CONTRAST_RADIUS - 0.5).all()


def test_letterbox_bars_have_none_and_change_nothing_in_a_batch(detector):
    barred = torch.zeros(1, 1, 120, 160)
    barred[..., 40:80, :] = PHOTO[..., 40:80, :]
    plain, between = detector.detect(torch.cat((PHOTO, barred)))
    y = between.xy[:, 1]
    assert len(y) and (y >= 40 - CONTRAST_RADIUS - 0.5).all()
    assert (y <= 79 + CONTRAST_RADIUS + 0.5).all()
    assert len(plain) == len(detector.detect(PHOTO)[0])


def test_no_point_lies_outside_a_mask_or_on_its_edge(detector):
    mask = torch.zeros(120, 160)
    mask[30:, 40:100] = 1  # as far as the image's lower edge
    (points,) = detector.detect(PHOTO, mask)
    x, y = points.xy.T
    assert len(points) and x.min() >= 43.5 and x.max() <= 95.5 and y.min() >= 33.5
    expected = detector.detect(PHOTO, mask[None, None])[0]
    assert torch.equal(points.xy, expected.xy)


def test_a_mask_of_the_whole_image_changes_nothing(detector):
    all_of_it, expected = detector.detect(PHOTO, torch.ones(120, 160)), detector.detect(PHOTO)
    assert len(expected[0]) and torch.equal(all_of_it[0].xy, expected[0].xy)
    assert torch.equal(all_of_it[0].scores, expected[0].scores)


@pytest.mark.parametrize("name", ["harris", "sift", "spfpn-s", "aliked", "disk", "xfeat"])
def test_the_budget_is_spent_inside_a_mask(name, tmp_path_factory):
    mask = torch.zeros(120, 160)
    mask[50:75, 110:150] = 1
    folder = tmp_path_factory.getbasetemp()
    (points,) = made(name, folder, max_keypoints=3).detect(PHOTO, mask)
    almost = torch.ones(120, 160)
    almost[0, 0] = 0
    (every,) = made(name, folder, max_keypoints=10**5).detect(PHOTO, almost)
    x, y = every.xy.round().T
    inside = every.select((x >= 114) & (x <= 145) & (y >= 54) & (y <= 70))
    assert len(points) == 3 and torch.equal(points.xy, inside.top(3).xy)


@pytest.mark.parametrize("name", ["aliked", "superpoint"])
def test_descriptors_belong_to_the_points_in_the_mask(name, tmp_path_factory):
    extractor, mask = made(name, tmp_path_factory.getbasetemp()), torch.zeros(120, 160)
    mask[:, 60:] = 1
    (found,) = extractor.detect_and_describe(PHOTO, mask)
    assert len(found) == len(found.descriptors) and found.xy[:, 0].min() >= 63.5
    (again,) = extractor.describe(PHOTO, [found])
    assert torch.allclose(again.descriptors, found.descriptors, atol=1e-5)


def test_noise_of_one_level_is_contrast():
    noise = torch.randint(127, 129, (1, 1, 96, 128), generator=torch.Generator().manual_seed(0))
    assert keypoint_region(noise / 255) is None
    assert len(make_detector("harris").detect(noise / 255)[0])
    rounding = 0.5 + 1e-5 * torch.rand(1, 1, 96, 128)
    assert not keypoint_region(rounding).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 3)])
def test_a_region_of_the_smallest_images(size):
    assert not keypoint_region(torch.ones(2, 3, *size)).any()
    image = torch.ones(1, 1, *size)
    image[..., 0, 0] = 0
    assert keypoint_region(image, torch.zeros(size), 4).sum() == 0


def test_a_mask_of_another_shape_says_which_fits():
    with pytest.raises(ValueError, match=r"\[160, 120\] does not fit: give \[120, 160\]"):
        make_detector("harris").detect(PHOTO, torch.ones(160, 120))


def test_labels_have_no_points_where_a_photograph_is_flat(tmp_path):
    (tmp_path / "photos").mkdir()
    pixels = (PHOTO[0, 0] * 255).byte().numpy().copy()
    pixels[:, :80] = 255
    Image.fromarray(pixels).save(tmp_path / "photos" / "half.png")
    Image.new("L", (160, 120), 90).save(tmp_path / "photos" / "flat.png")
    from spfpn.data.images import folder_images

    loader = ImageLoader(folder_images(tmp_path / "photos"), (120, 160), "cover")
    store = label_images(make_detector("spfpn-s"), loader, tmp_path / "labels", progress=False)
    found = {row["id"]: row["x"] for row in map(store.row, range(len(store)))}
    assert len(found["flat.png"]) == 0
    assert min(found["half.png"]) >= 80 - CONTRAST_RADIUS


def test_a_graph_with_points_knows_where_an_image_is_flat():
    selection = Selection(max_keypoints=200)
    model = SPFPN.from_pretrained("spfpn-s")
    image = torch.cat((PHOTO, torch.full_like(PHOTO, 0.5), PHOTO))
    image[2, ..., 70:] = 0.2
    with torch.no_grad():
        heatmap, xy, scores = StudentGraph(model, selection)(image)
    between = replace(selection, subpixel=True)
    expected = extract_keypoints(heatmap, between, keypoint_region(image))
    for points, place, score in zip(expected, xy, scores):
        place = place[score > 0]
        assert place.shape == points.xy.shape
        if len(place):
            near = torch.cdist(place.double(), points.xy.double()).min(1).values
            assert near.max() < 0.002
    assert len(expected[1]) == 0 < len(expected[2]) < len(expected[0])


# In Python and on the command line


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photos" / "cup.png"
    path.parent.mkdir()
    Image.fromarray((PHOTO[0, 0] * 255).byte().numpy()).save(path)
    mask = Image.new("L", (160, 120))
    mask.paste(1, (50, 0, 160, 120))
    (tmp_path / "masks").mkdir()
    mask.save(tmp_path / "masks" / "cup.png")
    return path


@pytest.mark.parametrize("form", ["path", "pil", "bool", "bytes", "tensor"])
def test_every_form_of_a_mask_gives_the_same_keypoints(photo, form):
    path = photo.parents[1] / "masks" / "cup.png"
    pixels = np.array(Image.open(path))
    mask = dict(path=path, pil=Image.open(path), bool=pixels > 0, bytes=pixels * 255)
    detector = spfpn.load("shi")
    found = detector.detect(photo, mask=mask.get(form, torch.from_numpy(pixels)))
    assert len(found) and found.xy[:, 0].min() >= 53.5
    assert torch.equal(found.xy, detector.detect(photo, pixels).xy)


def detected(*arguments):
    return CliRunner().invoke(
        app, ["detect", *map(str, arguments), "--detector", "harris", "--json"]
    )


@pytest.mark.parametrize("mask", ["masks", "masks/cup.png"])
def test_the_command_takes_a_mask_or_a_folder_of_masks(photo, mask):
    root = photo.parents[1]
    result = detected(photo.parent, "--mask", root / mask, "--out", root / "out")
    assert result.exit_code == 0, result.output
    (image,) = json.loads((root / "out" / "keypoints.json").read_text())
    assert image["keypoints"] and min(x for x, _, _ in image["keypoints"]) >= 53.5


def test_a_missing_mask_and_one_of_another_size_are_named(photo):
    root = photo.parents[1]
    result = detected(photo, "--mask", root / "masks" / "none.png")
    assert result.exit_code != 0 and "none.png: no such file" in result.output + str(
        result.exception
    )
    (root / "masks" / "cup.png").rename(root / "masks" / "tea.png")
    result = detected(photo, "--mask", root / "masks")
    said = result.output + str(result.exception)
    assert result.exit_code != 0 and "cup.png: no such mask" in said
    Image.new("L", (120, 160), 1).save(root / "other.png")
    result = detected(photo, "--mask", root / "other.png")
    said = result.output + str(result.exception)
    assert result.exit_code == 2
    assert "other.png: this mask has 120×160 pixels, its image 160×120" in said
    with pytest.raises(ImageError, match="other.png"):
        spfpn.load("harris").detect(photo, mask=root / "other.png")
