"Matches in hloc's files and COLMAP's database, and a model of a scene that is known."

import h5py
import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from spfpn.apps.cli import app
from spfpn.data.images import sample_images
from spfpn.features.keypoints import Keypoints
from spfpn.geometry.homography import compose_homography, warp_image_reflect
from spfpn.matching.colmap import (
    center_errors,
    localize,
    match_folder,
    reconstruct,
    save_colmap,
    save_hloc,
    similarity_transform,
)
from spfpn.matching.image_matcher import DescribedImage, ImageMatcher, Matches
from spfpn.runtime.matching import MatchError
from spfpn.show.pictures import to_pil

SIZE = (240, 320)
CAMERA = (300.0, 300.0, 159.5, 119.5)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    "Four photographs of noise, and exact keypoints of a solid scene that four cameras see."
    folder, rng = tmp_path_factory.mktemp("scene"), np.random.default_rng(0)
    X = rng.uniform((-2, -1.5, 5), (2, 1.5, 9), (200, 3))
    images, centers = {}, {}
    for k in range(4):
        angle, name = np.radians(4 * k), f"{k}.png"
        R = np.array(
            [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
        )
        centers[name] = np.array([0.5 * k, 0.1 * k**2, 0.05 * k])
        x = (X - centers[name]) @ R.T
        xy = torch.from_numpy(x[:, :2] / x[:, 2:] * CAMERA[0] + CAMERA[2:]).float()
        unit = torch.nn.functional.normalize(torch.rand(len(xy), 8), dim=1)
        images[name] = DescribedImage(folder / name, Keypoints(xy, torch.ones(len(xy)), unit), SIZE)
        Image.fromarray(rng.integers(0, 255, SIZE, np.uint8)).save(folder / name)
    index = torch.arange(len(X))[:, None].expand(-1, 2)
    names = sorted(images)
    pairs = {
        (a, b): Matches(images[a], images[b], index, torch.ones(len(X)))
        for a in names
        for b in names
        if a < b
    }
    return folder, pairs, centers


def test_a_known_scene_is_built(scene, tmp_path):
    folder, pairs, centers = scene
    model = reconstruct(pairs, folder, tmp_path, CAMERA)
    assert model.num_reg_images() == 4 and model.num_points3D() > 150
    assert model.compute_mean_reprojection_error() < 0.01  # half a pixel off would show
    errors = center_errors(model, centers)
    assert sorted(errors) == sorted(centers) and max(errors.values()) < 1e-3


class Known:
    "In place of an `ImageMatcher`: it knows the keypoints of the scene, and which of them match."

    def __init__(self, pairs: dict, wrong: int = 0):
        self.images = {n: m for one in pairs.values() for n, m in self._named(one).items()}
        count = len(next(iter(self.images.values())).keypoints)
        self.index = torch.arange(count)[:, None].repeat(1, 2)
        self.index[:wrong, 1] = self.index[:wrong, 1].roll(1)

    @staticmethod
    def _named(pair: Matches) -> dict[str, DescribedImage]:
        return {image.source.name: image for image in (pair.image0, pair.image1)}

    def describe(self, path) -> DescribedImage:
        return self.images[path.name]

    def match(self, one: DescribedImage, two: DescribedImage) -> Matches:
        return Matches(one, two, self.index, torch.ones(len(self.index)))


def test_a_photograph_is_localized_in_a_model_that_lacks_it(scene, tmp_path):
    folder, pairs, centers = scene
    some = {names: pair for names, pair in pairs.items() if "3.png" not in names}
    model = reconstruct(some, folder, tmp_path, CAMERA)
    assert model.num_reg_images() == 3
    found = localize(folder / "3.png", model, folder, matcher=Known(pairs, wrong=60))
    R, t = found.model[:, :3].numpy(), found.model[:, 3].numpy()
    known = {image.name: image.projection_center() for image in model.images.values()}
    names = sorted(known)
    scale, turn, shift = similarity_transform(
        np.array([known[name] for name in names]), np.array([centers[name] for name in names])
    )
    center = scale * turn @ (-R.T @ t) + shift
    assert np.abs(center - centers["3.png"]).max() < 1e-2
    assert found.inliers.sum() > 100 and len(found.inliers) > found.inliers.sum()
    with pytest.raises(MatchError, match="does not seem to show the scene"):
        localize(folder / "3.png", model, folder, matcher=Known(pairs, wrong=200))


def test_the_database_has_the_keypoints_and_verified_matches(scene, tmp_path):
    folder, pairs, _ = scene
    reconstruct(pairs, folder, tmp_path, CAMERA)
    with pycolmap.Database.open(tmp_path / "database.db") as database:
        ids = {image.name: image.image_id for image in database.read_all_images()}
        found = database.read_keypoints(ids["2.png"])
        assert np.allclose(found[:, :2], pairs["2.png", "3.png"].image0.keypoints.xy + 0.5)
        assert database.num_verified_image_pairs() == 6
        assert database.read_two_view_geometry_num_inliers()[1].__len__() == 6
        (camera,) = database.read_all_cameras()
    assert camera.model.name == "PINHOLE" and np.allclose(camera.params, [300, 300, 160, 120])


def test_hloc_finds_its_layout(scene, tmp_path):
    _, pairs, _ = scene
    some = Matches(
        pairs["0.png", "1.png"].image0,
        pairs["0.png", "1.png"].image1,
        torch.tensor([[3, 7], [5, 0]]),
        torch.tensor([0.5, 0.25]),
    )
    features, matches = save_hloc({("0.png", "1.png"): some}, tmp_path)
    with h5py.File(features) as file:
        assert sorted(file) == ["0.png", "1.png"]
        group = file["0.png"]
        assert group["keypoints"].shape == (200, 2) and group["descriptors"].shape == (8, 200)
        assert np.allclose(group["keypoints"], some.image0.keypoints.xy)
        assert list(group["image_size"]) == [320, 240] and group["scores"].shape == (200,)
    with h5py.File(matches) as file:
        partner = file["0.png"]["1.png"]["matches0"][:]
        scores = file["0.png"]["1.png"]["matching_scores0"][:]
    assert partner[3] == 7 and partner[5] == 0 and (partner >= 0).sum() == 2
    assert scores[3] == 0.5 and scores[5] == 0.25 and scores.sum() == 0.75


def test_names_with_spaces_and_photographs_of_two_sizes_are_verified(tmp_path):
    photo = sample_images(("coffee.png",)).load(0, SIZE)[0]
    to_pil(photo).save(tmp_path / "from above.png")
    to_pil(photo[:, :200, :300]).save(tmp_path / "from above (2).png")
    found = match_folder(tmp_path, matcher=ImageMatcher(matcher="mnn"), progress=False)
    database = save_colmap(found, tmp_path, tmp_path / "a database.db")
    with pycolmap.Database.open(database) as file:
        assert file.num_verified_image_pairs() == 1 and file.num_cameras() == 2
        assert file.read_two_view_geometry_num_inliers()[1][0] > 100


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "sub").mkdir()
    photo = sample_images(("coffee.png",)).load(0, SIZE)[0]
    for k, name in enumerate(("a.png", "b.png", "sub/c.png")):
        H = compose_homography(SIZE, rotation=8 * k)
        to_pil(warp_image_reflect(photo, H)).save(folder / name)
    return folder


def test_photographs_of_a_folder_are_each_described_once(photographs, monkeypatch):
    matcher, described = ImageMatcher(matcher="mnn", max_keypoints=300), []
    describe = matcher.describe
    monkeypatch.setattr(matcher, "describe", lambda p: described.append(p) or describe(p))
    found = match_folder(photographs, matcher=matcher, progress=False)
    assert len(described) == len(found) == 3 and min(map(len, found.values())) > 50
    some = match_folder(photographs, [("a.png", "sub/c.png")], matcher, progress=False)
    assert list(some) == [("a.png", "sub/c.png")]


def test_the_command_writes_for_both(photographs, tmp_path):
    options = ["--pairs", "all", "--matcher", "mnn", "--hloc", "--colmap", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, ["match", str(photographs), *options])
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("database.db", "features.h5", "matches.h5")
    ]
    with pycolmap.Database.open(tmp_path / "database.db") as database:
        names = {image.name for image in database.read_all_images()}
        assert names == {"a.png", "b.png", "sub/c.png"}
        assert database.num_verified_image_pairs() == 3
    with h5py.File(tmp_path / "matches.h5") as file:
        assert "a.png/sub-c.png" in file
