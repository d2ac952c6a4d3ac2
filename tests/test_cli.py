"The commands, as typed."

import json
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import spfpn
from spfpn.apps.cli import app
from spfpn.core.files import content_digest
from spfpn.labels.store import LabelStore
from spfpn.models.spfpn import SPFPN, load_checkpoint, save_checkpoint


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
    code = "import sys; from spfpn.apps.cli import app; sys.exit(bool({'torch', 'pandas', 'plotly', 'papermill'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    result = call("--help")
    assert result.exit_code == 0
    for command in (
        "run",
        "label",
        "train",
        "evaluate",
        "detect",
        "export",
        "benchmark",
        "explore",
    ):
        assert command in result.output


def test_version():
    assert call("--version").output.strip() == spfpn.__version__


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("run", "--profile", "nosuch"), "nosuch"),
        (("run", "-p", "heigth=3"), "heigth"),
        (("run", "-p", "batch=many"), "batch='many'"),
        (("run", "-p", "batch"), "key=value"),
        (("run", "--out", "../up"), "../up"),
        (("evaluate", "repeatability", "--detector", "harrris"), "harrris"),
        (("evaluate", "repeatability", "--detector", "harris", "--protocol", "H1"), "R1, R2"),
        (
            ("evaluate", "repeatability", "--detector", "harris", "--sequences", "/no/such/folder"),
            "/no/such/folder",
        ),
    ],
)
def test_errors_are_one_message(arguments, message):
    result = call(*arguments)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
    assert message in result.output and "Traceback" not in result.output


def test_debug_shows_the_way(monkeypatch):
    monkeypatch.setenv("SPFPN_DEBUG", "1")
    assert isinstance(call("run", "-p", "heigth=3").exception, ValueError)


def test_a_defect_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("spfpn.apps.cli._settings", lambda *_: 1 / 0)
    assert isinstance(call("run").exception, ZeroDivisionError)


def test_a_failing_notebook_is_exit_code_1(monkeypatch):
    from spfpn.apps.workbook import WorkbookError

    def fail(*_):
        raise WorkbookError("02_phase1.ipynb failed in cell 4")

    monkeypatch.setattr("spfpn.apps.workbook.run_workbook", fail)
    result = call("run")
    assert result.exit_code == 1 and "failed in cell 4" in result.output


def test_run_hands_over_settings_and_name(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "spfpn.apps.workbook.run_workbook",
        lambda settings, name: seen.append((settings.seed, settings.teacher, name)),
    )
    assert call("run", "-p", "seed=4", "-p", "teacher=disk", "--out", "mine").exit_code == 0
    assert call("run").exit_code == 0
    assert seen[0] == (4, "disk", "mine") and seen[1][2] == "quick"


def test_label_and_train_leave_a_student(tmp_path):
    few = [
        x
        for p in (
            "limit=3",
            "height=64",
            "width=96",
            "max_keypoints=50",
            "matcher=nearest",
            "batch=2",
            "repeats=1",
            "fpn_channels=8",
            "phase1_epochs=1",
            "phase2_epochs=1",
            "pair_limit=2",
        )
        for x in ("-p", p)
    ]
    for command in (("label",), ("train", "phase1"), ("train", "phase2")):
        result = call(*command, "--out", tmp_path, *few)
        assert result.exit_code == 0, result.output
    assert len(LabelStore(tmp_path / "labels")) == 3 and len(LabelStore(tmp_path / "pairs")) == 2
    assert (
        load_checkpoint(tmp_path / "phase1" / "best.safetensors").low == 0
        and load_checkpoint(tmp_path / "phase2" / "best.safetensors").low == 0.1
    )
    again = call("train", "phase1", "--out", tmp_path, *few, "-p", "phase1_lr=0.5")
    assert again.exit_code == 1 and "begun with other settings" in again.output


def test_a_student_learns_from_its_own_labels_without_pairs(tmp_path):
    few = [
        x
        for p in (
            "limit=3",
            "height=64",
            "width=96",
            "max_keypoints=50",
            "batch=4",
            "views=3",
            "shapes=1",
            "shapes_weight=4",
            "shapes_weight_end=0.5",
            "repeats=1",
            "fpn_channels=8",
            "phase1_start=",
            "phase1_epochs=1",
            "phase2_epochs=2",
            "phase2_loss=own",
            "pairs_per_image=0",
        )
        for x in ("-p", p)
    ]
    for command in (("label",), ("train", "phase1"), ("train", "phase2")):
        result = call(*command, "--out", tmp_path, *few)
        assert result.exit_code == 0, result.output
    assert not (tmp_path / "pairs").exists()
    made = LabelStore(tmp_path / "own").settings()
    assert (
        made["teacher"].endswith("phase1/best")
        and made["weights"] == content_digest(tmp_path / "phase1" / "best.safetensors")
        and made["adaptation"] == 3
    )
    after = load_checkpoint(tmp_path / "phase2" / "best.safetensors")
    assert (after.low, after.high) == (0, 1), "the scale of phase 1"
    seen = (
        pd.read_parquet(tmp_path / "phase2" / "log.parquet")
        .query("split == 'train'")
        .pivot(index="step", columns="name", values="value")
    )
    assert ((seen["loss"] - seen["photographs"]) / seen["figures"]).tolist() == pytest.approx(
        [4, 2.25], rel=1e-3
    ), "figures count less and less"
    without = call("train", "phase2", "--out", tmp_path, *few, "-p", "phase2_loss=kl")
    assert without.exit_code == 1 and "phase2_loss=kl learns from them" in without.output
    after.low, after.high = 0.1, 0.9
    save_checkpoint(after, tmp_path / "paired.safetensors")
    refused = call(
        "train", "phase2", "--out", tmp_path, "--start", tmp_path / "paired.safetensors", *few
    )
    assert refused.exit_code == 1 and "Begin with a checkpoint of phase 1" in refused.output


def test_a_student_labels_but_cannot_match(tmp_path):
    few = [
        x
        for p in ("limit=3", "height=64", "width=96", "teacher=spfpn-s", "adaptation=2")
        for x in ("-p", p)
    ]
    refused = call("label", "--out", tmp_path, *few)
    assert (
        refused.exit_code == 2
        and "no descriptors to match by" in refused.output
        and "pairs_per_image=0" in refused.output
    )
    assert call("label", "--out", tmp_path, *few, "-p", "pairs_per_image=0").exit_code == 0
    row = LabelStore(tmp_path / "labels").row(0)
    assert (
        row["teacher"] == "spfpn-s" and min(row["score"]) > 0.01 and any(x % 1 for x in row["x"])
    ), "between pixels, and no faint ones"
    unknown = call("label", "--out", tmp_path, "-p", "teacher=superpiont")
    assert unknown.exit_code != 0 and "choose one of aliked" in unknown.output


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
    monkeypatch.setattr("spfpn.core.files.outputs_dir", lambda: tmp_path)
    monkeypatch.setattr("spfpn.models.spfpn.PRETRAINED_DIR", tmp_path)
    result = call("detect", photo)
    assert result.exit_code == 2 and "spfpn run" in result.output


def test_evaluate_prints_a_table_and_keeps_the_rows(tmp_path):
    result = call(
        "evaluate",
        "repeatability",
        "--detector",
        "harris",
        "--detector",
        "random",
        "--sequences",
        "warped-samples",
        "--limit",
        1,
        "--out",
        tmp_path / "m.parquet",
    )
    assert result.exit_code == 0, result.output
    assert "R1 on warped-samples" in result.output and '"keep": 300' in result.output
    assert set(pd.read_parquet(tmp_path / "m.parquet").detector) == {"harris", "random"}


def test_evaluate_detection(monkeypatch):
    from spfpn.evaluate.protocols import PROTOCOLS

    monkeypatch.setitem(PROTOCOLS, "S1", replace(PROTOCOLS["S1"], images=22))
    result = call("evaluate", "detection", "--detector", "harris")
    assert result.exit_code == 0 and "S1 on shapes-clean" in result.output, result.output


def test_explore_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr("spfpn.core.files.project_root", lambda: tmp_path)
    result = call("explore")
    assert result.exit_code == 2 and "explore.ipynb" in result.output
