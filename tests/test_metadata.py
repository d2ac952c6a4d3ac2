"""What a file says beside its pixels never costs the pixels.

Each format gets every orientation, nonsense instead of it, and metadata that hypothesis makes up.
"""

import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from test_bad_input import Brightness, label
from typer.testing import CliRunner

from spfpn.apps.cli import app
from spfpn.data.decode import has_exif_rotation
from spfpn.data.images import ImageError, read_image, to_image_tensor

KINDS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "JPEG": {"quality": 100}}
UPRIGHT = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)  # no symmetry
STORED = {  # the rows and columns of a file, by the value of its tag (TIFF 6.0, page 36)
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: UPRIGHT.T[::-1],
    7: UPRIGHT.T[::-1, ::-1],
    8: UPRIGHT.T[:, ::-1],
}


def exif_block(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    "An EXIF block with one tag, written byte by byte."
    mark = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(order + {3: "HH", 4: "I"}[kind], *[orientation, 0][: 5 - kind])
    entry = struct.pack(order + "HHI", 0x0112, kind, 1) + value
    directory = struct.pack(order + "H", 1) + entry + struct.pack(order + "I", 0)
    return b"Exif\0\0" + mark + struct.pack(order + "I", 8) + directory


def big(pixels: np.ndarray) -> np.ndarray:
    "Blocks of 8 × 8 pixels, which a JPEG keeps."
    return np.kron(pixels, np.ones((8, 8), np.uint8))


def save(path, pixels: np.ndarray, kind: str, **metadata) -> None:
    Image.fromarray(pixels).convert("RGB").save(path, kind, **KINDS[kind], **metadata)


def gray_levels(path) -> np.ndarray:
    return (255 * read_image(path, gray=True)[0]).round().numpy()


@pytest.mark.parametrize("value", STORED)
@pytest.mark.parametrize("kind", KINDS)
def test_every_orientation_is_turned_upright(kind, value, tmp_path):
    path = tmp_path / "a"
    save(path, big(STORED[value]), kind, exif=exif_block(value))
    assert np.abs(gray_levels(path) - big(UPRIGHT)).max() <= 2
    assert has_exif_rotation(path) == (value != 1)
    if kind != "TIFF":  # Pillow turns these itself when it loads them
        with Image.open(path) as image:
            found = to_image_tensor(image, gray=True)
            assert np.abs((255 * found[0]).numpy() - big(UPRIGHT)).max() <= 2


@pytest.mark.parametrize("order, kind", [(">", 3), ("<", 4)])
def test_either_byte_order_and_a_long_orientation_count(order, kind, tmp_path):
    save(tmp_path / "a.png", STORED[6], "PNG", exif=exif_block(6, order, kind))
    assert (gray_levels(tmp_path / "a.png") == UPRIGHT).all()


@pytest.mark.parametrize("value", [0, 9, 255, 65535])
@pytest.mark.parametrize("kind", KINDS)
def test_another_orientation_is_not_turned(kind, value, tmp_path):
    path = tmp_path / "a"
    save(path, big(UPRIGHT), kind, exif=exif_block(value))
    assert np.abs(gray_levels(path) - big(UPRIGHT)).max() <= 2 and not has_exif_rotation(path)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
def test_a_tiff_is_turned_whatever_its_compression_and_its_other_directories(compression, tmp_path):
    tags = Image.Exif()
    tags[0x0112], tags[0x8769], tags[0x8825] = 6, 2**31, 2**31  # directories beyond the end
    image = Image.fromarray(STORED[6])
    image.save(tmp_path / "a.tif", compression=compression, tiffinfo=dict(tags))
    assert (gray_levels(tmp_path / "a.tif") == UPRIGHT).all()


# ---- malformed blocks, each of which stopped a folder


MALFORMED = {
    "empty": b"Exif\0\0",
    "cut": exif_block(6)[:12],
    "a text": b"Exif\0\0" + b"no block at all" * 9,
    "an offset beyond the end": b"Exif\0\0II*\0" + struct.pack("<I", 2**31),
    "a circle": b"Exif\0\0II*\0" + struct.pack("<IHI", 8, 0, 8),
    "a float": exif_block(6).replace(b"\x12\x01\x03\0", b"\x12\x01\x0b\0"),
    "bytes": exif_block(6).replace(b"\x12\x01\x03\0", b"\x12\x01\x07\0"),
    "65,535 tags": b"Exif\0\0II*\0" + struct.pack("<IH", 8, 65535) + bytes(40),
}


@pytest.mark.parametrize("block", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_malformed_exif_block_costs_nothing(kind, block, tmp_path):
    save(tmp_path / "a", big(UPRIGHT), kind, exif=block)
    found = gray_levels(tmp_path / "a")
    assert found.shape in ((32, 48), (48, 32))
    if found.shape == (32, 48):
        assert np.abs(found - big(UPRIGHT)).max() <= 2
    assert isinstance(has_exif_rotation(tmp_path / "a"), bool)


def chunk(name: bytes, data: bytes, wrong: int = 0) -> bytes:
    return (
        struct.pack(">I", len(data))
        + name
        + data
        + struct.pack(">I", zlib.crc32(name + data) ^ wrong)
    )


def png(*chunks: bytes, before: bool = True) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(UPRIGHT).save(stream, "PNG")
    place = 33 if before else len(stream.getvalue()) - 12
    return stream.getvalue()[:place] + b"".join(chunks) + stream.getvalue()[place:]


def jpeg(*segments: tuple[int, bytes]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(big(UPRIGHT)).save(stream, "JPEG", quality=100)
    parts = (struct.pack(">BBH", 255, mark, len(data) + 2) + data for mark, data in segments)
    return b"\xff\xd8" + b"".join(parts) + stream.getvalue()[2:]


LONG = zlib.compress(bytes(3_000_000))  # more text than Pillow unpacks


@pytest.mark.parametrize(
    "data",
    [
        png(chunk(b"zTXt", b"prompt\0\0" + LONG)),
        png(chunk(b"zTXt", b"prompt\0\0" + LONG), before=False),
        png(chunk(b"iTXt", b"prompt\0\1\0\0\0" + LONG)),
        png(chunk(b"iCCP", b"profile\0\0" + LONG)),
        png(chunk(b"iCCP", b"profile\0\7")),
        png(chunk(b"tEXt", b"a\0b", wrong=1)),
        png(chunk(b"pHYs", b"")),
        png(chunk(b"gAMA", b"")),
        png(chunk(b"tRNS", b"")),
        png(chunk(b"acTL", b"\0")),
        png(chunk(b"eXIf", b"MM", wrong=1)),
    ],
)
def test_a_chunk_that_only_describes_costs_no_png(data, tmp_path):
    (tmp_path / "a.png").write_bytes(data)
    assert (gray_levels(tmp_path / "a.png") == UPRIGHT).all()


def test_a_turned_png_stays_turned_without_its_long_text(tmp_path):
    text, block = chunk(b"zTXt", b"prompt\0\0" + LONG), chunk(b"eXIf", exif_block(6)[6:])
    (tmp_path / "a.png").write_bytes(png(text, block))
    assert (gray_levels(tmp_path / "a.png") == np.rot90(UPRIGHT, -1)).all()
    assert has_exif_rotation(tmp_path / "a.png")


@pytest.mark.parametrize("mark, data", [(0xE0, b"JFIF\0"), (0xEE, b"Adobe"), (0xE2, b"MPF\0II*\0")])
def test_a_short_segment_costs_no_jpeg(mark, data, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg((mark, data), (0xE1, exif_block(3))))
    assert np.abs(gray_levels(tmp_path / "a.jpg") - big(UPRIGHT)[::-1, ::-1]).max() <= 2


def test_a_broken_chunk_of_pixels_is_still_an_error(tmp_path):
    whole = png()
    (tmp_path / "a.png").write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    with pytest.raises(ImageError, match=r"a.png: not a readable image"):
        read_image(tmp_path / "a.png")


# ---- any metadata


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("metadata")


blocks = st.one_of(
    st.binary(max_size=60),
    st.binary(max_size=60).map(lambda rest: b"Exif\0\0II*\0\x08\0\0\0" + rest),
    st.tuples(st.sampled_from([*MALFORMED.values(), exif_block(6)]), st.integers(0, 40)).map(
        lambda pair: pair[0][: pair[1]]
    ),
)


@given(
    exif=blocks,
    icc=st.binary(max_size=40),
    xmp=st.binary(max_size=40),
    kind=st.sampled_from([*KINDS][:2]),
)
def test_any_metadata_leave_the_pixels(exif, icc, xmp, kind, place):
    options = dict(exif=exif, icc_profile=icc, **(dict(xmp=xmp) if kind == "WEBP" else {}))
    save(place / "a", UPRIGHT, kind, **options)
    found = gray_levels(place / "a")
    assert sorted(found.ravel()) == sorted(UPRIGHT.ravel())


names = st.sampled_from(
    [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"tIME", b"pHYs", b"cHRM", b"sRGB"]
)
described = st.tuples(names, st.binary(max_size=40), st.integers(0, 1))


@given(chunks=st.lists(described, min_size=1, max_size=3), before=st.booleans())
def test_any_chunks_leave_the_pixels(chunks, before, place):
    (place / "b.png").write_bytes(png(*(chunk(*each) for each in chunks), before=before))
    found = gray_levels(place / "b.png")
    assert sorted(found.ravel()) == sorted(UPRIGHT.ravel())


segments = st.tuples(st.sampled_from([*range(0xE0, 0xF0), 0xFE]), st.binary(max_size=60))
starts = st.sampled_from(
    [b"", b"JFIF\0", b"Exif\0\0II*\0", b"ICC_PROFILE\0", b"MPF\0", b"Photoshop 3.0\0"]
)


@given(parts=st.lists(st.tuples(segments, starts), min_size=1, max_size=3))
def test_any_segments_leave_the_pixels(parts, place):
    chosen = [(mark, start + data) for (mark, data), start in parts]
    if any(mark == 0xEE and len(data) >= 12 and data[:5] == b"Adobe" for mark, data in chosen):
        return  # it says which colors the pixels are
    (place / "c.jpg").write_bytes(jpeg(*chosen))
    assert gray_levels(place / "c.jpg").size == 64 * UPRIGHT.size


# ---- one file never costs the folder


@pytest.fixture
def folder(tmp_path):
    "Photographs with malformed metadata, and files that each stop a decoder in a way of its own."
    folder = tmp_path / "in"
    folder.mkdir()
    for number, block in enumerate(MALFORMED.values()):
        save(folder / f"{number}.jpg", big(UPRIGHT), "JPEG", exif=block)
    return folder


def test_malformed_metadata_stop_neither_label_nor_detect(folder, tmp_path):
    store = label(folder, tmp_path / "out")
    assert len(store.ids) == len(MALFORMED) and store.skipped == {}
    command = [
        "detect",
        str(folder),
        "--detector",
        "shi",
        "--colmap",
        "--out",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and len([*(tmp_path / "out").glob("*.txt")]) == len(MALFORMED)


ERRORS = (
    struct.error,
    SyntaxError,
    OverflowError,
    zlib.error,
    KeyError,
    AssertionError,
    EOFError,
    RecursionError,
)


@pytest.mark.parametrize("error", ERRORS)
def test_any_error_of_a_decoder_belongs_to_its_file(error, folder, tmp_path, monkeypatch):
    load = JpegImageFile.load
    Image.new("L", (24, 24)).save(folder / "3.jpg")

    def fail(image):
        if image.size == (24, 24):
            raise error("deep inside\na decoder")
        return load(image)

    monkeypatch.setattr(JpegImageFile, "load", fail)
    with pytest.raises(ImageError, match="3.jpg: not a readable image .*deep inside") as raised:
        read_image(folder / "3.jpg")
    assert len(str(raised.value).splitlines()) == 1
    store = label(folder, tmp_path / "out")
    assert list(store.skipped) == ["3.jpg"] and len(store.ids) == len(MALFORMED) - 1
    result = CliRunner().invoke(app, ["detect", str(folder), "--detector", "shi"])
    assert result.exit_code == 2 and result.output.count("keypoints") == len(MALFORMED) - 1


def test_many_threads_read_without_a_word_and_leave_pythons_filters(folder):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        before = [*warnings.filters]
        work = [threading.Thread(target=read_image, args=(path,)) for path in folder.iterdir()]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        assert warnings.filters == before and not heard


def test_a_teacher_sees_the_same_pixels_with_and_without_metadata(tmp_path):
    save(tmp_path / "plain.png", UPRIGHT, "PNG")
    save(tmp_path / "odd.png", UPRIGHT, "PNG", exif=MALFORMED["cut"])
    plain, odd = (read_image(tmp_path / name) for name in ("plain.png", "odd.png"))
    assert torch.equal(plain, odd) and torch.equal(Brightness().heatmap(plain), odd)
