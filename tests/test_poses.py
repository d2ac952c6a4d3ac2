"Scenes with known poses: their files, the geometry by hand, and protocol P1 on a miniature."

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from spfpn.apps.cli import app
from spfpn.data.images import ImageError, sample_images
from spfpn.data.pose_pairs import POSE_FILE, open_poses
from spfpn.evaluate.protocol import PredictionCache, View, detect_views, get_protocol
from spfpn.evaluate.relative_pose import P1, pose_errors, unturned_view
from spfpn.evaluate.results import evaluate_detectors, metric_curves, summarize
from spfpn.evaluate.statistics import compare_detectors
from spfpn.features.factory import make_detector
from spfpn.features.keypoints import Keypoints
from spfpn.geometry.homography import resize_matrix, warp_image
from spfpn.geometry.relative_pose import (
    epipolar_errors,
    estimate_relative_pose,
    quarter_turn_matrix,
    rotation_error,
    translation_error,
)
from spfpn.show.pictures import to_pil

K = torch.tensor([[300.0, 0, 159.5], [0, 300, 119.5], [0, 0, 1]], dtype=torch.float64)
SIDEWAYS = "1 0 0 -1 0 1 0 0 0 0 1 0 0 0 0 1"
INTRINSICS = "100 0 31.5 0 100 23.5 0 0 1"
LINE = f"1.png 2.png 0 0 {INTRINSICS} {INTRINSICS} {SIDEWAYS}"


def numbers(matrix):
    return " ".join(f"{x:.12g}" for x in matrix.flatten().tolist())


def rotation_y(degrees):
    a = math.radians(degrees)
    rows = [[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]]
    return torch.tensor(rows, dtype=torch.float64)


def write_scene(folder, turns=0, sample="coffee.png"):
    "Write two photographs of a slanted wall, the second turned clockwise, and their pose."
    T, normal = torch.eye(4, dtype=torch.float64), torch.tensor([0.4, 0, 1], dtype=torch.float64)
    T[:3, :3], T[0, 3] = rotation_y(-6), -0.8
    plane = torch.outer(T[:3, 3], normal / normal.norm()) / 5
    H = K @ (T[:3, :3] + plane) @ torch.linalg.inv(K)
    photo = sample_images((sample,)).load(0, (240, 320))[0]
    other = torch.rot90(warp_image(photo[None], H)[0], -turns, (-2, -1))
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate((photo, other), 1):
        to_pil(image).save(folder / f"{i}.png")
    back = quarter_turn_matrix((240, 320), -turns)  # from upright pixels to the file's
    # a camera whose image lies on its side: its axes are turned about the view axis
    spin = torch.block_diag(back[:2, :2], torch.ones(1, 1, dtype=torch.float64))
    K2 = back @ K @ torch.linalg.inv(spin)
    pose = torch.block_diag(spin, torch.ones(1, 1, dtype=torch.float64)) @ T
    return K2, pose


def line_of(K2, T, folder="", turns=0):
    return f"{folder}1.png {folder}2.png 0 {turns} {numbers(K)} {numbers(K2)} {numbers(T)}"


@pytest.fixture
def scenes(tmp_path):
    "Two scenes in one file of pairs, as ScanNet's and MegaDepth's are."
    lines = []
    for name, sample in (("a", "coffee.png"), ("b", "chelsea.png")):
        found = write_scene(tmp_path / "mini" / name, sample=sample)
        lines.append(line_of(*found, folder=f"{name}/"))
    (tmp_path / "mini" / f"scannet_test_{POSE_FILE}").write_text("\n".join(lines) + "\n")
    return tmp_path / "mini"


# -- files


@pytest.mark.parametrize(
    "old, new, message",
    [
        (" 1", "", "37 fields, not 38"),
        ("1.png", "1.png 3", "39 fields, not 38"),
        ("31.5", "x", "not a number"),
        ("31.5", "nan", "not finite"),
        ("0 0 1 100", "0 0 2 100", "0 0 1 as its last row"),
        ("100 0 31.5", "-100 0 31.5", "positive focal lengths"),
        ("1 0 0 -1", "2 0 0 -1", "rotation in T is none"),
        ("1 0 0 -1", "-1 0 0 -1", "rotation in T is none"),
        ("1 0 0 -1", "1 0 0 0", "translation in T is zero"),
        ("0 0 1 0 0 0 0 1", "0 0 1 0 0 0 0 2", "0 0 0 1 as its last row"),
        ("2.png", "3.png", "there is no image"),
        (" 0 0 100", " 0 0.5 100", "not a number"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(tmp_path, old, new, message):
    for i in (1, 2):
        to_pil(torch.rand(1, 48, 64)).save(tmp_path / f"{i}.png")
    head, _, tail = LINE.rpartition(old) if old == " 1" else LINE.partition(old)
    (tmp_path / POSE_FILE).write_text(f"{LINE}\n\n{head}{new}{tail}\n")
    with pytest.raises(ImageError, match=message) as error:
        open_poses(tmp_path)
    assert f"{POSE_FILE}, line 3: " in str(error.value)


def test_folders_without_one_file_of_pairs_say_what_belongs_there(tmp_path):
    with pytest.raises(ImageError, match="no such folder"):
        open_poses(tmp_path / "nowhere")
    with pytest.raises(ImageError, match=f"no {POSE_FILE} in it"):
        open_poses(tmp_path)
    (tmp_path / POSE_FILE).write_text("\n")
    with pytest.raises(ImageError, match="no pairs in it"):
        open_poses(tmp_path)
    (tmp_path / f"other_{POSE_FILE}").write_text("\n")
    with pytest.raises(ImageError, match="one file of pairs"):
        open_poses(tmp_path)


def test_a_file_of_pairs_becomes_a_scene_for_each_folder_of_images(scenes):
    found = open_poses(scenes)
    assert [scene.name for scene in found] == ["mini/a", "mini/b"]
    assert (found.name, found.pair_count()) == ("mini", 2)
    assert [scene.name for scene in open_poses(scenes.parent)] == ["mini/a", "mini/b"]
    file = scenes / f"scannet_test_{POSE_FILE}"
    file.write_text(file.read_text().replace(" -0.8 ", " -0.9 "))
    assert open_poses(scenes).digest != found.digest, "poses are part of the digest"


# -- geometry, by hand


def test_pose_errors_of_known_rotations_and_directions():
    R, x = rotation_y(0), torch.tensor([1.0, 0, 0])
    assert rotation_error(R, rotation_y(25)) == pytest.approx(25)
    assert rotation_error(rotation_y(170), rotation_y(-170)) == pytest.approx(20)
    assert rotation_error(R, rotation_y(1e-6)) == pytest.approx(1e-6, rel=1e-3)
    assert translation_error(x, torch.tensor([-3.0, 0, 0])) == pytest.approx(0)
    assert translation_error(x, torch.tensor([-1.0, 1, 0])) == pytest.approx(45)
    T = torch.eye(4, dtype=torch.float64)
    T[0, 3] = 1
    estimate = torch.column_stack((rotation_y(7), torch.tensor([0.0, 2, 0]).double()))
    assert pose_errors(estimate, T) == pytest.approx((7, 90))
    assert pose_errors(None, T) == (180, 180)


def test_intrinsics_follow_the_pixels_through_shrinking_and_turning():
    "A point of the world has the same pixel, whether projected or carried along."
    point = torch.tensor([0.3, -0.2, 2.0], dtype=torch.float64)
    pixel = K @ point / 2
    for turns in range(4):
        size = (320, 240) if turns % 2 else (240, 320)
        A = resize_matrix(size, (size[0] // 2, size[1] // 2))
        there = A @ quarter_turn_matrix((240, 320), turns) @ pixel
        points = Keypoints(there[None, :2].float(), torch.ones(1))
        small = size[0] // 2, size[1] // 2
        xy, S = unturned_view(View(small, A, points), turns)
        expected = S @ K @ point / 2
        assert torch.allclose(xy[0], expected[:2], atol=1e-4)
        half = torch.tensor([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]], dtype=torch.float64)
        assert torch.allclose(S, half), "with the half-pixel terms"


def test_the_long_side_shrinks_to_1024_and_nothing_is_enlarged(tmp_path):
    from spfpn.evaluate.protocol import preprocess_image

    large, A = preprocess_image(torch.rand(1, 1500, 2048), P1.size, P1.crop)
    assert large.shape == (1, 750, 1024) and A[0, 2] == pytest.approx(-0.25)
    small, A = preprocess_image(torch.rand(1, 300, 1000), P1.size, P1.crop)
    assert small.shape == (1, 300, 1000) and torch.equal(A, torch.eye(3, dtype=torch.float64))


def test_epipolar_errors_are_distances_from_lines():
    "A camera that moves along its view axis: lines run through the principal point."
    T = torch.eye(4, dtype=torch.float64)
    T[2, 3] = 1
    one, two = torch.tensor([[169.5, 119.5]]), torch.tensor([[179.5, 123.5]])
    # 4 px from the horizontal line; the first point, 10 px out, from the line of (20, 4)
    expected = (4 + 10 * 4 / math.hypot(20, 4)) / 2
    assert epipolar_errors(one, two, K, K, T).item() == pytest.approx(expected)


def test_too_few_matches_or_none_at_one_place_give_no_pose():
    points = torch.rand(4, 2)
    assert estimate_relative_pose(points, points, K, K) == (None, 0)
    nothing = torch.zeros(0, 2)
    assert estimate_relative_pose(nothing, nothing, K, K) == (None, 0)


# -- the protocol


def test_p1_finds_the_pose_of_a_miniature(scenes, tmp_path):
    data, file = {"poses": open_poses(scenes)}, tmp_path / "rows.parquet"
    cache = PredictionCache(tmp_path / "cache")
    rows = evaluate_detectors(["sift"], [P1], data, file, cache=cache)
    assert set(rows.detector) == {"sift"}, "random points have no descriptors of their own"
    assert (rows.pose_error < 3).all() and (rows["epipolar_accuracy@3"] > 0.8).all()
    assert rows.pose_errors.map(len).eq(P1.seeds).all()
    table = summarize(rows).iloc[0]
    assert table["auc@5"] > 0.5 and table["low"] <= table["auc@5"] <= table["high"]
    assert table["auc@5"] <= table["auc@10"] <= table["auc@20"]
    curve = metric_curves(rows, "poses_over_degrees")
    assert curve.y.is_monotonic_increasing and curve.y.iloc[-1] == 1
    again = P1.run(make_detector("sift", P1.selection), data["poses"], cache)
    pd.testing.assert_frame_equal(again, rows.drop(columns="origin"))


def test_everybody_can_have_the_same_descriptor_and_detectors_are_compared(scenes, tmp_path):
    protocol = replace(get_protocol("P1:sift"), seeds=2)
    data = {"poses": open_poses(scenes)}
    rows = evaluate_detectors(["harris"], [protocol], data, tmp_path / "rows.parquet")
    assert set(rows.detector) == {"harris", "random"}
    found = compare_detectors(rows, "harris", "random", "P1:sift")
    assert found["metric"] == "auc@5" and found["difference"] > 0.3
    assert (rows[rows.detector == "random"].pose_error > 5).all()


def test_an_image_on_its_side_is_set_upright_and_measured_as_it_is(tmp_path):
    K2, T = write_scene(tmp_path / "side", turns=1)
    (tmp_path / "side" / POSE_FILE).write_text(line_of(K2, T, turns=1) + "\n")
    scene = open_poses(tmp_path / "side")
    assert [tuple(scene.sequences[0].image(k).shape[1:]) for k in (1, 2)] == [(240, 320)] * 2
    rows = replace(P1, seeds=1).run(make_detector("sift", P1.selection), scene)
    assert rows.pose_error.item() < 3 and rows["epipolar_accuracy@3"].item() > 0.8


def test_a_pair_without_matches_counts_as_a_failure(scenes):
    data = open_poses(scenes)
    for image in scenes.glob("*/2.png"):
        to_pil(torch.full((1, 240, 320), 0.5)).save(image)
    rows = P1.run(make_detector("sift", P1.selection), data)
    assert (rows.pose_error == 180).all() and (rows.matches == 0).all()
    assert summarize(rows)["auc@20"].eq(0).all()


def test_views_say_whose_descriptors_they_have(scenes):
    (scene, _), how = open_poses(scenes).sequences, (P1.size, P1.crop, P1.resampling)
    for name, descriptor, whose in (("sift", "own", "sift"), ("harris", "sift", "sift")):
        views = detect_views(make_detector(name, P1.selection), scene, *how, descriptor)
        assert {view.descriptor for view in views} == {whose}
        assert views[0].keypoints.descriptors.dtype == torch.float16


def test_evaluate_measures_poses_from_the_command_line(scenes, tmp_path):
    arguments = ["evaluate", "--protocol", "P1", "--detector", "sift", "--poses", str(scenes)]
    file = tmp_path / "rows.parquet"
    result = CliRunner().invoke(app, [*arguments, "--no-cache", "--metrics", str(file)])
    assert result.exit_code == 0, result.output
    assert "P1:own on mini" in result.output and len(pd.read_parquet(file)) == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("P1", "--detector", "sift"), "add --poses FOLDER"),
        (("P1", "--detector", "sift", "--poses", "nowhere"), "no such folder"),
        (("H2:own", "--detector", "harris"), "'harris' has no descriptors of its own"),
        (("H2:own:lightglue", "--detector", "sift"), "no weights for descriptors of 'sift'"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(arguments, message):
    result = CliRunner().invoke(app, ["evaluate", "--no-cache", "--protocol", *arguments])
    told = result.output + str(result.exception)
    assert result.exit_code != 0 and message in told, told


# -- homographies with own descriptors


def test_h2_with_own_descriptors_has_a_curve_of_its_matching_accuracy():
    from spfpn.data.sequences import PlanarSequence, SequenceSet

    photo = sample_images(("coffee.png",)).load(0, (480, 640))[0]
    eye = (torch.eye(3, dtype=torch.float64),)
    data = SequenceSet("one", (PlanarSequence("i_one", "i", (photo, photo), eye),))
    own = replace(get_protocol("H2:own"), seeds=2)
    rows = own.run(make_detector("sift", own.selection), data)
    assert rows["mma@3"].item() > 0.9 and rows.corner_error.item() < 1
    curve = metric_curves(rows, "mma_over_epsilons")
    assert np.isclose(curve.y[curve.x == 3], rows["mma@3"]).all()
    assert curve.y.is_monotonic_increasing
