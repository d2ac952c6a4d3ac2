"Keypoints of an image as one has it: in Python, and as files on the command line."

import json
import os

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import spfpn
from spfpn.apps.cli import app
from spfpn.core.files import content_digest
from spfpn.data.images import ImageError, read_image
from spfpn.evaluate.protocol import detector_fingerprint
from spfpn.features.descriptors import sift_descriptors
from spfpn.features.factory import make_detector
from spfpn.features.keypoints import Selection
from spfpn.models.spfpn import PRETRAINED_DIR, SPFPN, list_pretrained, save_checkpoint


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def weights(tmp_path, monkeypatch):
    "A folder of shipped weights with one student in it."
    torch.manual_seed(0)
    save_checkpoint(SPFPN(channels=8), tmp_path / "weights" / "spfpn-s.safetensors")
    monkeypatch.setattr("spfpn.models.spfpn.PRETRAINED_DIR", tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("spfpn.models.spfpn.PRETRAINED_DIR", tmp_path / "nothing")


def write_photo(path, seed=0, size=(67, 101)):
    "Coloured blobs, with corners for every detector, as a file of odd size."
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def photo(tmp_path):
    return write_photo(tmp_path / "photo.png")


# In Python


def test_every_form_of_an_image_gives_the_same_keypoints(photo):
    detector = spfpn.load("shi", max_keypoints=20)
    expected = detector.detect(read_image(photo))
    rgb = np.array(Image.open(photo))
    assert len(expected) == 20
    for image in (
        photo,
        str(photo),
        Image.open(photo),
        rgb,
        np.asarray(Image.open(photo)),
        rgb / 255,
        cv2.imread(str(photo))[..., ::-1],
        torch.from_numpy(rgb).permute(2, 0, 1),
    ):
        found = detector.detect(image)
        assert torch.allclose(found.xy, expected.xy, atol=1e-3) and torch.allclose(
            found.scores, expected.scores, rtol=1e-3
        )
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    for image in (Image.fromarray(grey), grey.astype(np.uint16) * 257, torch.from_numpy(grey)):
        assert torch.allclose(detector.detect(image).xy, detector.detect(grey).xy, atol=1e-3)


def test_a_batch_is_a_batch_still(photo):
    batch = torch.stack([read_image(photo)] * 2)
    one, two = spfpn.load("harris", subpixel=False).detect(batch)
    (same, _) = make_detector("harris").detect(batch)
    assert torch.equal(one.xy, two.xy) and torch.equal(one.xy, same.xy)


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((3, 40, 60), np.uint8), r"\[3, 40, 60\]"),
        (np.zeros((40, 60, 4), np.uint8), r"\[40, 60, 4\]"),
        (np.zeros((0, 60), np.uint8), "at least one pixel"),
        (np.full((40, 60), 255.0), "divide by"),
        (np.full((40, 60), -0.5), "divide by"),
        (np.full((40, 60), np.nan), "nan"),
        (np.zeros((40, 60), np.int64), "int64"),
        (np.zeros((40, 60), object), "object"),
        (torch.zeros(2, 3, 40, 60).numpy(), r"\[2, 3, 40, 60\]"),
        (Image.new("F", (60, 40)), "no known range"),
        (torch.zeros(2, 40, 60), r"\[2, 40, 60\]"),
        (None, "NoneType"),
        ("nowhere.jpg", "nowhere.jpg: no such file"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(ImageError, match=message):
        spfpn.load("harris").detect(image)


def test_subpixel_finds_a_place_between_pixels():
    y, x = np.mgrid[:40, :60]
    blob = np.exp(-((x - 20.3) ** 2 + (y - 11.8) ** 2) / 8)
    away = {
        between: (
            spfpn.load("shi", max_keypoints=1, subpixel=between).detect(blob).xy[0]
            - torch.tensor([20.3, 11.8])
        )
        .norm()
        .item()
        for between in (True, False)
    }
    assert away[True] < 0.25 and away[True] < away[False]


def test_the_shipped_student_has_a_name_a_digest_and_is_the_default(weights, photo):
    assert (
        list_pretrained() == {"spfpn-s": weights / "spfpn-s.safetensors"} == spfpn.list_pretrained()
    )
    student = make_detector("spfpn-s", Selection(max_keypoints=30, subpixel=True))
    assert student.name == "spfpn-s" and student.version == content_digest(
        weights / "spfpn-s.safetensors"
    )
    found = spfpn.load(max_keypoints=8).detect(photo)
    assert len(found) == 8 and torch.equal(
        found.xy, spfpn.load(weights / "spfpn-s.safetensors", max_keypoints=8).detect(photo).xy
    )
    assert detector_fingerprint(spfpn.load()) == detector_fingerprint(
        make_detector("spfpn-s", Selection(subpixel=True))
    )  # predictions that were kept are found again
    with pytest.raises(ValueError, match=r"harris.*spfpn-s"):
        make_detector("spfpn-xl")


def test_without_a_shipped_student_the_error_says_what_to_do(no_weights):
    assert list_pretrained() == {}
    with pytest.raises(ValueError, match="unknown detector 'spfpn-s'.*none is in it.*spfpn run"):
        spfpn.load()


def test_the_package_has_no_other_attributes():
    assert PRETRAINED_DIR.parent.name == "spfpn"
    with pytest.raises(AttributeError, match="'spfpn' has no attribute 'nothing'"):
        _ = spfpn.nothing


# On the command line


@pytest.fixture
def folder(tmp_path):
    "Two photographs of one name in two folders, one broken file, and one that is no image."
    for i, name in enumerate(("north/1.png", "south/1.png")):
        write_photo(tmp_path / "in" / name, seed=i)
    (tmp_path / "in" / "south" / "2.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    return tmp_path / "in"


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_folder_is_searched_and_names_do_not_collide(folder, tmp_path):
    result = call(
        "detect",
        folder,
        "--checkpoint",
        "shi",
        "--npz",
        "--colmap",
        "--overlay",
        "--max-keypoints",
        9,
        "--out",
        tmp_path / "out",
    )
    assert result.exit_code == 2 and "2.jpg: not a readable image" in result.output
    assert files(tmp_path / "out") == sorted(
        f"{place}/1.png{end}"
        for place in ("north", "south")
        for end in (".npz", ".txt", ".keypoints.png")
    )
    detector, found = spfpn.load("shi", max_keypoints=9), {}
    for place in ("north", "south"):
        with np.load(tmp_path / "out" / place / "1.png.npz") as file:
            found[place] = dict(file)
        expected = detector.detect(folder / place / "1.png")
        assert np.array_equal(found[place]["keypoints"], expected.xy.numpy()) and np.array_equal(
            found[place]["scores"], expected.scores.numpy()
        )
        assert found[place]["size"].tolist() == [67, 101]
    assert not np.array_equal(found["north"]["keypoints"], found["south"]["keypoints"])


def test_files_given_one_by_one_do_not_collide_either(folder, tmp_path):
    north, south = folder / "north" / "1.png", folder / "south" / "1.png"
    assert (
        call(
            "detect", north, south, "--checkpoint", "shi", "--npz", "--out", tmp_path / "out"
        ).exit_code
        == 0
    )
    assert files(tmp_path / "out") == ["north/1.png.npz", "south/1.png.npz"]
    assert (
        call("detect", north, "--checkpoint", "shi", "--npz", "--out", tmp_path / "one").exit_code
        == 0
    )
    assert files(tmp_path / "one") == ["1.png.npz"]


def read_colmap(path):
    "Read x, y, scale, orientation [N, 4] and descriptors [N, 128], as COLMAP does."
    head, *lines = path.read_text().splitlines()
    count, dim = map(int, head.split())
    rows = np.array([line.split() for line in lines], float)
    assert dim == 128 and rows.shape == (count, 4 + dim)
    return rows[:, :4], rows[:, 4:]


def test_colmap_gets_its_own_origin_and_sift(photo, tmp_path):
    call("detect", photo, "--checkpoint", "shi", "--colmap", "--out", tmp_path / "out")
    frames, descriptors = read_colmap(tmp_path / "out" / "photo.png.txt")
    points, grey = spfpn.load("shi").detect(photo), cv2.imread(str(photo), cv2.IMREAD_GRAYSCALE)
    assert (
        np.allclose(frames[:, :2], points.xy.numpy() + 0.5, atol=2e-3) and (frames[:, 3] == 0).all()
    )
    assert (
        np.array_equal(descriptors, descriptors.round())
        and descriptors.min() >= 0
        and descriptors.max() <= 255
    )
    unit = descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)
    sift = sift_descriptors(torch.from_numpy(grey)[None] / 255, points.xy).numpy()
    assert (unit * sift).sum(1).min() > 0.99


def test_an_image_that_its_tag_turns_is_named_for_colmap(photo, tmp_path):
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.open(photo).save(tmp_path / "turned.jpg", exif=tag)
    result = call(
        "detect",
        photo,
        tmp_path / "turned.jpg",
        "--checkpoint",
        "shi",
        "--colmap",
        "--out",
        tmp_path / "out",
    )
    assert (
        result.exit_code == 0
        and "turned.jpg: its EXIF tag turns it" in result.output
        and "photo.png: its EXIF" not in result.output
    )


def test_an_image_without_keypoints_is_written_too(tmp_path):
    Image.new("L", (64, 64)).save(tmp_path / "blank.png")
    assert (
        call(
            "detect",
            tmp_path / "blank.png",
            "--checkpoint",
            "shi",
            "--npz",
            "--colmap",
            "--out",
            tmp_path,
        ).exit_code
        == 0
    )
    assert (tmp_path / "blank.png.txt").read_text() == "0 128\n" and np.load(
        tmp_path / "blank.png.npz"
    )["keypoints"].shape == (0, 2)


def test_a_file_is_whole_or_the_old_one(photo, tmp_path, monkeypatch):
    arguments = ("detect", photo, "--checkpoint", "shi", "--npz", "--out", tmp_path / "out")
    call(*arguments)
    before = (tmp_path / "out" / "photo.png.npz").read_bytes()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    result = call(*arguments, "--max-keypoints", 3)
    assert result.exit_code == 2 and "no space left" in result.output
    assert (tmp_path / "out" / "photo.png.npz").read_bytes() == before


def test_the_shipped_student_is_the_commands_default_and_overlays_are_no_photographs(
    photo, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        result = call("detect", photo, "--overlay")
        assert result.exit_code == 0 and "detector: spfpn-s" in result.output
    result = call("detect", tmp_path, "--json", "--max-keypoints", 5, "--out", tmp_path / "out")
    [image] = json.loads((tmp_path / "out" / "keypoints.json").read_text())
    assert np.allclose(
        np.array(image["keypoints"])[:, :2],
        spfpn.load(max_keypoints=5).detect(photo).xy.numpy(),
        atol=1e-2,
    )


def test_a_folder_without_images_is_named(tmp_path):
    result = call("detect", tmp_path, "--checkpoint", "shi")
    assert result.exit_code == 2 and f"{tmp_path}: no image in it" in result.output


@pytest.mark.parametrize("name", ["fast", "aliked", "spfpn-s"])
def test_a_batch_is_what_its_images_are(photo, name):
    detector = spfpn.load(name, max_keypoints=30)
    rgb = torch.from_numpy(np.array(Image.open(photo))).permute(2, 0, 1)
    alone = detector.detect(rgb)
    for found in (
        detector.detect(torch.stack((rgb, rgb.flip(-1)))),
        detector.detect(rgb[None].float() / 255),
    ):
        assert len(alone) == len(found[0]) and torch.allclose(found[0].xy, alone.xy, atol=1e-3)
    assert detector.detect(rgb[None][:0]) == []
    with pytest.raises(ImageError, match="must lie in"):
        detector.detect(rgb[None].float())


def test_a_name_that_is_no_utf_8_spoils_no_table(tmp_path):
    path = write_photo(tmp_path / os.fsdecode(b"\xff.png"))
    printed = call("detect", path, "--csv")
    assert printed.exit_code == 0 and printed.output.count("\\udcff.png") > 5
