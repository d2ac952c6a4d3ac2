"What comes from outside is data: no pickle runs, and no name becomes markup or code."

import ast
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from huggingface_hub import constants
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import spfpn
from spfpn.apps.cli import app
from spfpn.apps.workbook import notebook_parameters
from spfpn.core.config import Config
from spfpn.core.files import ConfigError, WeightsError, project_root
from spfpn.core.runs import RunFolder
from spfpn.data.images import folder_images
from spfpn.data.sequences import warped_sample_sequences
from spfpn.evaluate.repeatability import R1
from spfpn.features.factory import make_detector
from spfpn.features.teachers import SUPERPOINT_OPEN
from spfpn.labels.store import LabelStore
from spfpn.matching.matchers import LIGHTGLUE_SUPERPOINT, make_matcher
from spfpn.models.spfpn import CheckpointError, load_checkpoint, make_backbone
from spfpn.show.gallery import PictureGroup, ReportPicture
from spfpn.show.image_explorers import HeatmapExplorer
from spfpn.show.report import write_report
from spfpn.train.loop import TrainingError, TrainState

# ---- pickles


class Trap:
    "Makes a folder when it is unpickled."

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trap(tmp_path):
    "trap(path) writes a .pth there; after the test it has not run."

    def write(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"weight": Trap(tmp_path / "it ran")}, path)
        return path

    yield write
    assert not (tmp_path / "it ran").exists()


def test_the_trap_works(tmp_path):
    torch.save({"weight": Trap(tmp_path / "it ran")}, tmp_path / "a.pth")
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert (tmp_path / "it ran").is_dir()


@pytest.mark.parametrize(
    "weights, load_it",
    [
        (SUPERPOINT_OPEN, lambda: make_detector("superpoint-open")),
        (LIGHTGLUE_SUPERPOINT, lambda: make_matcher("lightglue", "superpoint")),
    ],
)
@pytest.mark.parametrize("forced", ["", "1"])
def test_weights_of_a_teacher_or_matcher_run_no_code(
    weights, load_it, forced, trap, tmp_path, monkeypatch
):
    monkeypatch.setenv(
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced
    )  # even where torch is told that all files are trusted
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    trap(weights.path)
    with pytest.raises(WeightsError, match="not a file of weights"):
        load_it()


def test_weights_of_a_backbone_run_no_code(trap, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--timm--mobilenetv3_small_100.lamb_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    trap(repository / "snapshots" / ("0" * 40) / "pytorch_model.bin")
    with pytest.warns(UserWarning, match="starts from random weights"):
        assert make_backbone("mobilenetv3_small_100", pretrained=True)[1] == "random"


def test_the_state_of_a_training_runs_no_code(trap, tmp_path):
    trap(tmp_path / "state.pt")
    with pytest.raises(TrainingError, match="state.pt: not the state of a training"):
        TrainState(torch.nn.Linear(1, 1), tmp_path, 0.1, {}).resume()


def test_a_pickle_called_a_checkpoint_runs_no_code(trap, tmp_path):
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_checkpoint(trap(tmp_path / "a.safetensors"))
    with pytest.raises(ValueError, match="unknown detector"):
        make_detector(trap(tmp_path / "a.pth"))


def calls_of(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_nothing_in_the_library_unpickles():
    for path in Path(spfpn.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {
            name.name
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in node.names
        }
        assert not imported & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}, path
        for name, call in calls_of(tree):
            assert name not in (
                "np.load",
                "pd.read_pickle",
                "torch.jit.load",
                "torch.hub.load",
                "torch.hub.load_state_dict_from_url",
                "eval",
                "exec",
            ), f"{path}: {name}"
            if name == "torch.load":
                assert (
                    ast.unparse(next(k.value for k in call.keywords if k.arg == "weights_only"))
                    == "True"
                ), path


# ---- names as markup

EVIL = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    '"><svg onload=alert(3)>',
    "'onmouseover='alert(4)",
    "<b>&amp;{title}",
)


class Page(HTMLParser):
    "The tags of a page with the names of their attributes, and the text of its scripts."

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.scripts, self.within = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, *(name for name, _ in attributes)))
        self.within = tag

    def handle_endtag(self, tag):
        self.within = ""

    def handle_data(self, data):
        if self.within == "script":
            self.scripts.append(data)


def page_of(report: Path) -> Page:
    "The report as a list of its tags."
    return Page(report.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "run(name) writes the report of a run in which everything that can be named is called so."
    rows = replace(R1, size=(60, 80)).run(
        make_detector("harris", R1.selection), warped_sample_sequences(1)
    )

    @lru_cache
    def report(name: str) -> Page:
        out = tmp_path_factory.mktemp("run")
        LabelStore(out / "labels").append(
            [dict(id=name, height=9, width=9, x=[1.0], y=[1.0], score=[1.0], teacher=name)], {}
        )
        rows.assign(
            **{
                column: name
                for column in ("detector", "set", "version", "set_digest", "origin")
                if column in rows
            }
        ).to_parquet(out / "metrics.parquet")
        for phase in ("phase1", "phase2"):
            (out / phase).mkdir()
            pd.DataFrame(
                [dict(step=s, epoch=1.0, split="train", name=name, value=1.0) for s in (1, 2)]
            ).to_parquet(out / phase / "log.parquet")
        RunFolder(out).record(
            "run",
            git_commit=name,
            seed=name,
            device=name,
            started=name,
            settings={name: name},
            versions={name: name},
        )
        RunFolder(out).record(name, skipped={name: f"{name}: not a readable image"}, **{name: name})
        picture = ReportPicture(Image.new("L", (4, 4)), name, name)
        return page_of(write_report(RunFolder(out), [PictureGroup(name, name, (picture,), name)]))

    return report


@pytest.mark.parametrize("name", EVIL)
def test_a_name_is_text_in_the_report(name, run):
    tame, evil = run("tame"), run(name)
    assert evil.tags == tame.tags, "the name adds no tag and no attribute"
    assert not [tag for tag in evil.tags if any(attribute.startswith("on") for attribute in tag)]
    assert len(evil.scripts) == len(tame.scripts)


@pytest.mark.skipif(os.name != "posix", reason="needs a file system that takes any name")
def test_a_file_of_that_name_is_text_in_report_and_explorer(tmp_path):
    (tmp_path / "in").mkdir()
    names = [f"{name.replace('/', '')}.png" for name in EVIL]
    for name in names:
        (tmp_path / "in" / name).write_bytes(b"")
    Image.new("L", (48, 32)).save(tmp_path / "in" / f"good {names[0]}")
    photographs = folder_images(tmp_path / "in")
    from test_bad_input import Brightness, label

    store = label(tmp_path / "in", tmp_path / "run" / "labels")
    assert set(store.skipped) == set(names)
    RunFolder(tmp_path / "run").record("label", skipped=store.skipped)
    page = page_of(write_report(RunFolder(tmp_path / "run")))
    assert not {tag[0] for tag in page.tags} & {"img", "svg", "iframe", "script"}
    explorer = HeatmapExplorer(photographs, [Brightness()], (32, 48))
    for i in range(len(photographs)):
        explorer.controls["image"].index = i
        assert not [tag for tag in Page(explorer.message.value).tags if tag[0] != "b"], (
            "an unreadable image is a message, its name is text"
        )
        assert all(name not in explorer.message.value for name in names if "<" in name)


# ---- parameters as code


@given(
    value=st.text()
    | st.sampled_from(
        [
            'x"\nimport os; os.abort()\n"""\\',
            "\r\nraise SystemExit",
            "'''",
            "{out}",
            "\\",
            "\u2028x",
            "\0",
        ]
    )
)
def test_a_parameter_is_a_value_in_the_notebook(value, tmp_path_factory):
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    cell = nbformat.v4.new_code_cell('run = ""\nprofile = ""\noverrides = {}')
    cell.metadata["tags"] = ["parameters"]
    path = tmp_path_factory.getbasetemp() / "injection.ipynb"
    notebook = nbformat.v4.new_notebook(
        cells=[cell],
        metadata=dict(kernelspec=dict(name="python3", language="python", display_name="")),
    )
    nbformat.write(notebook, path)
    try:
        config = Config().replace({"data.images": value})
    except ConfigError:
        assume(False)
    taken = notebook_parameters(path, config)
    filled = parameterize_notebook(
        load_notebook_node(str(path)), taken, kernel_name="python3", language="python"
    )
    [injected] = [
        cell.source for cell in filled.cells if "injected-parameters" in cell.metadata.tags
    ]
    assert all(
        isinstance(node, ast.Assign) and ast.literal_eval(node.value) is not ...
        for node in ast.parse(injected).body
    )
    names = {}
    exec(injected, names)
    assert names["overrides"] == taken["overrides"]
    assert set(names) - {"__builtins__"} == set(taken)
    assert taken["overrides"].get("data.images", "samples") == config.data.images


# ---- JupyterLab


def test_explore_listens_on_this_machine_alone_and_keeps_its_token(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "spfpn.apps.cli_tools.subprocess.run",
        lambda command, **_: seen.append(command) or subprocess.CompletedProcess(command, 0),
    )
    assert CliRunner().invoke(app, ["explore", "--port", "9999"]).exit_code == 0
    [command] = seen
    assert (
        command[:3] == [sys.executable, "-m", "jupyterlab"]
        and "--ServerApp.ip=127.0.0.1" in command
        and "--ServerApp.port=9999" in command
    )
    assert not [
        word
        for word in command
        if any(
            part in word.lower()
            for part in (
                "token",
                "password",
                "allow_origin",
                "disable_check",
                "allow_remote",
                "auth",
                "0.0.0.0",
            )
        )
    ]


def answer(port: int, token: str = "") -> int:
    "The status of the contents' listing."
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/contents",
        headers=dict(Authorization=f"token {token}") if token else {},
    )
    try:
        return (
            urllib.request.build_opener(urllib.request.ProxyHandler({}))
            .open(request, timeout=10)
            .status
        )
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/net")
def test_the_real_server_asks_for_its_token_and_listens_on_loopback(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "jupyter_server_config.json").write_text(
        json.dumps(dict(ServerApp=dict(open_browser=False, allow_root=True)))
    )
    token = secrets.token_hex(8)
    environment = os.environ | dict(
        JUPYTER_CONFIG_DIR=str(tmp_path), JUPYTER_TOKEN=token, PYTHONPATH=str(project_root())
    )
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from spfpn.apps.cli import app; app()",
            "explore",
            "--port",
            str(port),
        ],
        env=environment,
        cwd=project_root(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while (status := answer(port)) == 0 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert status == 403 and answer(port, "wrong") == 403 and answer(port, token) == 200
        listening = [
            line.split()[1]
            for table in ("tcp", "tcp6")
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
            if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
        ]
        assert listening == [f"0100007F:{port:04X}"]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
