"The commands, as typed."

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import spfpn
from spfpn.apps.cli import app
from spfpn.core.config import Config
from spfpn.core.files import content_digest
from spfpn.core.registry import DETECTORS, PROTOCOLS, Entry
from spfpn.core.runs import RunFolder
from spfpn.labels.store import LabelStore
from spfpn.models.spfpn import SPFPN, checkpoint_metadata, load_checkpoint, save_checkpoint


def call(*arguments):
    "The result of `spfpn ARGUMENTS`."
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def photo(tmp_path):
    "A photograph of odd size: a bright square on a dark ground."
    path = tmp_path / "photo.png"
    image = Image.new("L", (101, 67), 20)
    image.paste(220, (30, 20, 70, 50))
    image.save(path)
    return path


@pytest.fixture
def student(tmp_path):
    torch.manual_seed(0)
    return save_checkpoint(SPFPN(pretrained=False), tmp_path / "student.safetensors")


def test_help_is_quick_because_nothing_heavy_is_imported():
    code = "import sys; from spfpn.apps.cli import app; "
    code += "sys.exit(bool({'torch', 'pandas', 'plotly', 'papermill'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    result = call("--help")
    assert result.exit_code == 0
    for command in (
        "run",
        "label",
        "train",
        "evaluate",
        "detect",
        "results",
        "compare",
        "export",
        "benchmark",
        "explore",
        "list",
        "config",
    ):
        assert command in result.output


def test_version():
    assert call("--version").output.strip() == spfpn.__version__


def words(result) -> str:
    "What a command printed, in one line and without the frame around an error."
    return " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("run", "--profile", "nosuch"), "nosuch"),
        (("run", "-p", "data.heigth=3"), "did you mean data.height?"),
        (("run", "-p", "train.batch_size=many"), "train.batch_size='many'"),
        (("run", "-p", "train.batch_size"), "key=value"),
        (("run", "-p", "labels.teacher=superpiont"), "unknown detector 'superpiont'"),
        (("run", "--run", ".up"), "'.up': a run's name has letters"),
        (("evaluate", "--detector", "harrris"), "unknown detector 'harrris'"),
        (("evaluate", "--detector", "harris", "--protocol", "R9"), "R9"),
        (("evaluate", "--detector", "harris", "--protocol", "T1"), "add --frames FOLDER"),
        (("evaluate", "--detector", "harris", "--sequences", "/no/folder"), "/no/folder"),
        (("list", "teachers"), "choose one of detectors, descriptors, backbones"),
    ],
)
def test_errors_are_one_message(arguments, message):
    result = call(*arguments)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
    assert message in words(result) and "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("run --out mine", "--out is now --run"),
        ("label --out mine", "--out is now --run"),
        ("train phase1 --out mine", "--out is now --run"),
        ("train phase2 --start a.safetensors", "--start is now -p phase2.init_from=CHECKPOINT"),
        ("evaluate --detector fast --out a.parquet", "--out is now --metrics"),
        ("evaluate --detector fast --again", "--again is now --no-cache"),
        ("evaluate repeatability --detector fast", "is now `spfpn evaluate --protocol R1`"),
        ("evaluate homography --detector fast", "is now `spfpn evaluate --protocol H1`"),
        ("evaluate detection --detector fast", "is now `spfpn evaluate --protocol S1`"),
        ("evaluate stability --detector fast", "is now `spfpn evaluate --protocol T1`"),
        ("export spfpn-s --points 9", "--points is now --max-keypoints"),
        ("benchmark --row spfpn-s", "--row is now `spfpn benchmark detect --detector"),
        ("benchmark --labelling", "--labelling is now `spfpn benchmark label`"),
        ("run -p batch=8", "batch is now train.batch_size"),
        ("run -p phase2_loss=own", "phase2_loss=own is now phase2.targets=pseudo_labels"),
    ],
)
def test_an_old_option_or_key_is_answered_with_the_new_one(arguments, message):
    result = call(*arguments.split())
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
    assert message in words(result) and len(result.output.splitlines()) == 1


def test_all_mistakes_are_named_at_once_a_line_each():
    result = call("run", "-p", "phase1.lr=fast", "-p", "phase1.lrate=1")
    assert [line.split(":")[0] for line in result.output.splitlines()] == ["error", "error"]
    result = call("evaluate", "--detector", "harrris", "--detector", "faast")
    assert [line.split("'")[1] for line in result.output.splitlines()] == ["harrris", "faast"]


def test_debug_shows_the_way(monkeypatch):
    monkeypatch.setenv("SPFPN_DEBUG", "1")
    assert isinstance(call("run", "-p", "data.heigth=3").exception, ValueError)


def test_a_defect_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("spfpn.apps.cli._start", lambda *_: 1 / 0)
    assert isinstance(call("run").exception, ZeroDivisionError)


def test_a_failing_notebook_is_exit_code_1(monkeypatch):
    from spfpn.apps.workbook import WorkbookError

    def fail(*_):
        raise WorkbookError("02_phase1.ipynb failed in cell 4")

    monkeypatch.setattr("spfpn.apps.workbook.run_workbook", fail)
    result = call("run")
    assert result.exit_code == 1 and "failed in cell 4" in result.output


def test_run_hands_over_configuration_and_run(monkeypatch, outputs):
    seen = []
    monkeypatch.setattr(
        "spfpn.apps.workbook.run_workbook",
        lambda config, run: seen.append((config.run.seed, config.labels.teacher, run.path)),
    )
    changed = ("-p", "run.seed=4", "-p", "labels.teacher=aliked")
    assert call("run", *changed, "--run", "mine").exit_code == 0
    assert call("run").exit_code == 0
    assert call("run", "--run", outputs / "a" / "b").exit_code == 0
    assert seen[0] == (4, "aliked", outputs / "mine")
    assert [path for *_, path in seen[1:]] == [outputs / "quick", outputs / "a" / "b"]


def options(*more: str) -> list[str]:
    "A training of seconds."
    size = ("data.limit=3", "data.height=64", "data.width=96", "labels.max_keypoints=50")
    small = ("train.views_per_epoch=1", "model.fpn_channels=8", "phase1.epochs=1", "phase1.lr=2e-3")
    old = ("phase1.init_from=", "phase1.sigma=1.2", "labels.teacher=aliked", "model.fpn_levels=4")
    return [x for key in (*size, *small, *old, *more) for x in ("-p", key)]


def test_label_and_train_leave_a_student(tmp_path):
    few = options(
        "labels.matcher=mnn",
        "labels.pair_limit=2",
        "train.batch_size=2",
        "phase2.targets=matched_pairs",
        "phase2.epochs=1",
    )
    for command in (("label",), ("train", "phase1"), ("train", "phase2")):
        result = call(*command, "--run", tmp_path, *few)
        assert result.exit_code == 0, result.output
        assert "wrote " in result.stdout.splitlines()[-1]
    run = RunFolder(tmp_path)
    assert len(LabelStore(run.labels)) == 3 and len(LabelStore(run.pairs)) == 2
    assert checkpoint_metadata(run.phase(1).best)["low"] == 0
    assert checkpoint_metadata(run.phase(2).best)["low"] == 0.1
    again = call("train", "phase1", "--run", tmp_path, *few, "-p", "phase1.lr=0.5")
    assert again.exit_code == 1 and "begun with other settings" in again.output


def test_a_student_learns_from_its_own_labels_without_pairs(tmp_path):
    few = options(
        "train.batch_size=4",
        "phase2.adaptation_views=3",
        "phase2.adaptation_scales=1",
        "phase2.epochs=2",
        "phase2.targets=pseudo_labels",
        "augment.shapes_per_view=1",
        "augment.shapes_weight=4",
        "augment.shapes_weight_end=0.5",
    )
    for command in (("label",), ("train", "phase1"), ("train", "phase2")):
        result = call(*command, "--run", tmp_path, *few)
        assert result.exit_code == 0, result.output
    run = RunFolder(tmp_path)
    assert not run.pairs.exists()
    made = LabelStore(run.pseudo_labels).settings()
    assert "phase1/best" in made["teacher"] and made["adaptation"] == 3
    assert made["weights"] == content_digest(run.phase(1).best)
    after = load_checkpoint(run.phase(2).best)
    assert checkpoint_metadata(run.phase(2).best)["low"] == 0, "the masks of phase 1"
    log = pd.read_parquet(run.phase(2).log).query("split == 'train'")
    seen = log.pivot(index="step", columns="name", values="value")
    ratio = (seen["loss"] - seen["photographs"]) / seen["shapes"]
    assert ratio.tolist() == pytest.approx([4, 2.25], rel=1e-3), "shapes count less and less"
    without = call("train", "phase2", "--run", tmp_path, *few, "-p", "phase2.targets=matched_pairs")
    assert without.exit_code == 2 and "no pairs in" in without.output
    paired = save_checkpoint(after, tmp_path / "paired.safetensors", low=0.1, high=0.9)
    start = ("-p", f"phase2.init_from={paired}")
    refused = call("train", "phase2", "--run", tmp_path, *start, *few)
    assert refused.exit_code == 1 and "Begin with a checkpoint of phase 1" in refused.output


def test_a_student_labels_but_does_not_match_without_descriptors(tmp_path):
    few = ("data.limit=3", "data.height=64", "data.width=96")
    few = [
        x
        for key in (*few, "labels.adaptation_views=2", "labels.adaptation_aggregate=mean")
        for x in ("-p", key)
    ]
    plain = save_checkpoint(SPFPN(channels=8), tmp_path / "plain.safetensors")
    refused = call("label", "--run", tmp_path, *few, "-p", f"labels.teacher={plain}")
    assert refused.exit_code == 2 and "has no descriptors" in refused.output
    assert "phase2.targets=pseudo_labels" in refused.output
    alone = ("-p", "labels.teacher=spfpn-l", "-p", "phase2.targets=pseudo_labels")
    assert call("label", "--run", tmp_path, *few, *alone).exit_code == 0
    row = LabelStore(RunFolder(tmp_path).labels).row(0)
    assert row["teacher"] == "spfpn-l" and min(row["score"]) > 0.01, "no faint ones"
    assert any(x % 1 for x in row["x"]), "between pixels"


def test_detect_writes_what_is_asked_for(photo, tmp_path):
    result = call(
        "detect",
        photo,
        "--checkpoint",
        "harris",
        "--json",
        "--csv",
        "--overlay",
        "--out",
        tmp_path / "found",
        "--max-keypoints",
        7,
    )
    assert result.exit_code == 0, result.output
    [image] = json.loads((tmp_path / "found" / "keypoints.json").read_text())
    table = pd.read_csv(tmp_path / "found" / "keypoints.csv")
    assert image["image"] == str(photo) and 4 <= len(image["keypoints"]) == len(table) <= 7
    assert (
        table.x.between(0, 100).all()
        and table.y.between(0, 66).all()
        and table.score.is_monotonic_decreasing
    )
    assert Image.open(tmp_path / "found" / "photo.png.keypoints.png").size == (101, 67)


def test_detect_with_a_student_of_any_size(photo, student):
    result = call("detect", photo, "--checkpoint", student)
    assert result.exit_code == 0 and "keypoints" in result.output


def test_detect_names_the_broken_file_and_reads_the_others(photo, tmp_path):
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    result = call("detect", tmp_path / "cut.jpg", photo, "--checkpoint", "harris")
    assert result.exit_code == 2 and "cut.jpg" in result.output and f"{photo}: " in result.output


def test_detect_without_a_student_says_how_to_get_one(photo, tmp_path, monkeypatch):
    monkeypatch.setattr("spfpn.runtime.light.WEIGHTS_DIR", tmp_path)
    monkeypatch.setattr("spfpn.models.spfpn.PRETRAINED_DIR", tmp_path)
    result = call("detect", photo)
    assert result.exit_code == 2 and "spfpn run" in result.output


def test_evaluate_prints_a_table_and_keeps_the_rows(tmp_path):
    sequences = ("--sequences", "warped-samples", "--limit", 1)
    detectors = ("--detector", "harris", "--detector", "random")
    result = call("evaluate", *detectors, *sequences, "--metrics", tmp_path / "m.parquet")
    assert result.exit_code == 0, result.output
    assert "R1 on warped-samples" in result.output and "{" not in result.output
    assert result.stdout.splitlines()[-1] == f"wrote 10 rows to {tmp_path / 'm.parquet'}"
    assert set(pd.read_parquet(tmp_path / "m.parquet").detector) == {"harris", "random"}


def test_several_protocols_at_once(tmp_path, monkeypatch):
    few = replace(PROTOCOLS.get("S1"), images=22)
    monkeypatch.setitem(PROTOCOLS._entries, "S1", Entry(few))
    protocols = ("--protocol", "S1", "--protocol", "R1:nms2")
    sequences = ("--sequences", "warped-samples", "--limit", 1)
    result = call("evaluate", *protocols, "--detector", "harris", *sequences)
    assert result.exit_code == 0, result.output
    assert "S1 on shapes-clean" in result.output and "R1:nms2 on" in result.output


def test_all_means_the_standard_detectors(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "spfpn.evaluate.results.evaluate_detectors", lambda specs, *_, **__: seen.extend(specs)
    )
    call("evaluate", "--protocol", "S1", "--detector", "all", "--detector", "fast")
    standard = ["harris", "shi", "fast", "sift", "superpoint", "aliked", "disk"]
    assert sorted(seen) == sorted(standard) == DETECTORS.names(standard=True)


# what is there


@pytest.mark.parametrize(
    "kind, names",
    [
        ("detectors", ("harris", "disk", "spfpn-s")),
        ("descriptors", ("sift",)),
        ("matchers", ("mnn", "lightglue")),
        ("protocols", ("R1", "H1", "S1", "T1")),
        ("estimators", ("opencv", "poselib")),
        ("heads", ("shuffle", "bicubic")),
        ("losses", ("bce", "penalty_focal", "focal", "huber", "kl")),
    ],
)
def test_a_registry_is_listed(kind, names):
    result = call("list", kind)
    assert result.exit_code == 0
    listed = {line.split()[0] for line in result.stdout.splitlines()}
    assert set(names) <= listed and "FILE.py:NAME" in result.output


def test_backbones_are_listed_though_any_of_timm_will_do():
    result = call("list", "backbones")
    assert result.exit_code == 0 and "FILE.py:NAME" in result.output


def test_config_prints_every_key():
    plain, quick = call("config"), call("config", "--profile", "quick", "-p", "run.seed=7")
    assert plain.exit_code == quick.exit_code == 0
    for key in Config().flat():
        assert f" {key} " in plain.output and f" {key} " in quick.output
    (seed,) = (line for line in quick.output.splitlines() if " run.seed " in line)
    assert seed.split()[1:3] == ["7", "0"], "the value, then the default"


@pytest.fixture
def server(monkeypatch):
    "What `spfpn explore` would start: the options and the environment of the server."
    seen = {}

    def start(command, env):
        seen.update(option[2:].partition("=")[::2] for option in command[3:])
        seen["root of paths"] = env["SPFPN_ROOT"]
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("spfpn.apps.cli_tools.subprocess.run", start)
    return seen


def test_explore_opens_the_notebook_of_a_project_itself(server, tmp_path, monkeypatch):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs" / "explore.ipynb").touch()
    monkeypatch.chdir(tmp_path)
    assert call("explore").exit_code == 0
    assert server["LabApp.default_url"] == "/lab/tree/nbs/explore.ipynb"
    assert server["ServerApp.root_dir"] == server["root of paths"] == str(tmp_path)


def test_explore_elsewhere_opens_a_copy_beside_the_runs(server, tmp_path, monkeypatch):
    folder = tmp_path / "my [photos] 100%"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("spfpn.core.files.outputs_dir", lambda: folder / "outputs")
    result = call("explore")
    copy = folder / "outputs" / "explore.ipynb"
    assert copy.is_file() and "wrote outputs/explore.ipynb" in result.output
    assert server["LabApp.default_url"] == "/lab/tree/outputs/explore.ipynb"
    assert server["ServerApp.root_dir"] == server["root of paths"] == str(folder)
    copy.write_text("mine")
    assert call("explore").exit_code == 0 and copy.read_text() == "mine"


def test_explore_without_a_checkout(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spfpn.core.files.checkout_dir", lambda: None)
    result = call("explore")
    assert result.exit_code == 2 and "clone the repository" in result.output and not server


@pytest.mark.slow
def test_the_address_that_explore_prints_opens_the_notebook(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    root = Path(__file__).resolve().parents[1]
    more = dict(PYTHONPATH=str(root), JUPYTER_CONFIG_DIR=str(tmp_path), BROWSER="true")
    command = [sys.executable, "-m", "spfpn", "explore", "--port", port]
    options = dict(cwd=tmp_path, env=os.environ | more, text=True, start_new_session=True)
    with subprocess.Popen(command, stderr=subprocess.PIPE, **options) as process:
        try:
            lines = (line.split()[-1] for line in process.stderr if "?token=" in line)
            address = next(lines)
            assert "/lab/tree/outputs/explore.ipynb?token=" in address
            files = address.replace("/lab/tree/", "/api/contents/")
            while process.poll() is None:  # the address is printed before the server listens
                with suppress(urllib.error.URLError):
                    opened = json.load(urllib.request.urlopen(files, timeout=60))
                    break
                time.sleep(0.2)
            assert opened["type"] == "notebook"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
