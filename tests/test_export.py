"A student in other runtimes, and how long it takes there."
import subprocess
import sys

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import spfpn.export
from spfpn.cli import app
from spfpn.export import Format, RuntimeDetector, export_student
from spfpn.images import HELD_BACK, sample_images
from spfpn.keypoints import Selection, extract
from spfpn.model import SPFPN, StudentDetector, load, save

CHOICE = Selection(200, nms_radius=3)


def call(*arguments):
    "The result of `spfpn ARGUMENTS`."
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    torch.manual_seed(0)
    return save(SPFPN(channels=8), tmp_path_factory.mktemp("student")/"student.safetensors")


@pytest.fixture(scope="module")
def exported(student):
    "The student as ONNX, keypoints and all: exported once, because it takes long."
    result = call("export", student, "--points", CHOICE.max_keypoints, "--nms-radius", CHOICE.nms_radius)
    assert result.exit_code == 0, result.output
    assert result.output.strip() == str(student.with_suffix(".onnx"))
    assert sorted(p.name for p in student.parent.iterdir()) == ["student.onnx", "student.safetensors"]
    return student.with_suffix(".onnx")


def photos(size):
    images = sample_images(HELD_BACK)
    return torch.stack([images.load(i, size)[0] for i in range(2)])


def pixels(xy, scores): return {tuple(map(int, p)) for p, s in zip(xy.tolist(), scores.tolist()) if s > 0}


@pytest.mark.parametrize("batch, size", [(2, (120, 160)), (1, (75, 101)), (1, (20, 33))])
def test_the_graph_gives_heatmap_and_keypoints_at_any_size(student, exported, batch, size):
    images = photos(size)[:batch]
    with torch.no_grad(): expected = load(student).heatmap(images)
    heatmap, xy, scores = onnxruntime.InferenceSession(exported).run(None, {"image": images.numpy()})
    np.testing.assert_allclose(heatmap, expected.numpy(), atol=1e-5)
    assert xy.shape == (batch, 200, 2) and scores.shape == (batch, 200) and (np.diff(scores) <= 0).all()
    for i, points in enumerate(extract(torch.from_numpy(heatmap), CHOICE)):
        assert pixels(xy[i], scores[i]) == pixels(points.xy, points.scores)
        assert not xy[i, len(points):].any() and not scores[i, len(points):].any()


def test_onnxruntime_needs_no_torch(exported):
    code = f"""
import sys; sys.modules["torch"] = None
import numpy, onnxruntime
image = numpy.zeros((1, 1, 90, 70), "float32"); image[..., 30:60, 20:50] = 1
heatmap, xy, scores = onnxruntime.InferenceSession({str(exported)!r}).run(None, {{"image": image}})
print(heatmap.shape, (scores > 0).any())"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "(1, 1, 90, 70) True", result.stderr


def test_a_detector_from_an_exported_file_finds_what_the_student_finds(student, exported):
    images, choice = photos((120, 160)), Selection(100)
    for ours, its in zip(StudentDetector(load(student), choice).detect(images), RuntimeDetector(exported, "onnx", choice).detect(images.expand(-1, 3, -1, -1))):
        near = (ours.xy[:, None] - its.xy).norm(dim=-1).min(1).values
        assert len(ours) == len(its) and (near < .01).float().mean() >= .98 and (ours.xy != ours.xy.round()).any()


def test_openvino(student, exported, tmp_path, monkeypatch):
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    monkeypatch.setattr(spfpn.export, "_to_onnx", lambda *_: {".onnx": exported.read_bytes()})   # what OpenVINO reads, made once
    assert call("export", student, "--format", "openvino", "--points", 200, "--nms-radius", 3, "--out", tmp_path/"s.xml").exit_code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.bin", "s.xml"]
    images = photos((75, 101))
    with torch.no_grad(): expected = load(student).heatmap(images)
    assert torch.allclose(RuntimeDetector(tmp_path/"s.xml", "openvino").scores(images), expected, atol=1e-4)


def test_torch_export(student, tmp_path):
    path = export_student(student, "torch-export", tmp_path/"s.pt2")
    images, network = photos((75, 101)), torch.export.load(path).module()
    with torch.no_grad(): assert torch.allclose(network(images)[0], load(student).heatmap(images), atol=1e-5)


@pytest.mark.parametrize("error, message", [(2e-4, "differs from PyTorch's by"), (float("nan"), "differs from PyTorch's by")])
def test_a_graph_that_differs_is_not_written(student, tmp_path, monkeypatch, error, message):
    model = load(student)
    wrong = Format((".wrong",), lambda *_: {".wrong": b""}, lambda _: lambda images: [model.heatmap(images) + error])
    monkeypatch.setitem(spfpn.export.FORMATS, "wrong", wrong)
    result = call("export", student, "--format", "wrong", "--out", tmp_path/"s.wrong")
    assert result.exit_code == 2 and message in result.output and not list(tmp_path.iterdir())


@pytest.mark.parametrize("format, module", [("onnx", "onnx"), ("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_without_an_extra_the_error_is_the_command_that_installs_it(student, tmp_path, monkeypatch, format, module):
    monkeypatch.setitem(sys.modules, module, None)
    result = call("export", student, "--format", format, "--out", tmp_path/("s.xml" if format == "openvino" else "s.onnx"))
    assert result.exit_code == 2 and f"pip install 'spfpn[{format}]'" in result.output and len(result.output.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments, message", [
    (("nosuch.safetensors",), "nosuch.safetensors"), (("nosuch",), "nosuch"),
    (("s.safetensors", "--format", "tensorrt"), "choose one of onnx"),
    (("s.safetensors", "--out", "s.pb"), "ends in .onnx"),
])
def test_errors_are_one_message(arguments, message):
    result = call("export", *arguments)
    assert result.exit_code == 2 and message in result.output and "Traceback" not in result.output


def test_a_benchmark_times_each_row_in_each_round_and_says_what_it_left_out(student, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    rows = [x for row in ("eager", "openvino", "xfeat", "harris") for x in ("--row", row)]
    result = call("benchmark", "--checkpoint", student, "--size", "64x96", "--rounds", 2, *rows, "--out", tmp_path/"times.parquet")
    assert result.exit_code == 0, result.output
    assert "left out: openvino" in result.output and "XFeat" in result.output
    times = pd.read_parquet(tmp_path/"times.parquet")
    assert list(times.row[:3]) == ["student", "XFeat's network (random weights)", "Harris"] and len(times) == 6
    assert (times[["decode", "network", "selection"]] > 0).all(axis=None) and set(times.height) == {64}


@pytest.mark.parametrize("arguments, message", [(("--row", "nosuch"), "channels-last"), (("--size", "big"), "480x640")])
def test_a_benchmark_of_what_is_not_there(student, arguments, message):
    result = call("benchmark", "--checkpoint", student, *arguments)
    assert result.exit_code == 2 and message in result.output
