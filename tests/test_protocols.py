"""Protocols on toy data with known answers, and on a real set where one is at hand."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spfpn.data.sequences import PlanarSequence, SequenceSet, folder_sequences
from spfpn.evaluate.homography_estimation import H1
from spfpn.evaluate.metrics import (
    assign_detections,
    average_precision,
    corner_error,
    covisible_keypoints,
    error_auc,
    localization_error,
    repeatability,
)
from spfpn.evaluate.protocol import (
    PredictionCache,
    View,
    detect_views,
    get_protocol,
    preprocess_image,
)
from spfpn.evaluate.repeatability import R1
from spfpn.evaluate.results import (
    append_metrics,
    evaluate_detectors,
    format_summary,
    markdown_table,
    read_metrics,
    summarize,
)
from spfpn.evaluate.shape_detection import S1, S2
from spfpn.evaluate.statistics import compare_detectors
from spfpn.features.factory import make_detector
from spfpn.features.keypoints import HeatmapDetector, Keypoints, Selection, select_keypoints
from spfpn.geometry.estimation import ESTIMATORS, estimate_homography
from spfpn.geometry.homography import (
    compose_homography,
    resize_matrix,
    translation_matrix,
    warp_points,
)


def points(xy, scores=None):
    xy = torch.as_tensor(xy, dtype=torch.float32).reshape(-1, 2)
    return Keypoints(xy, torch.ones(len(xy)) if scores is None else torch.as_tensor(scores))


def test_repeatability_counts_both_sides_inclusive():
    a, b = torch.tensor([[0.0, 0], [10, 0], [90, 0]]), torch.tensor([[3.0, 0], [10, 0]])
    assert repeatability(a, b, 3) == pytest.approx(4 / 5)
    assert repeatability(a, b, 2.99) == pytest.approx(2 / 5)
    assert localization_error(a, b, 3) == pytest.approx(1.5)


def test_points_the_other_image_does_not_show_are_not_asked_for():
    """A shift by (50, 0) in a 100x100 image leaves out the right half of 1 and the left half of 2.

    The best are kept after that."""
    H = translation_matrix(50, 0)
    kp1 = points([[10, 10], [80, 10], [20, 50]], [0.1, 0.9, 0.5])
    kp2 = points([[60, 10], [20, 10]], [0.1, 0.9])
    one, two = covisible_keypoints(kp1, kp2, H, (100, 100), (100, 100), keep=1)
    assert one.xy.tolist() == [[20, 50]] and two.xy.tolist() == [[60, 10]]


def test_every_crop_sends_pixels_where_its_matrix_says():
    image = torch.zeros(1, 200, 330)
    image[:, 100:108, 160:168] = 1  # a block with center (163.5, 103.5)
    for crop in ("center", "top-left", "none"):
        small, A = preprocess_image(image, (100, 120), crop)
        y, x = torch.meshgrid(
            *(torch.arange(n, dtype=torch.float64) for n in small.shape[1:]), indexing="ij"
        )
        center = torch.stack([(small[0] * x).sum(), (small[0] * y).sum()]) / small.sum()
        expected = A @ torch.tensor([163.5, 103.5, 1], dtype=torch.float64)
        assert torch.allclose(center, expected[:2], atol=0.02), crop


def test_auc_and_corner_error():
    assert corner_error(
        translation_matrix(0, 2), torch.eye(3, dtype=torch.float64), (10, 20)
    ) == pytest.approx(2)
    assert error_auc([0.5, np.inf], 1) == pytest.approx(0.5 * 0.25 + 0.5 * 0.5)
    assert np.isnan(error_auc([], 1))


def test_average_precision_pays_for_misses_doubles_and_far_points():
    truth = torch.tensor([[0.0, 0], [50, 0]])
    correct, _ = assign_detections(points([[0, 0]]), truth, 4)
    assert average_precision([1.0], correct, 2) == 0.5  # the miss costs half
    correct, distances = assign_detections(points([[4, 0], [0, 0], [0, 4.01]]), truth, 4)
    assert (
        correct.tolist() == [True, False, False] and distances[0] == 4
    )  # the first, not the nearest; inclusive
    assert average_precision([0.2, 0.9], [True, False], 1) == 0.5
    assert average_precision([0.5, 0.5], [False, True], 1) == 0.5  # equal scores enter together
    assert np.isnan(average_precision([0.5], [False], 0))


class Given:
    "A detector that returns prepared keypoints, whatever the image."

    name, selection = "given", S1.selection

    def __init__(self, keypoints):
        self.keypoints = iter(keypoints)

    def detect(self, images):
        return [next(self.keypoints) for _ in images]


def test_shapes_perfect_detector():
    from spfpn.data.shapes import sample_shapes

    few = replace(S1, name="few", images=12, sets=("clean",))
    shapes = sample_shapes(12, 0, False, few.size)
    rows = few.run(Given([points(s.corners) for s in shapes]))
    total = summarize(rows).query("split == 'all'").iloc[0]
    assert total.average_precision == 1 and total.false_positives == 0 and total.n == 12
    moved = replace(S2, name="moved", images=12, sets=("clean",)).run(
        Given([points(s.corners + torch.tensor([0.0, 1])) for s in shapes])
    )
    assert summarize(moved).query("split == 'all'").localization_error.item() <= 1


def test_rows_carry_their_settings_and_tables_refuse_to_mix(tmp_path):
    noise = torch.rand(3, 1, 120, 160, generator=torch.Generator().manual_seed(0))
    still = SequenceSet(
        "still",
        (PlanarSequence("i_one", "i", tuple(noise), (torch.eye(3, dtype=torch.float64),) * 2),),
    )
    rows = R1.run(make_detector("harris", R1.selection), still)
    assert (
        list(rows["pair"]) == ["1-2", "1-3"]
        and set(rows.settings) == {R1.settings()}
        and '"nms_radius": 4' in R1.settings()
    )
    other = replace(R1, keep=10)
    with pytest.raises(ValueError, match="R1.*different settings"):
        summarize(pd.concat([rows, other.run(make_detector("shi", R1.selection), still)]))
    file = tmp_path / "metrics.parquet"
    append_metrics(file, rows)
    append_metrics(file, rows.assign(detector="again"))
    append_metrics(
        file, replace(S1, images=2, name="S1-2").run(make_detector("fast", S1.selection))
    )
    append_metrics(file, rows)
    assert len(pd.read_parquet(file)) == 4 + 4 and [
        p for p in tmp_path.iterdir() if p.suffix != ".lock"
    ] == [file]
    assert summarize(pd.read_parquet(file)).query("split == 'all'").n.tolist() == [2, 2, 2, 2]


def test_a_detector_without_points_is_a_result_not_a_crash():
    blank = SequenceSet(
        "blank",
        (
            PlanarSequence(
                "v_blank",
                "v",
                (torch.zeros(1, 100, 100),) * 2,
                (torch.eye(3, dtype=torch.float64),),
            ),
        ),
    )
    for name in ("R1", "R2", "H1", "H2"):
        protocol = get_protocol(name)
        row = protocol.run(make_detector("fast", protocol.selection), blank).iloc[0]
        if name[0] == "R":
            assert row["repeatability@3"] == 0 and row.n1 == 0
        else:
            assert row.corner_error == np.inf and row["correct@5"] == 0
    table = summarize(protocol.run(make_detector("fast", protocol.selection), blank))
    assert table["auc@5"].tolist() == [0, 0]


def test_names():
    assert (
        get_protocol("H2:disk").name == "H2:disk"
        and get_protocol("H1").name == "H1:sift"
        and get_protocol("H2:disk").settings() != get_protocol("H2").settings()
    )
    with pytest.raises(ValueError, match="Known: H1, H2, P1, R1"):
        get_protocol("r1")
    with pytest.raises(ValueError, match="protocol's selection"):
        H1.run(make_detector("harris", Selection()), None)


def test_an_image_twice_as_large_as_its_pair():
    """Each image has its own scale: after preprocessing both are the same, point by point."""
    small = torch.nn.functional.interpolate(
        torch.rand(1, 1, 30, 40, generator=torch.Generator().manual_seed(0)),
        size=(240, 320),
        mode="bicubic",
    ).clamp(0, 1)[0]
    large = small.repeat_interleave(2, 1).repeat_interleave(
        2, 2
    )  # averaging areas undoes it exactly
    scene = SequenceSet(
        "twice",
        (PlanarSequence("v_twice", "v", (small, large), (resize_matrix((240, 320), (480, 640)),)),),
    )
    row = R1.run(make_detector("harris", R1.selection), scene).iloc[0]
    assert row["repeatability@1"] == 1 and row.localization_error < 1e-3 and row.n1 == row.n2 > 100
    slipped = replace(
        scene.sequences[0], homographies=(torch.diag(torch.tensor([2.0, 2, 1])).double(),)
    )  # the half pixel forgotten
    assert R1.run(
        make_detector("harris", R1.selection), SequenceSet("slip", (slipped,))
    ).localization_error.item() == pytest.approx(0.25 * 2**0.5, abs=1e-3)


def scenes(draw, n):
    "Points with distinct scores on two sides of an isometry of an image of 200x200."
    xy = st.lists(st.tuples(st.floats(0, 199), st.floats(0, 199)), min_size=0, max_size=n)
    one, two = (points(draw(xy)) for _ in range(2))
    one, two = (Keypoints(k.xy.double(), torch.linspace(1, 0.1, len(k))) for k in (one, two))
    angle, shift = (
        draw(st.floats(-3.14, 3.14)),
        draw(st.tuples(st.floats(-60, 60), st.floats(-60, 60))),
    )
    turn = torch.tensor(
        [
            [np.cos(angle), -np.sin(angle), shift[0]],
            [np.sin(angle), np.cos(angle), shift[1]],
            [0, 0, 1],
        ]
    ).double()
    return one, two, turn


def measured(one, two, H, size=(200, 200), epsilon=3.0, keep=20):
    "Repeatability of the best shared points; skips examples that hang on rounding."
    there, back = warp_points(one.xy, H), warp_points(two.xy, torch.linalg.inv(H))
    edges = torch.cat([there, back, torch.zeros(1, 2)]).double() / (size[0] - 1)
    assume(not any((edges[:-1] - edge).abs().lt(1e-6).any() for edge in (0, 1)))
    if len(one) and len(two):
        assume((torch.cdist(there, two.xy) / epsilon - 1).abs().min() > 1e-6)
    one, two = covisible_keypoints(one, two, H, size, size, keep)
    return repeatability(warp_points(one.xy, H), two.xy, epsilon)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_swapping_the_images_of_an_isometry_changes_nothing(data):
    one, two, H = scenes(data.draw, 30)
    assert measured(one, two, H) == pytest.approx(
        measured(two, one, torch.linalg.inv(H)), abs=1e-12
    )


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(2, 7))
def test_another_unit_of_length_changes_nothing(data, scale):
    one, two, H = scenes(data.draw, 30)
    S = torch.diag(torch.tensor([scale, scale, 1])).double()
    larger = [Keypoints(k.xy * scale, k.scores) for k in (one, two)]
    size = (199 * scale + 1,) * 2  # the outermost centers, `scale` times as far apart
    assert measured(one, two, H) == pytest.approx(
        measured(*larger, S @ H @ torch.linalg.inv(S), size, 3.0 * scale), abs=1e-12
    )


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 9)), max_size=25),
    st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=6, unique=True
    ),
    st.integers(1, 9),
)
def test_doubles_and_false_detections_never_raise_average_precision(found, truth, score):
    truth = torch.tensor(truth, dtype=torch.float32)

    def precision(found):
        kp = points([f[:2] for f in found], [float(f[2]) for f in found] or torch.zeros(0))
        kp = kp.top(len(kp))
        return average_precision(kp.scores, assign_detections(kp, truth, 4)[0], len(truth))

    before = precision(found)
    assert precision(found + found) <= before + 1e-12
    assert precision([*found, (500, 500, score)]) <= before + 1e-12


def test_auc_and_average_precision_of_closed_form():
    """Errors spread evenly over [0, 2t]: their share grows linearly to a half, so AUC is a quarter.

    Every second detection right: precision 1/2 everywhere."""
    assert error_auc((np.arange(20000) + 0.5) / 10000 * 3, 3) == pytest.approx(0.25, abs=1e-4)
    assert average_precision(
        np.arange(2000, 0, -1), np.arange(2000) % 2 == 1, 1000
    ) == pytest.approx(0.5, abs=1e-9)


def test_every_estimator_agrees_with_the_truth_and_the_other():
    import cv2
    import poselib

    H = compose_homography(
        (480, 640),
        rotation=20,
        scale=0.9,
        tilt=torch.tensor([[0.1, 0.02], [-0.05, 0.04], [0.03, -0.1], [0.0, 0.06]]),
    )
    rng = torch.Generator().manual_seed(3)
    xy = torch.rand(300, 2, generator=rng).double() * torch.tensor([639.0, 479])
    there = warp_points(xy, H)
    mixed = torch.where(
        (torch.arange(300) % 2 == 0)[:, None],
        there,
        torch.rand(300, 2, generator=rng).double() * 480,
    )
    independent = {
        "opencv": lambda a, b: cv2.findHomography(a, b, cv2.RANSAC, 1.0)[0],
        "magsac": lambda a, b: cv2.findHomography(a, b, cv2.USAC_MAGSAC, 1.0)[0],
        "poselib": lambda a, b: poselib.estimate_homography(a, b, {"max_reproj_error": 1.0}, {})[0],
    }
    for goal in (there, mixed):
        for name in ESTIMATORS.names():
            found, inliers = estimate_homography(xy, goal, 1.0, estimator=name)
            assert corner_error(found, H, (480, 640)) < 1e-3 and inliers >= 150
            assert (
                corner_error(
                    found, torch.as_tensor(independent[name](xy.numpy(), goal.numpy())), (480, 640)
                )
                < 1e-3
            )


def plane_matches(seed, n=400, share=0.12, noise=0.3):
    "Matches of a plane in images of 480×640, of which a share is right to `noise` px."
    H = compose_homography((480, 640), rotation=15, scale=0.9)
    rng = torch.Generator().manual_seed(seed)
    xy, there = (torch.rand(n, 2, generator=rng).double() for _ in range(2))
    xy, there = xy * torch.tensor([639.0, 479]), there * torch.tensor([639.0, 479])
    right = round(share * n)
    there[:right] = warp_points(xy[:right], H) + noise * torch.randn(right, 2, generator=rng)
    return xy, there, H


def test_poselib_searches_as_long_as_its_own_defaults_say():
    """Of 400 matches 12 % are right, so a sample of four right ones comes up once in 4,800."""
    import poselib

    for seed in range(12):
        xy, there, H = plane_matches(seed)
        found, inliers = estimate_homography(xy, there, 1.0, "poselib")
        direct, info = poselib.estimate_homography(
            xy.numpy(), there.numpy(), {"max_reproj_error": 1.0}
        )
        assert np.array_equal(found.numpy(), direct) and inliers == info["num_inliers"]
        assert corner_error(found, H, (480, 640)) < 3


def test_opencv_searches_as_long_as_in_glue_factory():
    import cv2

    for seed in range(3):
        xy, there, _ = plane_matches(seed, share=0.3)
        limits = dict(maxIters=3000, confidence=0.995)
        direct, mask = cv2.findHomography(xy.numpy(), there.numpy(), cv2.RANSAC, 0.5, **limits)
        found, inliers = estimate_homography(xy, there, 0.5, "opencv")
        assert np.array_equal(found.numpy(), direct) and inliers == mask.sum()


def matched_views(seed=0, n=120, share=0.3):
    "Two views whose keypoints match by descriptor, and the homography between them."
    xy, there, H = plane_matches(seed, n, share)
    features = torch.eye(n)
    size, scores = (480, 640), torch.linspace(1, 0.1, n)
    views = [
        View(size, torch.eye(3).double(), Keypoints(k.float(), scores, features))
        for k in (xy, there)
    ]
    return *views, H


def shuffled(view, seed):
    "The same view with its keypoints listed in another order."
    order = torch.randperm(len(view.keypoints), generator=torch.Generator().manual_seed(seed))
    return replace(view, keypoints=view.keypoints.select(order))


@pytest.mark.parametrize("name", ["H1", "H2", "H2:poselib"])
def test_homographies_do_not_depend_on_the_order_of_the_matches(name):
    protocol, (first, second, H) = get_protocol(name), matched_views()
    once = protocol.measure(first, second, H)
    assert protocol.measure(first, second, H) == once
    for seed in range(3):
        assert protocol.measure(shuffled(first, seed), shuffled(second, seed + 9), H) == once
    assert len(once["corner_errors"]) == protocol.seeds > 1
    assert len(set(once["corner_errors"])) > 1  # the seeds do try other orders


@pytest.mark.parametrize("name", ["H2", "H2:poselib"])
def test_mean_and_spread_over_seeds_equal_a_computation_by_hand(name):
    """Sorted with Python, shuffled with NumPy and estimated directly; pooled with a loop."""
    import cv2
    import poselib

    protocol, errors, rows = get_protocol(name), [], []
    for pair in range(4):
        first, second, H = matched_views(pair, share=0.12 + 0.06 * pair)
        about = dict(protocol="H", set="s", detector="d", kind="v", sequence=f"v_{pair}")
        rows.append(about | dict(pair="1-2") | protocol.measure(first, second, H))
        both = torch.cat([first.keypoints.xy, second.keypoints.xy], 1).double().tolist()
        both, found = np.array(sorted(both)), []
        for seed in range(protocol.seeds):
            xy = both[np.random.default_rng(seed).permutation(len(both))]
            one, two = np.ascontiguousarray(xy[:, :2]), np.ascontiguousarray(xy[:, 2:])
            if name == "H2":
                limits = dict(maxIters=3000, confidence=0.995)
                estimate = cv2.findHomography(one, two, cv2.RANSAC, 0.5, **limits)[0]
            else:
                estimate = poselib.estimate_homography(one, two, {"max_reproj_error": 1.0})[0]
            found.append(corner_error(torch.as_tensor(estimate), H, first.size))
        errors.append(found)
        assert rows[-1]["corner_errors"] == found
        assert rows[-1]["corner_error"] == np.median(found)
    by_seed = [[float(e <= 3) for e in seed] for seed in zip(*errors, strict=True)]
    correct = [sum(seed) / len(seed) for seed in by_seed]
    table = summarize(pd.DataFrame(rows)).query("split == 'all'").iloc[0]
    assert table["correct@3"] == pytest.approx(sum(correct) / len(correct))
    mean = sum(correct) / len(correct)
    variance = sum((c - mean) ** 2 for c in correct) / (len(correct) - 1)
    assert table["spread"] == pytest.approx(variance**0.5)
    areas = [error_auc(seed, 5) for seed in zip(*errors, strict=True)]
    assert table["auc@5"] == pytest.approx(sum(areas) / len(areas))


def test_every_output_shows_the_spread_over_seeds(tmp_path):
    errors = [[1.0, 9], [2.0, 2], [9.0, 9], [9.0, 1]]
    rows = pd.DataFrame(
        {
            "protocol": "H1:sift",
            "set": "s",
            "detector": ["a", "a", "b", "b"],
            "kind": "v",
            "sequence": ["v_0", "v_1"] * 2,
            "pair": "1-2",
            "corner_error": np.median(errors, 1),
            "corner_errors": errors,
            "correct@3": [0.5, 1, 0, 0.5],
        }
    )
    file = tmp_path / "metrics.parquet"
    append_metrics(file, rows)
    stored = read_metrics(file)
    table = summarize(stored).query("split == 'all'").set_index("detector")
    assert table.spread.tolist() == pytest.approx([0.5**0.5 / 2] * 2)
    assert "± seeds" in format_summary(summarize(stored))
    text = markdown_table(stored, "H1:sift", "s", ("auc@5",))
    assert "95 % interval | ± seeds |" in text.splitlines()[0] and "| 0.354 |" in text
    found = compare_detectors(stored, "a", "b", "H1:sift")
    assert found["spread"] == pytest.approx(np.std([1 - 0, 0.5 - 0.5], ddof=1))
    area = compare_detectors(stored, "a", "b", "H1:sift", "auc@5")
    by_seed = [error_auc([1, 2], 5) - error_auc([9, 9], 5)]
    by_seed.append(error_auc([9, 2], 5) - error_auc([9, 1], 5))
    assert area["difference"] == pytest.approx(np.mean(by_seed))
    assert area["spread"] == pytest.approx(np.std(by_seed, ddof=1))


def test_rows_without_seeds_have_no_spread(tmp_path):
    """Rows of a protocol with one estimate a pair, in one file with rows that have several."""
    old = pd.DataFrame({"protocol": "C1", "corner_error": [1.0, 9], "correct@3": [1.0, 0]})
    old = old.assign(sequence=["v_0", "v_1"], pair="1-2", kind="v", detector="a", set="s")
    new = old.assign(protocol="H1:sift", corner_errors=[[1.0, 1], [9.0, 9]])
    append_metrics(tmp_path / "metrics.parquet", pd.concat([old, new]))
    stored = read_metrics(tmp_path / "metrics.parquet")
    table = summarize(stored).query("split == 'all'").set_index("protocol")
    assert np.isnan(table.spread["C1"]) and table.spread["H1:sift"] == 0
    assert table["auc@5"]["C1"] == table["auc@5"]["H1:sift"]
    assert "spread" not in compare_detectors(stored, "a", "a", "C1")


class ImageDetector(HeatmapDetector):
    "A detector whose heatmap is the image."

    name = "map"

    def heatmap(self, images):
        return images


def greedy_boxes(heatmap, side=4, iou=0.1):
    "Points [N, 2] (x, y), the best first, by the definition: one box after the other."
    y, x = np.nonzero(heatmap > 0)
    order, kept = np.argsort(-heatmap[y, x], kind="stable"), []
    for py, px in zip(y[order], x[order]):
        overlaps = [max(0, side - abs(py - v)) * max(0, side - abs(px - u)) for v, u in kept]
        if all(o / (2 * side**2 - o) <= iou for o in overlaps):
            kept.append((py, px))
    return [(x, y) for y, x in kept]


@pytest.mark.parametrize("levels", [4, 10**6])
def test_r1_box_keeps_what_greedy_suppression_by_boxes_keeps(levels):
    """With nearly all scores equal, and with nearly none."""
    box = get_protocol("R1:box")
    assert (box.name, box.selection.nms_box, box.selection.nms_radius) == ("R1:box", 4, 0)
    heatmap = np.random.default_rng(0).integers(-1, levels, (40, 50)).astype(np.float32)
    choice = replace(box.selection, border=0)
    image = torch.from_numpy(heatmap)[None, None]
    found = ImageDetector(choice).detect(image)[0].xy.long().tolist()
    expected = greedy_boxes(heatmap)
    assert [tuple(p) for p in found] == expected
    y, x = np.nonzero(heatmap > 0)
    listed = points(np.stack([x, y], 1), torch.from_numpy(heatmap[y, x]))
    listed = select_keypoints(listed, (40, 50), choice)  # a list of points obeys the same rule
    assert [tuple(p) for p in listed.xy.long().tolist()] == expected


def test_boxes_of_side_4_suppress_3_px_along_an_axis_and_2_px_along_a_diagonal():
    for (dx, dy), stays in {
        (3, 0): 1, (3, 1): 1, (2, 2): 1, (3, 2): 2, (4, 0): 2, (0, 3): 1, (-3, -1): 1,
    }.items():  # fmt: skip
        heatmap = torch.zeros(1, 1, 40, 40)
        heatmap[0, 0, 20, 20], heatmap[0, 0, 20 + dy, 20 + dx] = 2, 1
        selection = get_protocol("R1:box").selection
        assert len(ImageDetector(selection).detect(heatmap)[0]) == stays, (dx, dy)


def test_a_suppressed_point_suppresses_none():
    heatmap = torch.zeros(1, 1, 40, 60)
    heatmap[0, 0, 20, [20, 23, 26]] = torch.tensor([3.0, 2, 1])
    window, box = (get_protocol(name).selection for name in ("R1:nms3", "R1:box"))
    assert len(ImageDetector(window).detect(heatmap)[0]) == 1
    assert ImageDetector(box).detect(heatmap)[0].xy[:, 0].tolist() == [20, 26]


class Counting(HeatmapDetector):
    "A detector that counts its images."

    name, seen = "counting", 0

    def heatmap(self, images):
        Counting.seen += 1
        return images


def test_kept_detections_are_used_only_where_nothing_has_changed(tmp_path):
    noise = torch.rand(3, 1, 120, 160, generator=torch.Generator().manual_seed(0))
    eye = (torch.eye(3, dtype=torch.float64),) * 2
    sequence = PlanarSequence("i_one", "i", tuple(noise), eye)
    cache = PredictionCache(tmp_path)

    def images_seen(clip=sequence, size=(120, 160), version="1", keep=50, **more):
        detector, before = Counting(Selection(keep)), Counting.seen
        detector.version = version
        views = detect_views(detector, clip, size, cache=cache, **more)
        return Counting.seen - before, views

    (count, once), (kept, again) = images_seen(), images_seen()
    assert (count, kept) == (3, 0)
    fresh = images_seen(version="")[1]  # a detector that cannot say what it is made of
    for one, two, three in zip(once, again, fresh, strict=True):
        assert one.size == two.size == three.size
        for other in (two, three):
            assert torch.equal(one.A, other.A)
            assert torch.equal(one.keypoints.xy, other.keypoints.xy)
            assert torch.equal(one.keypoints.scores, other.keypoints.scores)
    darker = replace(sequence, images=(sequence.images[0] * 0.99, *sequence.images[1:]))
    changes = [
        dict(keep=49),
        dict(version="2"),
        dict(size=(120, 161)),
        dict(crop="none"),
        dict(descriptor="sift"),
        dict(clip=darker),
    ]
    assert [images_seen(**change)[0] for change in changes] == [3] * 6
    assert images_seen()[0] == 0
    assert images_seen(version="")[0] == 3  # and again


COVERAGE = """
from dataclasses import dataclass, replace

from spfpn.core.registry import PROTOCOLS
from spfpn.evaluate.protocol import PlanarPairProtocol
from spfpn.features.keypoints import Selection


@dataclass(frozen=True)
class Coverage(PlanarPairProtocol):
    tile: int = 32

    def measure(self, first, second, H):
        return {"coverage": len((first.keypoints.xy // self.tile).unique(dim=0)) / 80}

    def with_options(self, *options):
        return replace(self, name=":".join([self.name, *options]), tile=int(options[0]))


PROTOCOLS.register("C1", Coverage("C1", Selection(max_keypoints=100)))
"""


def test_a_protocol_in_a_file_is_measured_like_any_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("coverage.py").write_text(COVERAGE)
    scenes = SequenceSet("two", tuple(noise_sequence(name) for name in ("i_one", "i_two")))
    protocols = [get_protocol(name) for name in ("coverage.py:C1", "coverage.py:C1:16")]
    assert [(p.name, p.tile) for p in protocols] == [("C1", 32), ("C1:16", 16)]
    data, file = {"sequences": scenes}, tmp_path / "metrics.parquet"
    rows = evaluate_detectors(["harris"], [*protocols, R1], data, file)
    table = summarize(rows).query("split == 'all'").set_index(["protocol", "detector"])
    row = table.loc["C1", "harris"]
    assert 0 < row.low <= row.coverage <= row.high <= 1
    assert table.coverage["C1:16", "harris"] > row.coverage
    assert list(table.columns[:5]) == ["set", "split", "n", "coverage", "low"]


def noise_sequence(name):
    "Three images of noise that all show the same plane."
    seed = torch.Generator().manual_seed(len(name))
    noise = torch.rand(3, 1, 120, 160, generator=seed)
    return PlanarSequence(name, name[0], tuple(noise), (torch.eye(3, dtype=torch.float64),) * 2)


PARTS = """
import torch

from spfpn.core.registry import ESTIMATORS, MATCHERS


def brightness(image, xy):
    x, y = xy.round().long().T
    steps = torch.arange(-2, 3)
    rows = (y[:, None] + steps).clamp(0, image.shape[1] - 1)
    columns = (x[:, None] + steps).clamp(0, image.shape[2] - 1)
    found = image[0, rows[:, :, None], columns[:, None]].flatten(1) - 0.5
    return found / found.norm(dim=1, keepdim=True)


@MATCHERS.register("inorder")
class InOrder:
    def __init__(self, features, device):
        pass

    def match(self, keypoints0, keypoints1, size0, size1):
        n = min(len(keypoints0), len(keypoints1))
        return torch.arange(n)[:, None].expand(n, 2)


@ESTIMATORS.register("identity")
def identity(xy1, xy2, threshold):
    import numpy as np

    return np.eye(3), len(xy1)
"""


def test_descriptor_matcher_and_estimator_may_be_in_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("parts.py").write_text(PARTS)
    spec = "H1:parts.py:inorder:parts.py:identity:parts.py:brightness"
    protocol = get_protocol(spec)
    parts = protocol.descriptor, protocol.matcher, protocol.estimator
    assert parts == ("parts.py:brightness", "parts.py:inorder", "parts.py:identity")
    assert protocol.name == "H1:" + ":".join(parts)
    scenes = SequenceSet("one", (noise_sequence("i_one"),))
    rows = protocol.run(make_detector("harris", protocol.selection), scenes)
    assert (rows.corner_error == 0).all() and (rows.inliers == rows.matches).all()


def test_settings_name_the_kind_and_every_field():
    kinds = [get_protocol(name).kind for name in ("H1", "H2", "R1", "R2", "S1", "S2", "T1")]
    assert kinds == ["homography"] * 2 + ["repeatability"] * 2 + ["shapes"] * 2 + ["stability"]
    assert '"kind": "repeatability"' in R1.settings() and '"crop": "center"' in R1.settings()


def test_a_protocol_without_its_data_fails_before_the_first_detector(tmp_path):
    protocols = [get_protocol("S1"), get_protocol("T1")]
    with pytest.raises(ValueError, match="T1 needs frames"):
        evaluate_detectors(["harris"], protocols, {}, tmp_path / "metrics.parquet")
    assert not list(tmp_path.iterdir())


OXFORD = Path(os.environ.get("DATA_DIR", "nowhere")) / "oxford-affine"


@pytest.mark.skipif(
    not OXFORD.is_dir(),
    reason="needs $DATA_DIR/oxford-affine: planar sequences in HPatches' layout",
)
@pytest.mark.parametrize(
    "name, expected, error",
    [("harris", 0.712, 0.88), ("shi", 0.697, 0.98), ("fast", 0.628, 0.90), ("random", 0.149, 1.99)],
)
def test_agrees_with_an_independent_implementation_of_r1(name, expected, error):
    rows = R1.run(make_detector(name, R1.selection), folder_sequences(OXFORD))
    assert rows["repeatability@3"].mean() == pytest.approx(expected, abs=0.02)
    assert rows.localization_error.mean() == pytest.approx(error, abs=0.02)


@pytest.mark.skipif(
    not OXFORD.is_dir(),
    reason="needs $DATA_DIR/oxford-affine: planar sequences in HPatches' layout",
)
def test_agrees_with_an_independent_implementation_of_h2_with_own_descriptors():
    protocol = replace(get_protocol("H2:own"), seeds=3)
    rows = protocol.run(make_detector("sift", protocol.selection), folder_sequences(OXFORD))
    found = summarize(rows).query("split == 'all'").iloc[0]
    for metric, expected, tolerance in (
        ("mma@3", 0.666, 0.02),
        ("auc@1", 0.346, 0.03),
        ("auc@3", 0.581, 0.03),
        ("auc@5", 0.691, 0.03),
    ):
        assert found[metric] == pytest.approx(expected, abs=tolerance), metric
