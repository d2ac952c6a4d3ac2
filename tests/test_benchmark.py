"What the benchmark times, what it leaves out, and how wrong names are answered."

import sys
from functools import partial

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from spfpn.apps.benchmark import _ExtractorHeatmap
from spfpn.apps.cli import app
from spfpn.core.registry import DETECTORS, Entry
from spfpn.core.runs import checkpoint_name
from spfpn.data.images import sample_images
from spfpn.features.edgepoint2 import EdgePoint2
from spfpn.features.teachers import SuperPoint
from spfpn.features.xfeat import XFeat
from spfpn.models.spfpn import SPFPN, save_checkpoint


def call(*arguments):
    "The result of `spfpn ARGUMENTS`."
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def student(tmp_path):
    torch.manual_seed(0)
    return save_checkpoint(SPFPN(pretrained=False), tmp_path / "a" / "student.safetensors")


def test_a_benchmark_times_each_row_in_each_round_and_says_what_it_left_out(
    student, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "openvino", None)
    untrained = {"superpoint": SuperPoint, "xfeat": XFeat}
    for name, kind in untrained.items():  # weights take no time
        maker = partial(kind, pretrained=False)
        monkeypatch.setitem(DETECTORS._entries, name, Entry(maker, dict(kind.tags)))
    specs = (student, f"{student}:openvino", f"{student}:channels-last", f"{student}:nosuch")
    specs += ("superpoint:eager", "xfeat:eager", "xfeat", "harris", "nosuch")
    options = ("--size", "64x96", "--rounds", 2, "--times", tmp_path / "times.parquet")
    detectors = [x for spec in specs for x in ("--detector", spec)]
    result = call("benchmark", "detect", *options, *detectors)
    assert result.exit_code == 0, result.output
    assert f"left out: {student}:openvino (ImportError" in result.output
    assert f"left out: {student}:nosuch (ValueError" in result.output
    assert "left out: nosuch (UnknownName: unknown detector" in result.output
    times = pd.read_parquet(tmp_path / "times.parquet")
    name = checkpoint_name(student)
    assert times.row[:6].tolist() == [
        *(
            str(student),
            f"{name}, channels-last",
            "SuperPoint",
            "XFeat",
            "XFeat, its own choice",
            "harris",
        )
    ]
    assert len(times) == 12 and set(times.height) == {64}
    assert (times[["decode", "network", "selection"]] > 0).all(axis=None)


def test_a_network_without_weights_is_left_out_with_their_address(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))

    def no_network(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    names = "superpoint:eager", "xfeat", "edgepoint2-t32:eager"
    detectors = [x for spec in (*names, "harris") for x in ("--detector", spec)]
    result = call("benchmark", "detect", "--size", "64x96", "--rounds", 1, *detectors)
    assert result.exit_code == 0, result.output
    for name in names:
        assert f"left out: {name} (WeightsError: " in result.output
    assert "random weights" not in result.output and "harris" in result.output


@pytest.mark.parametrize("network", [SuperPoint, XFeat, partial(EdgePoint2, "edgepoint2-t32")])
def test_networks_that_are_timed_do_what_their_detectors_do(network):
    photographs = sample_images(("coffee.png", "chelsea.png"))
    images = torch.stack([photographs.load(i, (75, 101))[0] for i in range(2)])
    extractor = network(pretrained=False)
    heatmap = _ExtractorHeatmap(extractor).heatmap(images)
    assert torch.allclose(heatmap, extractor.heatmap(images), atol=1e-6)
    assert heatmap.shape == images.shape


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("detect --detector nosuch", "nothing to time"),
        ("detect --detector spfpn-s:nosuch", "choose one of onnx"),
        ("detect --detector nosuch.safetensors:eager", "no such checkpoint"),
        ("detect --size big", "480x640"),
        ("label --images nosuch", "no such folder"),
    ],
)
def test_a_benchmark_of_what_is_not_there(arguments, message):
    result = call("benchmark", *arguments.split())
    assert result.exit_code == 2 and message in result.output


def test_labeling_is_measured_beside_a_bare_loop():
    result = call("benchmark", "label", "--rounds", 1)
    assert result.exit_code == 0, result.output
    assert all(name in result.output for name in ("bare", "label", "ratio"))
