"""Images of every kind and of none, and input that hypothesis makes up.

It is read, or it is an error of the library's own that names it.
"""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from spfpn.core.files import printable_path
from spfpn.core.runs import RunFolder
from spfpn.data.images import ImageError, folder_images, read_image, to_gray
from spfpn.data.sequences import read_homography
from spfpn.features.keypoints import Selection, extract_keypoints
from spfpn.labels.labeling import ImageLoader, label_images
from spfpn.labels.store import LabelError, LabelStore
from spfpn.show.report import write_report

ODD = (
    "a \"quoted\" & 'single' name.png",
    "two\nlines.png",
    "smörgåsbord 日本 🌉.png",
    " leading space.png",
    "[red]{braces}%s.png",
    "-p.png",
    "bell\x07.png",
)


class Brightness:
    "A teacher whose score is the image itself: the brightest places are keypoints."

    name, selection = "brightness", Selection(max_keypoints=5, border=0)

    def heatmap(self, images):
        return images

    def keypoints(self, scores):
        return extract_keypoints(scores, self.selection)


def label(folder: Path, out: Path, mode: str = "cover") -> LabelStore:
    loader = ImageLoader(folder_images(folder), (32, 48), mode)
    return label_images(Brightness(), loader, out, progress=False)


def reported(run: Path, skipped: dict[str, str]) -> str:
    "The report of a run that skipped these images."
    folder = RunFolder(run)
    folder.record("label", skipped=skipped)
    return write_report(folder).read_text(encoding="utf-8")


def colors(mode: str) -> Image.Image:
    "Red, green, blue, white: 2×2."
    image = Image.new("RGB", (2, 2))
    for place, color in zip(
        ((0, 0), (1, 0), (0, 1), (1, 1)), ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))
    ):
        image.putpixel(place, color)
    return image.convert(mode)


def png_header(width: int, height: int) -> bytes:
    "A PNG that claims a size and has no pixel."

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


# ---- images that are read


@pytest.mark.parametrize(
    "mode, suffix",
    [
        ("RGB", "png"),
        ("RGBA", "png"),
        ("P", "png"),
        ("P", "gif"),
        ("CMYK", "tif"),
        ("RGBA", "webp"),
        ("RGB", "bmp"),
        ("RGB", "ppm"),
    ],
)
def test_colors_are_what_they_are(mode, suffix, tmp_path):
    colors(mode).save(tmp_path / f"a.{suffix}", **dict(lossless=True) if suffix == "webp" else {})
    assert torch.equal(
        read_image(tmp_path / f"a.{suffix}"),
        torch.tensor([[[1.0, 0], [0, 1]], [[0, 1], [0, 1]], [[0, 0], [1, 1]]]),
    )


def test_a_cmyk_jpeg_is_as_bright_as_it_was(tmp_path):
    Image.new("CMYK", (8, 8), (0, 0, 0, 128)).save(tmp_path / "a.jpg")
    assert torch.allclose(
        read_image(tmp_path / "a.jpg"), torch.full((3, 8, 8), 127 / 255), atol=0.01
    )


@pytest.mark.parametrize(
    "mode, options",
    [
        ("RGB", {}),
        ("RGB", dict(progressive=True)),
        ("RGB", dict(keep_rgb=True)),
        ("YCbCr", {}),
        ("CMYK", {}),
        ("L", {}),
    ],
)
def test_a_jpegs_gray_is_that_of_its_colors(mode, options, tmp_path):
    Image.linear_gradient("L").convert("RGB").convert(mode).save(tmp_path / "a.jpg", **options)
    gray, color = read_image(tmp_path / "a.jpg", gray=True), read_image(tmp_path / "a.jpg")
    assert gray.shape == (1, 256, 256) and (to_gray(color) - gray).abs().max() < 2.5 / 255


def test_a_jpegs_gray_weighs_red_green_and_blue(tmp_path):
    for color, luma in (
        ((150, 90, 90), 107.94),
        ((90, 150, 90), 125.22),
        ((90, 90, 150), 96.84),
    ):  # .299, .587, .114
        Image.new("RGB", (16, 16), color).save(tmp_path / "a.jpg", quality=95)
        assert torch.allclose(
            255 * read_image(tmp_path / "a.jpg", gray=True), torch.tensor(luma), atol=1.5
        )


@pytest.mark.parametrize("dtype, most", [(np.uint8, 255), (np.uint16, 65535)])
def test_gray_of_8_and_16_bit(dtype, most, tmp_path):
    Image.fromarray(np.array([[0, most // 5, most]], dtype)).save(tmp_path / "a.png")
    assert torch.allclose(read_image(tmp_path / "a.png"), torch.tensor([[[0, 0.2, 1]]]))


def test_transparency_is_dropped_and_color_kept(tmp_path):
    Image.new("RGBA", (3, 3), (255, 0, 0, 0)).save(tmp_path / "a.png")
    Image.new("LA", (3, 3), (51, 9)).save(tmp_path / "b.png")
    assert read_image(tmp_path / "a.png")[:, 0, 0].tolist() == [1, 0, 0]
    assert torch.allclose(read_image(tmp_path / "b.png"), torch.full((1, 3, 3), 0.2))


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame(suffix, tmp_path):
    frames = [Image.new("RGB", (4, 4), (shade,) * 3) for shade in (255, 0, 128)]
    frames[0].save(
        tmp_path / f"a.{suffix}",
        save_all=True,
        append_images=frames[1:],
        **dict(lossless=True) if suffix == "webp" else {},
    )
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert image.n_frames == 3
    assert (read_image(tmp_path / f"a.{suffix}") == 1).all()


@pytest.mark.parametrize("mode", ["cover", "fit"])
@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (3, 2)])
def test_the_smallest_images_are_labeled(size, mode, tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("L", size, 200).save(tmp_path / "in" / "a.png")
    row = label(tmp_path / "in", tmp_path / "out", mode=mode).row(0)
    assert 1 <= row["height"] <= 32 and 1 <= row["width"] <= 48
    assert all(0 <= x < row["width"] for x in row["x"]) and all(
        0 <= y < row["height"] for y in row["y"]
    )


# ---- images that are not

BROKEN = dict(
    empty=b"",
    text=b"this is no image\n",
    html=b"<!DOCTYPE html><title>404</title>",
    header=b"\xff\xd8\xff\xe0",
    claims=png_header(50, 50),
    postscript=b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
)


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_image_is_named(kind, tmp_path):
    (tmp_path / "a.jpg").write_bytes(BROKEN[kind])
    with pytest.raises(ImageError, match=r"a.jpg: not a readable image \("):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "ppm"])
def test_a_truncated_image_is_named(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(
        path
    )
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ImageError, match=f"a.{suffix}: not a readable image"):
        read_image(path)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_known_range_are_refused(mode, tmp_path):
    Image.new(mode, (2, 2), 70000).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="no known range"):
        read_image(tmp_path / "a.tif")


def test_a_decompression_bomb_has_a_message_of_its_own(tmp_path, monkeypatch):
    for name, data in {
        "claims.png": png_header(20_000, 20_000),
        "more.png": png_header(2**31 - 1, 2**31 - 1),
        "a.ppm": b"P6 20000 20000 255\n",
    }.items():
        (tmp_path / name).write_bytes(data)
        reason = "more than 100,000,000 pixels, and not unpacked for that"
        advice = "make it smaller, or raise spfpn.data.decode.MAX_PIXELS"
        with pytest.raises(ImageError, match=f"{name}: {reason}; {advice}"):
            read_image(tmp_path / name)
    Image.new("1", (11_000, 10_000)).save(tmp_path / "real.png")
    assert (tmp_path / "real.png").stat().st_size < 50_000, "a small file"
    with pytest.raises(ImageError, match="more than 100,000,000 pixels"):
        read_image(tmp_path / "real.png")
    Image.new("L", (10, 11)).save(tmp_path / "small.png")
    monkeypatch.setattr("spfpn.data.decode.MAX_PIXELS", 100)
    with pytest.raises(ImageError, match="more than 100 pixels"):
        read_image(tmp_path / "small.png")
    monkeypatch.setattr("spfpn.data.decode.MAX_PIXELS", 110)
    assert read_image(tmp_path / "small.png").shape == (1, 11, 10)


# ---- a folder of all that


@pytest.fixture
def folder(tmp_path):
    "Good images under odd names, broken ones, links in circles, a folder called like an image."
    folder = tmp_path / "in"
    folder.mkdir()
    for i, name in enumerate(ODD):
        Image.new("L", (40, 30), 20 * i).save(folder / name)
    for kind, data in BROKEN.items():
        (folder / f"{kind}.jpg").write_bytes(data)
    (folder / "bomb.png").write_bytes(png_header(20_000, 20_000))
    (folder / "folder.png").mkdir()
    (folder / "notes.txt").write_text("not by suffix")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "up").symlink_to("..", target_is_directory=True)
    (folder / "nowhere.jpg").symlink_to("no such file")
    return folder


def test_what_can_be_read_is_labeled_and_the_rest_counted_and_named(folder, tmp_path):
    store = label(folder, tmp_path / "out")
    assert sorted(store.ids) == sorted(map(printable_path, ODD)), "each once"
    skipped = store.skipped
    assert sorted(skipped) == sorted([*(f"{kind}.jpg" for kind in BROKEN), "bomb.png"])
    assert (
        all(name in reason for name, reason in skipped.items()) and "pixels" in skipped["bomb.png"]
    )
    page = reported(tmp_path / "run", skipped)
    assert all(f"{name}: " in page for name in skipped)


def test_an_image_that_was_mended_is_labeled_and_no_longer_skipped(folder, tmp_path):
    (folder / "empty.jpg").rename(folder / "00.jpg")
    (folder / "empty.jpg").touch()  # also the first of all
    label(folder, tmp_path / "out")
    Image.new("L", (40, 30)).save(folder / "00.jpg")
    assert "00.jpg" in label(folder, tmp_path / "out").ids
    Image.new("L", (40, 30)).save(folder / "empty.jpg")
    store = label(folder, tmp_path / "out")
    assert "empty.jpg" in store.ids and "empty.jpg" not in store.skipped
    for path in (
        *(folder / f"{kind}.jpg" for kind in BROKEN if kind != "empty"),
        folder / "bomb.png",
    ):
        path.unlink()
    assert label(folder, tmp_path / "out").skipped == {}


@pytest.mark.skipif(
    os.name != "posix" or os.fsencode("ü") != b"\xc3\xbc",
    reason="file names are bytes on POSIX alone",
)
def test_a_name_that_is_no_utf_8(tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b"in")
    os.mkdir(folder)
    try:
        with open(os.path.join(folder, b"caf\xe9.png"), "wb") as file:
            Image.new("L", (40, 30)).save(file, "PNG")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    with open(os.path.join(folder, b"cut\xe9.png"), "wb"):
        pass
    store = label(tmp_path / "in", tmp_path / "out")
    assert store.ids == [r"caf\udce9.png"] and list(store.skipped) == [r"cut\udce9.png"]
    assert r"cut\udce9.png" in reported(tmp_path / "run", store.skipped)


def test_an_image_without_a_keypoint_spoils_no_shard(tmp_path):
    store = LabelStore(tmp_path)
    for name, points in (("a", [1.5]), ("none", []), ("b", [2.5])):
        store.append([dict(id=name, x=points, y=points, score=points)], {})
    assert store.table["x"].to_pylist() == [[1.5], [], [2.5]]


def test_a_folder_without_one_readable_image_is_an_error(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    with pytest.raises(ImageError, match="none of its 1 images can be labeled. The first: .*a.png"):
        label(tmp_path / "in", tmp_path / "out")


# ---- made up by hypothesis


def saved(mode: str, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 13, 3), dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.convert(mode).save(stream, kind, exif=exif, **options) if kind in (
        "JPEG",
        "PNG",
        "WEBP",
    ) else image.convert(mode).save(stream, kind, **options)
    return stream.getvalue()


GOOD = [
    saved(*kind)
    for kind in (
        ("RGB", "JPEG"),
        ("CMYK", "JPEG"),
        ("L", "JPEG"),
        ("RGB", "PNG"),
        ("P", "PNG"),
        ("LA", "PNG"),
        ("1", "PNG"),
        ("RGB", "WEBP"),
        ("RGB", "BMP"),
        ("P", "BMP"),
        ("RGB", "PPM"),
        ("L", "PPM"),
        ("P", "GIF"),
        ("RGB", "TIFF"),
        ("I", "TIFF"),
        ("F", "TIFF"),
    )
]


@st.composite
def damaged(draw, originals: list[bytes], most: int = 8) -> bytes:
    "A file with bytes changed, put in, taken out, or its end cut off."
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, most))):
        place = draw(
            st.integers(0, max(0, min(len(data), draw(st.sampled_from([64, len(data)]))) - 1))
        )
        change = draw(st.sampled_from(["set", "set", "insert", "delete", "cut"]))
        if change == "set":
            data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
        elif change == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif change == "delete":
            del data[place : place + draw(st.integers(1, 8))]
        else:
            del data[max(1, len(data) - draw(st.integers(1, 60))) :]
    return bytes(data)


def only_own_error(kind: type[Exception], call, *arguments):
    "What `call` returns, or None after an error of its own kind on one line."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call(*arguments)
    except kind as error:
        assert str(error) and len(str(error).splitlines()) == 1, error


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("made-up")


@given(data=damaged(GOOD) | st.binary(max_size=200))
def test_any_bytes_are_an_image_or_an_image_error(data, place):
    (place / "a.png").write_bytes(data)
    image = only_own_error(ImageError, read_image, place / "a.png")
    if image is not None:
        assert (
            image.dtype == torch.float32
            and image.dim() == 3
            and image.shape[0] in (1, 3)
            and image.min() >= 0
            and image.max() <= 1
        )


numbers = (
    st.floats()
    | st.floats(-9, 9)
    | st.integers(-3, 3)
    | st.sampled_from(["nan", "inf", "1e999", "1e-320", "x", "0x10", "1_0", "+-1", "１", ""])
)
matrices = st.lists(
    st.lists(numbers, min_size=2, max_size=4).map(lambda row: " ".join(map(str, row))),
    min_size=2,
    max_size=4,
).map("\n".join)


@given(
    text=matrices.map(str.encode)
    | st.text().map(lambda t: t.encode("utf-8", "surrogatepass"))
    | st.binary()
)
def test_any_text_is_a_homography_or_an_image_error(text, place):
    (place / "H_1_2").write_bytes(text)
    H = only_own_error(ImageError, read_homography, place / "H_1_2")
    if H is not None:
        assert (
            H.shape == (3, 3)
            and H.dtype == torch.float64
            and H.isfinite().all()
            and np.linalg.matrix_rank(H.numpy() / H.abs().max().item(), tol=1e-13) == 3
        )


@given(entries=st.lists(st.floats(-1e3, 1e3), min_size=9, max_size=9))
def test_a_homography_is_read_as_it_was_written(entries, place):
    H = np.array(entries).reshape(3, 3)
    (place / "H").write_text("\n".join(" ".join(map(repr, row)) for row in H.tolist()))
    found = only_own_error(ImageError, read_homography, place / "H")
    if found is None:
        assert not H.any() or np.linalg.cond(H) > 1e9
    else:
        assert (found.numpy() == H).all()


def rows(count: int) -> list[dict]:
    return [
        dict(
            id=f"{i}.png", height=8, width=9, x=[1.5] * i, y=[2.5] * i, score=[0.5] * i, teacher="t"
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    store = LabelStore(tmp_path_factory.mktemp("labels"))
    store.append(rows(4), dict(teacher="t"))
    return store.shards[0].read_bytes()


def read_all(store: LabelStore) -> tuple:
    return store.settings(), store.ids, store.table.to_pylist()


@given(data=st.data())
def test_any_bytes_are_a_shard_or_a_label_error(data, shard, place):
    store = LabelStore(place / "labels")
    store.folder.mkdir(exist_ok=True)
    (store.folder / "part-00000.parquet").write_bytes(
        data.draw(damaged([shard], 4) | st.binary(max_size=100))
    )
    found = only_own_error(LabelError, read_all, store)
    if found:
        assert isinstance(found[0], dict) and [row["id"] for row in found[2]] == found[1]


def test_points_survive_the_store(tmp_path):
    store = LabelStore(tmp_path)
    store.append(rows(3), dict(teacher="t"))
    assert read_all(store) == (dict(teacher="t"), ["0.png", "1.png", "2.png"], rows(3))
    assert pq.read_schema(store.shards[0]).metadata[b"spfpn"] == b'{"teacher": "t"}'


def test_an_image_too_thin_to_be_covered_is_skipped(tmp_path):
    Image.new("L", (20_000, 1)).save(tmp_path / "thin.png")
    images = folder_images(tmp_path)
    with pytest.raises(ImageError, match="thin.png: 20000×1 is too thin to cover 320×240"):
        images.load(0, (240, 320))
    assert images.load(0, (240, 320), "fit")[0].shape == (1, 1, 320)


def test_digits_of_any_script_are_a_name(tmp_path):
    for name in ("1²3.png", "a٣.png", "a10.png", "a9.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    assert [name for name in folder_images(tmp_path).ids if name in ("a9.png", "a10.png")] == [
        "a9.png",
        "a10.png",
    ]
