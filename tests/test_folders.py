"""Folders and text files as people leave them: links, leftovers of systems, marks, names."""

import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from spfpn.apps.cli import app
from spfpn.apps.cli_detect import _names_below
from spfpn.core.files import ConfigError, find_files, read_settings_ini, read_text
from spfpn.data.images import ImageError, folder_images, open_images, validation_ids
from spfpn.data.sequences import open_frames, open_sequences, read_homography

NFC, NFD = (unicodedata.normalize(form, "é日本й") for form in ("NFC", "NFD"))


def photo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (4, 6), dtype=np.uint8)
    Image.fromarray(pixels).resize((96, 64)).save(path)
    return path


def link(place: Path, target: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target, target_is_directory=True)
    return place


# ---- links


def test_a_linked_folder_of_photographs_is_read(tmp_path):
    photo(tmp_path / "disk" / "b.png")
    photo(tmp_path / "in" / "a.png")
    link(tmp_path / "in" / "more", tmp_path / "disk")
    assert folder_images(tmp_path / "in").ids == ("a.png", "more/b.png")
    assert folder_images(link(tmp_path / "all", tmp_path / "in")).ids == ("a.png", "more/b.png")


def test_a_folder_is_read_once_however_many_links_lead_to_it(tmp_path):
    photo(tmp_path / "in" / "z" / "a.png")
    link(tmp_path / "in" / "0", tmp_path / "in" / "z")
    link(tmp_path / "in" / "1", tmp_path / "in" / "z")
    assert folder_images(tmp_path / "in").ids == ("z/a.png",), "its own place counts"
    photo(tmp_path / "disk" / "b.png")
    link(tmp_path / "in" / "2", tmp_path / "disk")
    link(tmp_path / "in" / "3", tmp_path / "disk")
    assert folder_images(tmp_path / "in").ids == ("2/b.png", "z/a.png")


def test_circles_end_and_bring_nothing_from_above(tmp_path):
    photo(tmp_path / "above.png")
    photo(tmp_path / "in" / "a" / "1.png")
    photo(tmp_path / "disk" / "2.png")
    photo(tmp_path / "disk" / "deep" / "3.png")
    link(tmp_path / "in" / "up", tmp_path)
    link(tmp_path / "in" / "a" / "top", tmp_path / "in")
    link(tmp_path / "in" / "disk", tmp_path / "disk" / "deep")
    link(tmp_path / "disk" / "deep" / "parent", tmp_path / "disk")
    link(tmp_path / "disk" / "deep" / "back", tmp_path / "in")
    (tmp_path / "in" / "self").symlink_to("self")
    (tmp_path / "in" / "gone").symlink_to("nowhere")
    assert folder_images(tmp_path / "in").ids == ("a/1.png", "disk/3.png")


# ---- what systems leave behind


def test_leftovers_of_other_systems_are_no_photographs(tmp_path):
    photo(tmp_path / "a.png")
    for name in ("._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.jpg"):
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    for folder in ("__MACOSX", "@eaDir/a.png", ".thumbnails", ".git"):
        photo(tmp_path / folder / "b.png")
    assert folder_images(tmp_path).ids == ("a.png",)
    result = CliRunner().invoke(app, ["detect", str(tmp_path), "--detector", "shi"])
    assert result.exit_code == 0 and "._a" not in result.output


def test_a_folder_inside_a_hidden_one_can_be_named(tmp_path):
    photo(tmp_path / ".cache" / "photos" / "a.png")
    assert folder_images(tmp_path / ".cache" / "photos").ids == ("a.png",)


def test_frames_and_sequences_are_found_as_photographs_are(tmp_path):
    for name in ("walk/1.png", "walk/2.PNG", "walk/._1.png", "walk/10.jpg"):
        photo(tmp_path / "video" / name)
    link(tmp_path / "video" / "drive", photo(tmp_path / "disk" / "1.png").parent)
    photo(tmp_path / "disk" / "2.png")
    frames = {s.name: [path.name for path in s.images] for s in open_frames(tmp_path / "video")}
    assert frames == {"walk": ["1.png", "2.PNG", "10.jpg"], "drive": ["1.png", "2.png"]}
    scene = tmp_path / "elsewhere" / "v_a"
    for name in ("1.PNG", "2.JPG", "._1.png", "1.jpg"):
        photo(scene / name)
    (scene / "H_1_2").write_text("1 0 0\n0 1 0\n0 0 1")
    (tmp_path / "sequences").mkdir()
    link(tmp_path / "sequences" / "v_a", scene)
    (one,) = open_sequences(str(tmp_path / "sequences"))
    assert [path.name for path in one.images] == ["1.PNG", "2.JPG"]


# ---- names


@pytest.mark.parametrize("form", [NFC, NFD])
def test_a_name_has_one_id_on_every_machine(form, tmp_path):
    photo(tmp_path / f"f{form}" / f"{form}.png")
    images = folder_images(tmp_path)
    assert images.ids == (f"f{NFC}/{NFC}.png",) and images.paths[0].is_file()
    assert validation_ids(images.ids) == [f"f{NFC}/{NFC}.png"]
    assert images.load(0, (32, 48))[0].shape == (1, 32, 48)


def test_two_spellings_of_one_name_stay_two(tmp_path):
    for form in (NFC, NFD):
        photo(tmp_path / f"{form}.png")
    if len([*tmp_path.iterdir()]) == 2:  # macOS has one
        assert sorted(folder_images(tmp_path).ids) == sorted((f"{NFC}.png", f"{NFD}.png"))


def test_numbers_in_names_count_in_any_folder(tmp_path):
    for name in ("f10.png", "f9.png", "9/1.png", "10/1.png"):
        photo(tmp_path / name)
    found = [path.relative_to(tmp_path).as_posix() for path in find_files(tmp_path, (".png",))]
    assert found == ["9/1.png", "10/1.png", "f9.png", "f10.png"]


# ---- where files of several folders go


@pytest.mark.parametrize(
    "kind, folders, paths, names",
    [
        (PurePosixPath, ["/a/b", "/a/c"], ["/a/b/1.png", "/a/c/1.png"], ["b/1.png", "c/1.png"]),
        (PurePosixPath, ["/a", "/b"], ["/a/1.png", "/b/1.png"], ["a/1.png", "b/1.png"]),
        (PurePosixPath, ["/a"], ["/a/x/1.png"], ["x/1.png"]),
        (PureWindowsPath, ["C:/a", "c:/A/b"], ["C:/a/1.png", "c:/A/b/2.png"], ["1.png", "b/2.png"]),
        (
            PureWindowsPath,
            ["C:/a", "D:/a"],
            ["C:/a/1.png", "D:/a/1.png"],
            ["C/a/1.png", "D/a/1.png"],
        ),
        (
            PureWindowsPath,
            ["//server/share/a", "C:/a"],
            ["//server/share/a/1.png", "C:/a/1.png"],
            ["server_share/a/1.png", "C/a/1.png"],
        ),
    ],
)
def test_files_of_several_folders_and_drives_stay_apart(kind, folders, paths, names):
    found = _names_below([kind(folder) for folder in folders], [kind(path) for path in paths])
    assert [name.replace("\\", "/") for name in found] == names


# ---- text

SETTINGS = "[paths]\noutputs = été\n\n[base]\nrun.seed = 7\n"
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"]
MARKS = {"utf-16-le": "\ufeff"}


def written(path: Path, text: str, encoding: str) -> Path:
    with path.open("w", encoding=encoding, newline="\r\n") as file:
        file.write(MARKS.get(encoding, "") + text)
    return path


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_byte_order_mark_is_no_letter(encoding, tmp_path):
    assert read_text(written(tmp_path / "a.txt", "é\n日本\n", encoding)) == "é\n日本\n"
    H = torch.tensor([[1, 0, 4.5], [0, 1, -2], [0, 0, 1]], dtype=torch.float64)
    text = "\n".join(" ".join(map(str, row)) for row in H.tolist())
    assert torch.equal(read_homography(written(tmp_path / "H_1_2", text, encoding)), H)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_settings_may_begin_with_a_byte_order_mark(encoding, tmp_path, monkeypatch):
    (tmp_path / "nbs").mkdir()
    written(tmp_path / "settings.ini", SETTINGS, encoding)
    monkeypatch.chdir(tmp_path)
    found = read_settings_ini()
    assert found["paths"]["outputs"] == "été" and found["base"]["run.seed"] == "7"


@pytest.mark.parametrize("data", [b"\xff\xfe\0", b"[paths]\noutputs = \xe9\n", b"no section"])
def test_settings_that_are_no_text_are_named(data, tmp_path, monkeypatch):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "settings.ini").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"settings.ini: ") as raised:
        read_settings_ini()
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("data", [b"\xff\xfe\0", b"\xef\xbb\xbf", b"\xff\xfe\0\0\1"])
def test_a_homography_that_is_no_text_is_named(data, tmp_path):
    (tmp_path / "H_1_2").write_bytes(data)
    with pytest.raises(ImageError, match="H_1_2"):
        read_homography(tmp_path / "H_1_2")


def test_a_folder_of_leftovers_alone_has_no_image(tmp_path):
    (tmp_path / "._a.png").write_bytes(b"\0\5\26\7")
    with pytest.raises(ImageError, match="no image in it"):
        open_images(str(tmp_path))
