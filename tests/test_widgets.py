"Sliders are set in Python as a hand would set them, and what is drawn is computed again without the widget."
import numpy as np
import pytest
import torch

from spfpn.detectors import build
from spfpn.images import sample_images
from spfpn.keypoints import Selection, extract, select_points
from spfpn.widgets import HeatmapExplorer, MaskExplorer, WarpExplorer, candidates

SIZE = (96, 128)


def drawn(explorer, trace: int = 0) -> np.ndarray:
    "The points of a trace, [N, 2]."
    trace = explorer.figure.data[trace]
    return np.stack([trace.x, trace.y], 1)


def rotation(degrees: float) -> np.ndarray:
    "About the centre of an image of SIZE, +x towards +y, written out without the library."
    a, (cx, cy) = np.radians(degrees), ((SIZE[1] - 1) / 2, (SIZE[0] - 1) / 2)
    to, back = np.eye(3), np.eye(3)
    to[:2, 2], back[:2, 2] = (-cx, -cy), (cx, cy)
    return back @ [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]] @ to


def carried(xy: np.ndarray, H: np.ndarray) -> np.ndarray:
    "Points under H, those inside an image of SIZE."
    moved = np.c_[xy, np.ones(len(xy))] @ H.T
    moved = moved[:, :2] / moved[:, 2:]
    return moved[((moved >= 0) & (moved <= [SIZE[1] - 1, SIZE[0] - 1])).all(1)]


@pytest.fixture
def heatmaps():
    return HeatmapExplorer(sample_images(limit=2), [build("harris"), build("sift")], SIZE)


@pytest.mark.parametrize("detector", ["harris", "sift"])
def test_heatmap_points_follow_the_sliders(heatmaps, detector):
    heatmaps.controls["detector"].value = detector
    for threshold, radius, limit in ((.1, 4, 250), (.02, 8, 250), (.02, 2, 20)):
        for name, value in dict(threshold=threshold, radius=radius, limit=limit).items(): heatmaps.controls[name].value = value
        image = sample_images().load(0, SIZE)[0]
        scores, points = candidates(build(detector), image)
        selection = Selection(limit, radius, threshold * float((points.scores if scores is None else scores).max()))
        expected = extract(scores, selection)[0] if points is None else select_points(points, SIZE, selection)
        assert 0 < len(expected) <= limit
        assert np.allclose(drawn(heatmaps), expected.xy) and heatmaps.message.value.startswith(f"{len(expected)} points")


def test_scores_are_computed_once_and_opacity_leaves_points_alone(heatmaps):
    heatmaps.controls["threshold"].value = .05
    before, kept = drawn(heatmaps), heatmaps.known[0, "harris"]
    heatmaps.controls["opacity"].value = .2
    assert heatmaps.figure.layout.images[1].opacity == .2 and (drawn(heatmaps) == before).all()
    assert heatmaps.known[0, "harris"] is kept


def test_another_image_is_shown(heatmaps):
    before = heatmaps.figure.layout.images[0].source
    heatmaps.controls["image"].value = 1
    assert heatmaps.figure.layout.images[0].source != before


def test_sift_has_no_heatmap_to_show(heatmaps):
    heatmaps.controls["detector"].value = "sift"
    assert heatmaps.figure.layout.images[1].visible is False
    heatmaps.controls["detector"].value = "harris"
    assert heatmaps.figure.layout.images[1].visible is True


def test_errors_become_messages():
    class Broken:
        name = "broken <b>"
        def scores(self, images): raise RuntimeError("no <weights>")
    message = HeatmapExplorer(sample_images(limit=1), [Broken()], SIZE).message.value
    assert "RuntimeError: no &lt;weights&gt;" in message


@pytest.mark.parametrize("degrees", [0, 30, 90, -135])
def test_warped_points_are_H_times_x(degrees):
    warps = WarpExplorer(sample_images(limit=1), build("harris", Selection(max_keypoints=50)), SIZE)
    warps.controls["rotation"].value = degrees
    expected = carried(drawn(warps, 0), rotation(degrees))
    assert len(expected) and np.allclose(drawn(warps, 1), expected, atol=1e-3) and np.allclose(drawn(warps, 2), expected, atol=1e-3)


def test_every_control_of_the_warp_moves_the_points():
    warps = WarpExplorer(sample_images(limit=1), build("harris", Selection(max_keypoints=50)), SIZE)
    for name, value in dict(scale=1.3, tilt_x=.2, tilt_y=-.2, right=.1, down=-.1, random=True).items():
        before = drawn(warps, 1)
        warps.controls[name].value = value
        now = drawn(warps, 1)
        assert np.allclose(now, carried(drawn(warps, 0), warps.H().numpy()), atol=1e-3), name
        assert now.shape != before.shape or not np.allclose(now, before), name


def test_random_released_is_no_homography_again():
    warps = WarpExplorer(sample_images(limit=1), build("harris"), SIZE)
    warps.controls["random"].value = True
    assert not np.allclose(warps.H(), np.eye(3), atol=1e-3)
    warps.controls["random"].value = False
    assert np.allclose(warps.H(), np.eye(3), atol=1e-6)


def test_mask_cross_section_is_the_formula():
    xy = torch.tensor([[40., 30.], [90., 60.]])
    masks = MaskExplorer(xy, SIZE)
    for name, value in dict(kind="smoothed", sigma=3., low=.2, high=.8, point=1).items(): masks.controls[name].value = value
    x, y = np.meshgrid(np.arange(SIZE[1]), 60)
    distance = ((np.stack([x, y], -1)[0, :, None] - xy.numpy()) ** 2).sum(-1)
    # blobs are drawn out to 4 σ, where 3e-4 of the height is left
    assert np.allclose(masks.figure.data[1].y, .2 + .6 * np.exp(-distance / 18).max(1), atol=3e-4)
    assert list(masks.figure.data[0].y) == [60, 60]


def test_mask_without_a_range_says_so():
    masks = MaskExplorer(torch.tensor([[5., 5.]]), SIZE)
    masks.controls["low"].value = .9
    assert "low must lie below high" in masks.message.value
