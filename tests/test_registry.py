"Names of detectors, losses and protocols: what a user may write, and how a wrong name is answered."

import pickle
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from spfpn.core import registry as module
from spfpn.core.registry import (
    DETECTORS,
    REGISTRIES,
    Entry,
    Registry,
    UnknownName,
    import_extra,
    parse_detector_spec,
)

ROOT = Path(module.__file__).parents[2]


@pytest.fixture
def detectors():
    "A registry with two names."
    made = Registry("detector", default="detect")
    made.register("harris", len, heatmap=True, standard=True)
    made.register("fast", max)
    return made


def message(error: type[Exception], work, *arguments) -> str:
    with pytest.raises(error) as raised:
        work(*arguments)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def test_importing_it_imports_the_standard_library_only():
    code = "import sys, spfpn.core.registry; print(*{n.partition('.')[0] for n in sys.modules})"
    run = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    loaded = set(run.stdout.split()) - {"spfpn", "__main__"}
    assert "re" in loaded and loaded <= sys.stdlib_module_names


def test_names_have_values_and_tags(detectors):
    assert detectors.get("harris") is len and detectors.check("harris") == "harris"
    assert detectors.tags("harris") == {"heatmap": True, "standard": True}
    assert detectors.names() == ["fast", "harris"]
    assert detectors.names(heatmap=True, standard=True) == ["harris"]
    assert detectors.names(heatmap=False) == []


def test_a_decorator_returns_what_it_decorates_and_a_class_hands_its_tags_down(detectors):
    class Extractor:
        tags: ClassVar = {"extractor": True, "heatmap": True}

    @detectors.register("tilde", heatmap=False)
    class Tilde(Extractor):
        pass

    assert detectors.get("tilde") is Tilde
    assert detectors.tags("tilde") == {"extractor": True, "heatmap": False}


@pytest.mark.parametrize(
    "typo, near", [("hariss", "harris"), ("Harris", "harris"), ("fats", "fast"), ("h9:a", None)]
)
def test_a_typo_is_answered_with_the_nearest_name(detectors, typo, near):
    text = message(UnknownName, detectors.check, typo)
    assert text.startswith(f"unknown detector {typo!r}")
    assert ("did you mean" in text) == (near is not None) and (not near or f"'{near}'?" in text)
    assert "Known: fast, harris." in text and "FILE.py:NAME" in text
    assert issubclass(UnknownName, ValueError)


@pytest.mark.parametrize("name", ["a:b", "a@2", "a,b", "", "a b", "-a", "a/b"])
def test_a_name_that_could_not_be_written_in_a_setting_is_refused(detectors, name):
    assert repr(name) in message(ValueError, detectors.register, name, len)


def test_a_name_belongs_to_the_file_that_registered_it(detectors, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DETECTORS", detectors)
    (tmp_path / "mine.py").write_text(
        "from spfpn.core import registry\nregistry.DETECTORS.register('harris', min)\n"
    )
    text = message(ValueError, detectors.check, f"{tmp_path}/mine.py:harris")
    assert "'harris' is taken by" in text and "choose another name" in text and "line 2" in text
    assert detectors.get("harris") is len


def test_a_notebook_has_the_last_word(detectors):
    notebook = {"detectors": detectors}
    exec("detectors.register('fast', min)", notebook)
    assert detectors.get("fast") is min and detectors.find("fast").source is None
    exec("detectors.register('fast', sum)", notebook)  # the cell runs again
    detectors.register("fast", max)  # the library's own comes later
    assert detectors.get("fast") is sum


FILE = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass(frozen=True)
class Point:
    x: float

def detect(image): return "one"
def other(image): return "two"
size = 3
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_code.py").write_text(FILE)
    return tmp_path / "own_code.py"


def test_a_file_names_an_object(detectors, file):
    assert detectors.get("own_code.py")(0) == "one"
    assert detectors.get("own_code.py:other")(0) == "two"
    assert detectors.get(f"{file}:other") is detectors.get("own_code.py:other")
    assert detectors.find("own_code.py:other").source == file
    assert detectors.tags("own_code.py:other") == {}


def test_a_module_of_the_working_folder_names_an_object(detectors, file):
    assert detectors.get("own_code:other")(0) == "two"
    assert detectors.find("own_code:other").source == file


def test_a_changed_file_is_loaded_again(detectors, file):
    before = detectors.get("own_code.py")
    file.write_text(FILE.replace("one", "new"))
    assert before(0) == "one" and detectors.get("own_code.py")(0) == "new"


def test_classes_of_a_file_can_be_pickled(detectors, file):
    point = detectors.get("own_code.py:Point")(1.5)
    assert pickle.loads(pickle.dumps(point)) == point


def test_what_a_file_registers_can_be_named_either_way(file, monkeypatch):
    losses = Registry("phase-1 loss", default="loss")
    monkeypatch.setattr(module, "KEYPOINT_LOSSES", losses)
    file.write_text(
        "from spfpn.core import registry\n"
        "@registry.KEYPOINT_LOSSES.register('dice', mask='blob')\n"
        "def dice_loss(logits): return 0\n"
    )
    assert losses.tags("own_code.py:dice") == losses.tags("own_code.py:dice_loss")
    assert losses.tags("dice") == {"mask": "blob"}
    file.write_text(file.read_text().replace("return 0", "return 1"))  # may register it again
    assert losses.get("own_code.py:dice_loss")(0) == 1 == losses.get("dice")(0)


@pytest.mark.parametrize(
    "spec, text, expected",
    [
        ("none.py:f", None, "none.py: no such file"),
        ("own_code.py:othr", FILE, "there is no 'othr' in {file}: did you mean 'other'?"),
        ("own_code.py:size", FILE, "'size' is of type int and not a function"),
        ("own_code.py:f", "import os\n\n1 / 0\n", "(ZeroDivisionError: division by zero, line 3)"),
        ("own_code.py:f", "x = (\n", "(SyntaxError: '(' was never closed (own_code.py, line 1))"),
        ("own_code.py:f", "import nowhere_\n", "ModuleNotFoundError: No module named 'nowhere_'"),
        ("own_code.py:f", "open('data')\n", "FileNotFoundError"),
        ("own_code:f", "1 / 0\n", "own_code cannot be loaded (ZeroDivisionError"),
        (":f", FILE, "cannot be loaded (ValueError"),
        ("own_code.py:", FILE, "there is no ''"),
    ],
)
def test_what_is_wrong_with_a_file(detectors, file, spec, text, expected):
    file.write_text(text or FILE)
    sys.modules.pop("own_code", None)
    found = message(ValueError, detectors.check, spec)
    assert found.startswith(f"detector {spec!r}: ") and expected.format(file=file) in found


def test_a_class_is_no_protocol(file):
    protocols = Registry("protocol", needs="run")
    file.write_text("class Cover:\n    def run(self): pass\n\ncover = Cover()\n")
    assert protocols.check("own_code.py:cover")
    assert "is a class" in message(ValueError, protocols.check, "own_code.py:Cover")


def test_a_missing_package_takes_away_its_own_names_only(detectors, file):
    file.with_name("torch_code.py").write_text("import torch_that_is_not_here\n")
    detectors.modules = ("torch_code",)
    assert detectors.names() == ["fast", "harris"] and detectors.get("fast") is max
    text = message(UnknownName, detectors.get, "disk")
    assert text.endswith("Left out: torch_code (No module named 'torch_that_is_not_here').")


def test_a_mistake_in_the_library_is_no_missing_package(detectors):
    detectors.modules = ("spfpn.no_such_module",)
    with pytest.raises(ImportError, match="no_such_module"):
        detectors.names()


def test_a_resolver_says_yes_to_names_that_no_list_has(detectors):
    def checkpoint(spec):
        return Entry(open, {"student": True}) if spec.endswith(".safetensors") else None

    detectors.resolvers["*.safetensors"] = checkpoint
    assert detectors.check("a/best.safetensors") and detectors.tags("x.safetensors")["student"]
    assert "Also: *.safetensors, FILE.py:NAME" in message(UnknownName, detectors.get, "x.pth")


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("disk", ("disk", ())),
        ("disk@2", ("disk", (2.0,))),
        ("a b/best.safetensors@1+1.5", ("a b/best.safetensors", (1.0, 1.5))),
        ("dog.py:dog@0.5+1", ("dog.py:dog", (0.5, 1.0))),
        ("runs@2/best.safetensors", ("runs@2/best.safetensors", ())),
        ("disk@", ("disk@", ())),
    ],
)
def test_scales_of_a_detector(spec, expected):
    assert parse_detector_spec(spec) == expected


def test_only_a_heatmap_has_scales(monkeypatch):
    monkeypatch.setattr(DETECTORS, "modules", ())
    entries = {"disk": Entry(len, {"heatmap": True, "extractor": True}), "fast": Entry(max)}
    monkeypatch.setattr(DETECTORS, "_entries", entries)
    assert DETECTORS.get("disk@1+1.5") is len
    assert DETECTORS.tags("disk@1+1.5") == dict(heatmap=True, extractor=False, scales=(1.0, 1.5))
    assert "fast has no heatmap" in message(ValueError, DETECTORS.check, "fast@2")
    assert "scales must be above 0" in message(ValueError, DETECTORS.check, "disk@0")
    assert "did you mean 'disk'" in message(UnknownName, DETECTORS.check, "dsk@2")


def test_a_missing_extra_is_the_command_that_installs_it():
    assert import_extra("none", "json", "re")[0].dumps({}) == "{}"
    text = message(ImportError, import_extra, "openvino", "json", "openvino_is_not_here")
    assert text.startswith("openvino_is_not_here is not installed: pip install 'spfpn[openvino]'")


@pytest.mark.skipif(not (ROOT / "spfpn/features").is_dir(), reason="it is not there yet")
@pytest.mark.parametrize("kind", REGISTRIES)
def test_the_library_fills_every_registry(kind):
    assert REGISTRIES[kind].names() and not REGISTRIES[kind]._load()
