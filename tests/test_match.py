"Two photographs: matches, geometry, pictures, and the command."

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import spfpn
from spfpn.apps.cli import app
from spfpn.data.images import sample_images
from spfpn.features.keypoints import Keypoints
from spfpn.geometry.estimation import epipolar_distances, estimate_fundamental
from spfpn.geometry.homography import compose_homography, warp_image_reflect, warp_points
from spfpn.geometry.relative_pose import rotation_error, translation_error
from spfpn.matching.image_matcher import DescribedImage, ImageMatcher, Matches
from spfpn.runtime.matching import MatchError
from spfpn.show.pictures import to_pil

SIZE = (240, 320)


def command(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def pair_of(xy0: torch.Tensor, xy1: torch.Tensor) -> Matches:
    sides = (
        DescribedImage(torch.rand(480, 640), Keypoints(xy.float(), torch.ones(len(xy))), (480, 640))
        for xy in (xy0, xy1)
    )
    return Matches(*sides, torch.arange(len(xy0))[:, None].expand(-1, 2), torch.ones(len(xy0)))


def solid_scene(points: int, seed: int = 0):
    "Pixels of a solid scene in two cameras of known pose."
    rng = np.random.default_rng(seed)
    X = rng.uniform((-2, -1.5, 4), (2, 1.5, 8), (points, 3))
    K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    angle = np.radians(8)
    R = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    t = np.array([-0.8, 0.1, 0.2])
    pixels = []
    for T in (np.eye(3, 4), np.column_stack((R, t))):
        x = (K @ (T[:, :3] @ X.T + T[:, 3:])).T
        pixels.append(torch.from_numpy(x[:, :2] / x[:, 2:]))
    return *pixels, torch.from_numpy(K), torch.from_numpy(np.column_stack((R, t)))


def test_geometry_of_a_solid_scene_is_found_among_wrong_matches():
    xy0, xy1, K, T = solid_scene(80)
    wrong = torch.arange(80) % 4 == 0
    xy1[wrong] = xy1[wrong].roll(1, 0)
    found = pair_of(xy0, xy1)
    pose, fundamental = found.pose(K, K), found.fundamental()
    assert rotation_error(pose.model[:, :3], T[:, :3]) < 0.5
    assert translation_error(pose.model[:, 3], T[:, 3]) < 2
    for estimate in (pose, fundamental):
        assert (estimate.inliers & ~wrong).sum() == 60
        assert (estimate.inliers & wrong).sum() <= 4
    x = [torch.nn.functional.pad(xy, (0, 1), value=1.0) for xy in (xy0, xy1)]
    residual = (x[1] * (x[0] @ fundamental.model.T)).sum(1)  # x₁ᵀ F x₀
    assert residual[~wrong].abs().max() < residual[wrong].abs().median()
    with pytest.raises(MatchError):
        found.homography(threshold=1.0)  # it is no plane


def test_epipolar_distances_are_those_of_points_from_lines():
    "For a camera that moves sideways, epipolar lines are rows, and the distance is that of rows."
    sideways = torch.tensor([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]]).double()
    xy0, xy1 = torch.tensor([[3.0, 5], [7, 9]]), torch.tensor([[30.0, 5], [7, 11.5]])
    assert torch.allclose(epipolar_distances(xy0, xy1, sideways).float(), torch.tensor([0, 2.5]))
    assert estimate_fundamental(xy0, xy1) is None


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    "A photograph, the same one turned under less light, and another one."
    folder = tmp_path_factory.mktemp("photographs")
    coffee, astronaut = (
        sample_images((name,)).load(0, SIZE)[0] for name in ("coffee.png", "astronaut.png")
    )
    H = compose_homography(SIZE, rotation=15, scale=0.9)
    pictures = dict(a=coffee, b=0.6 * warp_image_reflect(coffee, H), c=astronaut)
    for name, picture in pictures.items():
        to_pil(picture).save(folder / f"{name}.png")
    return folder, H


@pytest.mark.parametrize("matcher", ["", "mnn"])
def test_a_known_homography_is_found(photographs, matcher):
    folder, H = photographs
    found = spfpn.match(folder / "a.png", folder / "b.png", matcher=matcher)
    estimate = found.homography()
    corners = torch.tensor([[40.0, 40], [280, 40], [280, 200], [40, 200]])
    assert (warp_points(corners, estimate.model) - warp_points(corners, H)).norm(dim=1).max() < 2
    assert len(found) >= int(estimate.inliers.sum()) > 50
    assert len(found.xy0) == len(found.xy1) == len(found)


def test_the_default_is_lightglue_where_its_weights_fit():
    assert ImageMatcher().matcher.name == "lightglue"
    assert ImageMatcher("sift").matcher.name == "mnn"
    with pytest.raises(ValueError, match="harris"):
        ImageMatcher("harris")


def test_another_place_is_said_to_be_one(photographs):
    folder, _ = photographs
    found = spfpn.match(folder / "a.png", folder / "c.png")
    with pytest.raises(MatchError, match=r"\d+ matches, \d+ inliers: .* the same place"):
        found.homography()
    with pytest.raises(MatchError):
        spfpn.match(np.zeros((50, 60)), folder / "a.png").homography()


def test_aligned_photographs_agree(photographs):
    folder, _ = photographs
    found = spfpn.match(folder / "b.png", folder / "a.png")
    laid, below = (np.asarray(found.align(opacity=o).convert("L"), float) for o in (1, 0))
    seen = laid > 0
    assert seen.mean() > 0.5
    # the same picture in less light: after alignment their gray values go together
    assert np.corrcoef(laid[seen], below[seen])[0, 1] > 0.95
    assert found.draw(found.homography()).width > 2 * SIZE[1]


def test_the_command_writes_what_was_asked_for(photographs, tmp_path, monkeypatch):
    folder, _ = photographs
    monkeypatch.chdir(tmp_path)
    files = (folder / "a.png", folder / "b.png")
    pictures = ("--align", "aligned.png", "--overlay", "lines.png")
    code, said = command("match", *files, *pictures, "--npz", "--json", "--csv", "--out", "found")
    assert code == 0 and "inliers" in said and said.count("wrote ") == 5
    assert Image.open("aligned.png").size == SIZE[::-1]
    arrays = np.load("found/matches.npz")
    rows = json.loads((tmp_path / "found/matches.json").read_text())["matches"]
    table = (tmp_path / "found/matches.csv").read_text().splitlines()
    assert len(rows) == len(table) - 1 == len(arrays["matches"]) == len(arrays["inliers"])
    first = arrays["keypoints0"][arrays["matches"][:, 0]]
    assert np.allclose(first, np.array(rows)[:, :2].astype(float), atol=1e-3)
    scores = np.array(rows)[:, 4].astype(float)
    assert np.allclose(arrays["scores"], scores) and (scores > 0.1).all() and (scores <= 1).all()


def test_the_ratio_test_keeps_the_distinctive_matches():
    photo = sample_images(("astronaut.png",)).load(0, (480, 640))[0]
    H = compose_homography((480, 640), rotation=25, scale=0.8)
    other = 0.6 * warp_image_reflect(photo, H)

    def right(found: Matches) -> float:
        return float(((warp_points(found.xy0, H) - found.xy1).norm(dim=1) <= 3).double().mean())

    every = spfpn.match(photo, other, matcher="mnn")
    distinct = spfpn.match(photo, other, matcher="mnn", ratio=0.9)
    alike = spfpn.match(photo, other, matcher="mnn", min_score=0.8)
    assert len(every) > len(distinct) > 200 and right(distinct) > right(every) + 0.1
    assert len(every) > len(alike) > 200 and right(alike) > right(every) + 0.02
    assert alike.scores.min() >= 0.8
    for kept in (distinct, alike):
        assert set(map(tuple, kept.indices.tolist())) <= set(map(tuple, every.indices.tolist()))


def test_frames_of_a_video_are_matched_by_any_detector(photographs):
    folder, _ = photographs
    frame = np.asarray(Image.open(folder / "a.png"), np.float32) / 255
    left, right = frame[:, :-4], frame[:, 4:]  # the camera has moved by four pixels
    options = dict(detector="harris", matcher="nearest", nms_radius=10, max_distance=6)
    found = spfpn.match(left, right, **options)
    moved = found.xy0 - found.xy1 - torch.tensor([4.0, 0])
    assert len(found) > 50 and (moved.norm(dim=1) < 1).double().mean() > 0.8
    assert found.image0.keypoints.descriptors is None


@pytest.mark.parametrize(
    "options, said",
    [
        (["--matcher", "lightglue", "--ratio", "0.8"], "'lightglue' has no option ratio"),
        (["--max-distance", "3"], "'lightglue' has no option max_distance: it has min_score"),
        (["--detector", "harris"], "take one that has, such as spfpn-s"),
    ],
)
def test_what_a_matcher_lacks_is_named(photographs, options, said):
    folder, _ = photographs
    code, output = command("match", folder / "a.png", folder / "b.png", *options)
    assert code == 2 and said in " ".join(output.split())


def test_json_on_the_terminal_is_json(photographs):
    folder, _ = photographs
    options = ("--json", "--matcher", "mnn")
    result = CliRunner().invoke(
        app, ["match", str(folder / "a.png"), str(folder / "b.png"), *options]
    )
    assert len(json.loads(result.stdout)["model"]) == 3 and "inliers" in result.stderr


def test_the_command_says_why_there_is_nothing_to_align(photographs, tmp_path, monkeypatch):
    folder, _ = photographs
    monkeypatch.chdir(tmp_path)
    code, said = command("match", folder / "a.png", folder / "c.png", "--align", "aligned.png")
    assert code == 2 and "do not seem to show the same place" in said
    assert not (tmp_path / "aligned.png").exists()


def test_a_folder_is_matched_pair_by_pair(photographs, tmp_path):
    folder, _ = photographs
    (folder / "d.png").write_bytes(b"no picture")
    out = tmp_path / "pairs"
    code, said = command("match", folder, "--pairs", "all", "--matcher", "mnn", "--out", out)
    (folder / "d.png").unlink()
    assert code == 2 and "3 pairs" in said and said.count("error: ") == 1, "named once"
    names = ("a.png-b.png.npz", "a.png-c.png.npz", "b.png-c.png.npz")
    assert sorted(path.name for path in out.iterdir()) == [*names]
    table = [line.split() for line in said.splitlines() if ".png" in line and "error" not in line]
    assert table[0][0].endswith("a.png") and table[0][1].endswith("b.png")  # the surest first


def test_pairs_are_read_from_a_file(photographs, tmp_path):
    folder, _ = photographs
    rule = tmp_path / "pairs.txt"
    rule.write_text("b.png a.png 0 0\n\n")
    options = ("--matcher", "mnn", "--out", tmp_path / "out")
    assert command("match", folder, "--pairs", rule, *options)[0] == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.png-a.png.npz"]
    rule.write_text("a.png b.png\na.png z.png\n")
    code, said = command("match", folder, "--pairs", rule, *options)
    assert code == 2 and "line 2: z.png is none of the photographs" in said
    code, said = command("match", folder, "--pairs", "some")
    assert code == 2 and "choose all, sequential, or a file" in said
    assert command("match", folder)[0] == 2  # three photographs and no rule


def test_names_that_differ_in_their_ends_keep_files_of_their_own(photographs, tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, source in {"a.png": "a", "a.jpg": "a", "b.png": "b"}.items():
        Image.open(photographs[0] / f"{source}.png").save(folder / name)
    command("match", folder, "--pairs", "all", "--matcher", "mnn", "--out", tmp_path / "out")
    assert len([*(tmp_path / "out").iterdir()]) == 3


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--colmap",), "need --pairs"),
        (("--hloc",), "need --pairs"),
        (("--pairs", "all", "--align", "x.png"), "need two photographs alone"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(photographs, options, why):
    folder, _ = photographs
    code, said = command("match", folder / "a.png", folder / "b.png", *options)
    assert code == 2 and why in said


def test_photographs_align_by_a_homography_alone(photographs):
    folder, _ = photographs
    found = spfpn.match(folder / "a.png", folder / "b.png", matcher="mnn")
    with pytest.raises(ValueError, match="not by a fundamental matrix"):
        found.align(found.fundamental())


def test_an_overlay_of_another_place_has_no_blue_line(photographs, tmp_path):
    folder, _ = photographs
    pictures = {}
    for name in ("b", "c"):
        pictures[name] = tmp_path / f"{name}.png"
        command(
            "match", folder / "a.png", folder / f"{name}.png", "--matcher", "mnn",
            "--overlay", pictures[name],
        )  # fmt: skip
    found = [Image.open(path).getcolors(10**6) for path in pictures.values()]
    blue = [(86, 180, 233) in [color for _, color in colors] for colors in found]
    assert blue == [True, False]


@pytest.mark.parametrize("name, kind", [("o.png", "PNG"), ("o.JPG", "JPEG")])
def test_a_picture_is_of_the_kind_of_its_name(photographs, tmp_path, name, kind):
    folder, _ = photographs
    files = (folder / "a.png", folder / "b.png")
    assert command("match", *files, "--matcher", "mnn", "--align", tmp_path / name)[0] == 0
    assert Image.open(tmp_path / name).format == kind
    code, said = command("match", *files, "--align", tmp_path / "o.txt")
    assert code == 2 and ".png or .jpg" in said and not (tmp_path / "o.txt").exists()


def test_the_nearest_place_is_no_evidence(photographs):
    folder, _ = photographs
    _, said = command("match", folder / "a.png", folder / "b.png", "--matcher", "nearest")
    assert "inliers do not show that it is the same place" in " ".join(said.split())
