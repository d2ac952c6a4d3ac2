"A student in other runtimes, and how long it takes there."

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from typer.testing import CliRunner

import spfpn
import spfpn.evaluate.quantization
import spfpn.features.export
from spfpn.apps.cli import app
from spfpn.core.files import content_digest
from spfpn.data.images import TEST_SAMPLES, sample_images
from spfpn.data.sequences import warped_sample_sequences
from spfpn.evaluate.quantization import QuantizationCost
from spfpn.evaluate.repeatability import R1
from spfpn.features.export import (
    ExportError,
    Runtime,
    RuntimeDetector,
    check_export,
    export_student,
)
from spfpn.features.factory import LocalFeature
from spfpn.features.keypoints import Selection, extract_keypoints, keypoint_region
from spfpn.features.student import StudentDetector
from spfpn.matching.matchers import match_mnn
from spfpn.models.spfpn import (
    SPFPN,
    list_pretrained,
    load_checkpoint,
    resolve_checkpoint,
    save_checkpoint,
)

CHOICE = Selection(200, nms_radius=3)


def call(*arguments):
    "The result of `spfpn ARGUMENTS`."
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    "The package's, whose peaks are higher than what rounding moves."
    return save_checkpoint(
        load_checkpoint(list_pretrained()["spfpn-s"]),
        tmp_path_factory.mktemp("student") / "student.safetensors",
    )


@pytest.fixture(scope="module")
def exported(student):
    "The student as ONNX, keypoints and all: exported once, because it takes long."
    result = call(
        "export",
        student,
        "--max-keypoints",
        CHOICE.max_keypoints,
        "--nms-radius",
        CHOICE.nms_radius,
    )
    assert result.exit_code == 0, result.output
    assert result.output.strip().endswith(" to " + str(student.with_suffix(".onnx")))
    assert sorted(p.name for p in student.parent.iterdir()) == [
        "student.onnx",
        "student.safetensors",
    ]
    return student.with_suffix(".onnx")


def photos(size):
    images = sample_images(TEST_SAMPLES)
    return torch.stack([images.load(i, size)[0] for i in range(2)])


@pytest.mark.parametrize("batch, size", [(2, (120, 160)), (1, (75, 101)), (1, (20, 33))])
def test_the_graph_gives_heatmap_and_keypoints_at_any_size(student, exported, batch, size):
    images = photos(size)[:batch]
    images[0, ..., : size[1] // 2] = 0.5  # no keypoints, neither in the graph nor in PyTorch
    with torch.no_grad():
        expected = load_checkpoint(student).heatmap(images)
    region = keypoint_region(images)
    heatmap, xy, scores = onnxruntime.InferenceSession(exported).run(
        None, {"image": images.numpy()}
    )
    np.testing.assert_allclose(heatmap, expected.numpy(), atol=1e-5)
    assert (
        xy.shape == (batch, 200, 2)
        and scores.shape == (batch, 200)
        and (np.diff(scores) <= 0).all()
    )
    between = replace(CHOICE, subpixel=True)
    for i, points in enumerate(extract_keypoints(torch.from_numpy(heatmap), between, region)):
        found = torch.from_numpy(xy[i][scores[i] > 0]).double()
        assert found.shape == points.xy.shape
        if len(points):
            near = torch.cdist(found, points.xy.double()).min(1).values
            assert near.max() < 0.002  # pixels
        assert not xy[i, len(points) :].any() and not scores[i, len(points) :].any()


@pytest.mark.parametrize("format, end", [("onnx", ".onnx"), ("openvino", ".xml")])
def test_a_graph_describes_the_points_that_it_finds(format, end, tmp_path):
    path = export_student("spfpn-s", format, tmp_path / f"s{end}", Selection(200, 2), describe=True)
    photo = photos((240, 320))[0]
    if format == "onnx":
        session = onnxruntime.InferenceSession(path)
        outputs = session.run(None, {"image": photo[None].numpy()})
        assert [i.shape for i in session.get_inputs()] == [["batch", 1, "height", "width"]]
        facts = session.get_modelmeta().custom_metadata_map
        assert facts["name"] == "spfpn-s" and facts["license"] == "Apache-2.0"
        assert facts["digest"] == content_digest(resolve_checkpoint("spfpn-s"))
    else:
        network = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        outputs = network([photo[None].numpy()]).to_tuple()
    xy, scores, found = (torch.from_numpy(np.array(values[0])) for values in outputs[1:])
    full = spfpn.load(max_keypoints=200, nms_radius=2).detect(photo, describe=True)
    near, partner = torch.cdist(xy.double(), full.xy.double()).min(1)
    same = near < 0.01  # the last ones may differ by a hair
    assert same.double().mean() > 0.97 and scores.min() > 0
    assert (found * full.descriptors[partner]).sum(1)[same].min() > 0.999


def test_descriptors_need_points_and_a_student_that_describes(tmp_path):
    with pytest.raises(ValueError, match="need a number of keypoints"):
        export_student("spfpn-s", "onnx", tmp_path / "s.onnx", describe=True)
    with pytest.raises(ValueError, match="need a student that describes"):
        plain = save_checkpoint(SPFPN(channels=8), tmp_path / "plain.safetensors")
        export_student(plain, "onnx", tmp_path / "s.onnx", CHOICE, describe=True)
    assert not list(tmp_path.glob("*.onnx"))


def test_a_near_tie_that_moves_the_end_of_a_full_budget_is_no_lost_keypoint():
    class Student:
        def heatmap(self, images, tie=0.6 + 1e-6):
            scores = torch.zeros_like(images)
            scores[:, 0, 20, 20], scores[:, 0, 20, 40], scores[:, 0, 20, 60] = 0.9, 0.55, 0.5
            for y in (30, 40):
                scores[:, 0, y, [20, 27]], scores[:, 0, y, 23] = (
                    0.6,
                    tie,
                )  # one peak in the middle, or one on either side
            return scores

    model, five = Student(), Selection(5, nms_radius=4)
    assert check_export(lambda images: [model.heatmap(images, 0.6 - 1e-6)], model, five) > 1e-6

    def without(images):
        scores = model.heatmap(images)
        return [
            scores,
            torch.tensor([[20.0, 20.0], [23.0, 30.0], [23.0, 40.0], [60.0, 20.0]]).expand(
                len(images), 4, 2
            ),
            torch.tensor([0.9, 0.6, 0.6, 0.5]).expand(len(images), 4),
        ]

    with pytest.raises(ExportError, match=r"1 keypoints of the export .* \(40, 20\)"):
        check_export(without, model, five)


def test_a_graph_of_one_size_in_float16(student, tmp_path):
    path = tmp_path / "s.onnx"
    options = ("--size", "75x101", "--half", "--max-keypoints", 50)
    result = call("export", student, "--out", path, *options)
    assert result.exit_code == 0, result.output
    session = onnxruntime.InferenceSession(path)
    (image,) = session.get_inputs()
    assert (image.shape, image.type) == ([1, 1, 75, 101], "tensor(float)")
    shapes = [output.shape for output in session.get_outputs()]
    assert shapes == [[1, 1, 75, 101], [1, 50, 2], [1, 50]]
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["precision"] == "float16" and "[1, 1, 75, 101]" in facts["input"]
    kinds = [tensor.data_type for tensor in onnx.load(path).graph.initializer]
    assert kinds.count(onnx.TensorProto.FLOAT16) > 40

    images, detector = photos((75, 101)), RuntimeDetector(path)
    with torch.no_grad():
        expected = load_checkpoint(student).heatmap(images)
    off = (detector.heatmap(images) - expected).abs().max()
    assert 1e-6 < off < 2e-3, "two images, one after the other, in float16"
    with pytest.raises(ValueError, match="made for images of 75×101, this one has 60×80"):
        detector.detect(photos((60, 80)))


def test_openvino_stores_float16(student, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(spfpn.features.export, "student_onnx", lambda *_: exported.read_bytes())
    for name, half in (("full", False), ("half", True)):
        path = tmp_path / f"{name}.xml"
        export_student(student, "openvino", path, CHOICE, half=half)
    small, large = ((tmp_path / f"{name}.bin").stat().st_size for name in ("half", "full"))
    assert small < 0.6 * large


def test_int8_says_what_it_costs(student, exported, tmp_path, monkeypatch):
    whole = exported.read_bytes()
    monkeypatch.setattr(spfpn.evaluate.quantization, "student_onnx", lambda *_: whole)
    path = tmp_path / "s.onnx"
    options = ("--int8", "--max-keypoints", 200, "--nms-radius", 3, "--out", path)
    result = call("export", student, *options)
    assert result.exit_code == 0, result.output
    assert "% of the keypoints stay within 1 px; repeatability 0." in result.output
    facts = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert facts["precision"] == "int8" and 0.9 < float(facts["kept_1px"]) < 1
    assert abs(float(facts["R1@3"]) - float(facts["R1@3_float32"])) < 0.03
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators.count("QuantizeLinear") > 5 and path.stat().st_size < 0.9 * len(whole)

    path.unlink()
    bad = QuantizationCost(kept=0.4, repeatability=0.5, before=0.8)
    monkeypatch.setattr(spfpn.evaluate.quantization, "measure_cost", lambda *_: bad)
    result = call("export", student, *options)
    assert result.exit_code == 2 and "export it with --half" in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_example_in_cpp_finds_what_python_finds(exported, tmp_path):
    if not (shutil.which("cmake") and shutil.which("c++")):
        pytest.skip("no CMake or no C++ compiler")
    source, build = Path(__file__).parents[1] / "examples/cpp", tmp_path / "build"
    package = f"-DOpenVINO_DIR={openvino.utils.get_cmake_path()}"
    for command in (["-S", source, "-B", build, package], ["--build", build]):
        subprocess.run(["cmake", *command], check=True, capture_output=True)
    pixels = np.asarray(Image.open(sample_images(TEST_SAMPLES).paths[0]).convert("L"))
    Image.fromarray(pixels).save(tmp_path / "photo.pgm")
    program = build / "points"
    result = subprocess.run(
        [program, exported, tmp_path / "photo.pgm"], capture_output=True, text=True, check=True
    )
    found = np.array([line.split() for line in result.stdout.splitlines()], float)

    image = np.float32(pixels)[None, None] / 255
    _, xy, scores = onnxruntime.InferenceSession(exported).run(None, {"image": image})
    np.testing.assert_allclose(found[:, 2], scores[0][scores[0] > 0], atol=1e-4)
    near = np.linalg.norm(found[:, None, :2] - xy[0][None], axis=2).min(1)
    assert len(found) == CHOICE.max_keypoints and np.median(near) < 0.01
    assert (near < 0.01).mean() > 0.98, "equal scores may come in another order"

    for arguments, message in (
        ([], "usage: points"),
        ([exported, exported], "student.onnx: not a PGM"),
    ):
        result = subprocess.run([program, *arguments], capture_output=True, text=True)
        assert result.returncode == 2 and message in result.stderr


def test_the_matcher_in_onnx_takes_any_number_of_descriptors(tmp_path):
    result = call("export", "mnn", "--out", tmp_path / "mnn.onnx")
    assert result.exit_code == 0, result.output
    session = onnxruntime.InferenceSession(tmp_path / "mnn.onnx")
    shapes = [end.shape for end in (*session.get_inputs(), *session.get_outputs())]
    known = [["count0", "length"], ["count1", "length"], ["matches", 2], ["matches"]]
    assert shapes == known
    generator = torch.Generator().manual_seed(0)
    for n, m, length in ((70, 90, 128), (1, 1, 64), (5, 0, 128), (0, 0, 128)):
        one, two = (torch.randn(k, length, generator=generator) for k in (n, m))
        one, two = (F.normalize(x, dim=1) for x in (one, two))
        if n and m:
            two[0] = -one[0]  # the least cosine there is
        found = session.run(None, {"descriptors0": one.numpy(), "descriptors1": two.numpy()})
        expected = match_mnn(one, two)
        assert np.array_equal(found[0], expected.indices.numpy())
        np.testing.assert_allclose(found[1], expected.scores, atol=1e-6)


def _write_onnx(path, source, target):
    "A graph that gives what it gets."
    kind = onnx.TensorProto.FLOAT
    ends = [onnx.helper.make_tensor_value_info(n, kind, [1, 1, 8, 8]) for n in (source, target)]
    node = onnx.helper.make_node("Identity", [source], [target])
    graph = onnx.helper.make_graph([node], "graph", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph, ir_version=9), path)
    return path


@pytest.mark.parametrize("ends", [("x", "y"), ("image", "y"), ("x", "heatmap")])
def test_a_foreign_graph_is_named(ends, tmp_path):
    foreign = _write_onnx(tmp_path / "foreign.onnx", *ends)
    reason = f"foreign.onnx: .*its graph leads from {ends[0]} to {ends[1]}, not from image"
    with pytest.raises(ValueError, match=reason):
        RuntimeDetector(foreign)
    openvino.save_model(openvino.Core().read_model(foreign), tmp_path / "foreign.xml")
    with pytest.raises(ValueError, match=reason.replace(".onnx", ".xml")):
        RuntimeDetector(tmp_path / "foreign.xml", "openvino")


@pytest.mark.parametrize(
    "runtime, ends", [("onnx", ".onnx"), ("openvino", ".xml .bin"), ("torch-export", ".pt2")]
)
@pytest.mark.parametrize("content", [b"", b"no graph"])
def test_a_damaged_file_is_named(runtime, ends, content, tmp_path):
    for end in ends.split():
        (tmp_path / f"broken{end}").write_bytes(content)
    file = tmp_path / f"broken{ends.split()[0]}"
    with pytest.raises(ValueError, match=f"{file.name}: not a whole file of this kind"):
        RuntimeDetector(file, runtime)
    photo = sample_images(TEST_SAMPLES).paths[0]
    result = call("detect", photo, "--checkpoint", file, "--runtime", runtime)
    assert result.exit_code == 2 and f"broken{ends[:4]}" in result.output
    assert "Traceback" not in result.output


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
    images, choice = (
        photos((120, 160)),
        Selection(100, threshold=0.01),
    )  # the top of a peak of 1e-5 moves with the last digits
    for ours, its in zip(
        StudentDetector(load_checkpoint(student), choice).detect(images),
        RuntimeDetector(exported, "onnx", choice).detect(images.expand(-1, 3, -1, -1)),
    ):
        near = (ours.xy[:, None] - its.xy).norm(dim=-1).min(1).values
        assert (
            len(ours) == len(its) > 20 and near.max() < 1e-3 and (ours.xy != ours.xy.round()).any()
        )


def test_a_runtime_has_the_cores_and_pytorch_gets_its_threads_back(exported, monkeypatch):
    detector, seen, before = RuntimeDetector(exported, "onnx"), [], torch.get_num_threads()
    monkeypatch.setattr(
        detector, "run", lambda images: seen.append(torch.get_num_threads()) or 1 / 0
    )
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="ZeroDivisionError"):
            LocalFeature(detector).detect(np.zeros((64, 96), np.float32))
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_detecting_in_a_runtime_and_measuring_it(student, exported, tmp_path):
    photo = sample_images(TEST_SAMPLES).paths[0]
    tables = []
    for options in ((student,), (exported, "--runtime", "onnx")):
        result = call(
            "detect",
            photo,
            "--max-keypoints",
            50,
            "--csv",
            "--out",
            tmp_path,
            "--checkpoint",
            *options,
        )
        assert result.exit_code == 0, result.output
        tables.append(pd.read_csv(tmp_path / "keypoints.csv"))
    np.testing.assert_allclose(tables[0].score, tables[1].score, atol=1e-4)
    result = call("detect", photo, "--checkpoint", exported, "--runtime", "tensorrt")
    assert result.exit_code == 2 and "choose one of onnx" in result.output
    small = replace(R1, size=(48, 64))
    assert (
        len(
            small.run(
                RuntimeDetector(exported, "onnx", small.selection),
                warped_sample_sequences(1, (60, 80)),
            )
        )
        == 5
    )


def test_openvino(student, exported, tmp_path, monkeypatch):
    openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")
    # what OpenVINO reads, made once
    monkeypatch.setattr(spfpn.features.export, "student_onnx", lambda *_: exported.read_bytes())
    assert (
        call(
            "export",
            student,
            "--format",
            "openvino",
            "--max-keypoints",
            200,
            "--nms-radius",
            3,
            "--out",
            tmp_path / "s.xml",
        ).exit_code
        == 0
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.bin", "s.xml"]
    images = photos((75, 101))
    with torch.no_grad():
        expected = load_checkpoint(student).heatmap(images)
    assert torch.allclose(
        RuntimeDetector(tmp_path / "s.xml", "openvino").heatmap(images), expected, atol=1e-4
    )
    fixed = RuntimeDetector(tmp_path / "s.xml", "openvino", size=(75, 101))
    assert torch.allclose(fixed.heatmap(images), expected, atol=1e-4)
    with pytest.raises(ValueError, match="made for images of 75×101, this one has 60×80"):
        fixed.detect(photos((60, 80)))
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        coarse = RuntimeDetector(tmp_path / "s.xml", "openvino-bf16")
        assert (
            1e-6 < (coarse.heatmap(images) - expected).abs().max() < 0.05
            and coarse.version != RuntimeDetector(tmp_path / "s.xml", "openvino").version
        )
    else:
        with pytest.raises(ValueError, match="does not calculate in bf16; take openvino"):
            RuntimeDetector(tmp_path / "s.xml", "openvino-bf16")


def test_torch_export(student, tmp_path):
    path = export_student(student, "torch-export", tmp_path / "s.pt2")
    images, network = photos((75, 101)), torch.export.load(path).module()
    with torch.no_grad():
        assert torch.allclose(
            network(images)[0], load_checkpoint(student).heatmap(images), atol=1e-5
        )


@pytest.mark.parametrize(
    "error, message",
    [(2e-4, "differs from PyTorch's by"), (float("nan"), "differs from PyTorch's by")],
)
def test_a_graph_that_differs_is_not_written(student, tmp_path, monkeypatch, error, message):
    model = load_checkpoint(student)
    wrong = Runtime(
        (".wrong",),
        lambda *_: {".wrong": b""},
        lambda _: lambda images: [model.heatmap(images) + error],
    )
    monkeypatch.setitem(spfpn.features.export.RUNTIMES, "wrong", wrong)
    result = call("export", student, "--format", "wrong", "--out", tmp_path / "s.wrong")
    assert result.exit_code == 2 and message in result.output and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "format, module", [("onnx", "onnx"), ("onnx", "onnxruntime"), ("openvino", "openvino")]
)
def test_without_an_extra_the_error_is_the_command_that_installs_it(
    student, tmp_path, monkeypatch, format, module
):
    monkeypatch.setitem(sys.modules, module, None)
    result = call(
        "export",
        student,
        "--format",
        format,
        "--out",
        tmp_path / ("s.xml" if format == "openvino" else "s.onnx"),
    )
    assert (
        result.exit_code == 2
        and f"pip install 'spfpn[{format}]'" in result.output
        and len(result.output.splitlines()) == 1
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("nosuch.safetensors",), "nosuch.safetensors"),
        (("nosuch",), "nosuch"),
        (("s.safetensors", "--format", "tensorrt"), "choose one of onnx"),
        (("s.safetensors", "--out", "s.pb"), "ends in .onnx"),
        (("spfpn-s", "--nms-radius", 3), "--nms-radius needs --max-keypoints"),
        (("spfpn-s", "--describe"), "--max-keypoints N"),
        (("spfpn-s", "--size", "480"), "write HEIGHTxWIDTH"),
        (("spfpn-s", "--size", "8x8"), "each at least 32"),
        (("spfpn-s", "--half", "--format", "torch-export"), "leave out --half, or choose onnx"),
        (("mnn", "--half"), "leave out --half"),
        (("mnn", "--format", "openvino"), "mnn is written as onnx"),
        (("mnn", "--out", "mnn.xml"), "ends in .onnx"),
        (("spfpn-s", "--int8", "--half"), "leave out one"),
        (("spfpn-s", "--int8", "--format", "openvino"), "leave out --int8, or choose onnx"),
    ],
)
def test_errors_are_one_message(arguments, message):
    result = call("export", *arguments)
    assert result.exit_code == 2 and message in result.output and "Traceback" not in result.output
