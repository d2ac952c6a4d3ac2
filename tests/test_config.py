"Configurations: what a profile means, how values are read, and how every mistake is answered."

import ast
import json
import math
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal, get_args, get_origin

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from papermill.cli import _resolve_type
from safetensors import safe_open

from spfpn.apps.cli import load_config
from spfpn.core import registry
from spfpn.core.config import (
    Config,
    ConfigError,
    list_profiles,
    settings_table,
    upgrade_flat,
)
from spfpn.core.registry import REGISTRIES, Entry
from spfpn.core.sections import KEYS

ROOT = Path(registry.__file__).parents[2]


def problems(work, *arguments) -> list[str]:
    "The lines of the error of `work(*arguments)`."
    with pytest.raises(ConfigError) as raised:
        work(*arguments)
    return str(raised.value).splitlines()


def problem(key, value) -> str:
    "The only line about `key=value`."
    (line,) = problems(Config.from_flat, {key: value})
    return line


# -- profiles

# what a run did before the keys had sections, when nothing was set
OLD_DEFAULTS = {
    **{"run.seed": 0, "run.device": "auto", "run.workers": 2},
    **{"data.images": "samples", "data.limit": 0, "data.height": 240, "data.width": 320},
    **{"data.resize": "cover", "data.val_fraction": 0.1},
    **{"labels.teacher": "aliked", "labels.max_keypoints": 250, "labels.threshold": 0.0},
    **{"labels.nms_radius": 4, "labels.adaptation_views": 0, "labels.batch_size": 0},
    **{"labels.adaptation_aggregate": "mean", "labels.matcher": "lightglue"},
    **{"labels.pairs_per_image": 1, "labels.pair_limit": 0, "labels.max_reproj_error": 3.0},
    **{"model.backbone": "mobilenetv3_small_100", "model.pretrained": True},
    **{"model.head": "shuffle", "model.fpn_channels": 32, "model.fpn_levels": 4},
    **{"phase1.init_from": "", "phase1.loss": "bce", "phase1.rank_midpoint": 0},
    **{"phase1.epochs": 10, "phase1.lr": 2e-3, "phase1.sigma": 1.2},
    **{"phase2.init_from": "", "phase2.targets": "matched_pairs", "phase2.loss": "huber"},
    **{"phase2.adaptation_views": 16, "phase2.adaptation_scales": [1.0], "phase2.epochs": 4},
    **{"phase2.lr": 5e-4, "phase2.schedule": "cosine", "phase2.sigma": 1.2},
    **{"phase2.consistency_weight": 1.0, "phase2.supervised_weight": 1.0},
    **{"augment.rotation": 30.0, "augment.zoom": 1.6, "augment.mirror": False},
    **{"augment.photometric": 1.0, "augment.crop": 0, "augment.shapes_per_view": 0.0},
    **{"augment.shapes_weight": 1.0, "augment.shapes_weight_end": 1.0},
    **{"train.batch_size": 16, "train.views_per_epoch": 1, "train.precision": "auto"},
    **{"evaluate.sequences": "auto", "evaluate.sequence_limit": 0, "evaluate.frames": ""},
    **{"evaluate.poses": "", "evaluate.protocols": ["R1"]},
    "evaluate.detectors": ["harris", "shi", "fast", "sift", "random"],
}
# and what each profile changed
OLD_PROFILES = {
    "quick": {
        **{"labels.teacher": "disk", "labels.max_keypoints": 500},
        **{"phase1.init_from": "spfpn-s", "phase1.rank_midpoint": 300, "phase1.sigma": 0.7},
        **{"phase1.epochs": 4, "phase1.lr": 1e-4},
        **{"phase2.epochs": 3, "phase2.lr": 2e-4, "phase2.sigma": 0.7},
        **{"train.views_per_epoch": 0, "data.val_fraction": 0.25},  # both were fixed numbers
        **{"evaluate.protocols": ["R1", "S1"]},
        "evaluate.detectors": ["spfpn-s", "harris", "shi", "fast", "sift", "random"],
    },
    "small": {
        **{"labels.teacher": "disk", "labels.max_keypoints": 500},
        **{"labels.adaptation_aggregate": "votes", "model.pretrained": False},
        **{"model.fpn_levels": 2, "train.precision": "bfloat16"},
        **{"augment.shapes_per_view": 2.0, "augment.shapes_weight": 4.0},
        **{"augment.shapes_weight_end": 0.25},
        **{"phase1.rank_midpoint": 300, "phase1.sigma": 0.7, "phase1.lr": 3e-3},
        **{"phase1.epochs": 16, "phase2.targets": "pseudo_labels", "phase2.adaptation_views": 16},
        **{"phase2.adaptation_scales": [1.0, 1.5], "phase2.lr": 2e-3, "phase2.sigma": 0.7},
        **{"phase2.schedule": "constant", "phase2.epochs": 32, "evaluate.protocols": ["R1", "S1"]},
        "evaluate.detectors": ["disk", "aliked", "harris", "shi", "fast", "sift", "random"],
    },
    "paper": {
        **{"data.images": "coco", "data.height": 480, "data.width": 640},
        **{"labels.teacher": "superpoint", "model.head": "bicubic", "model.fpn_channels": 128},
        **{"phase1.loss": "focal", "phase1.epochs": 10, "phase2.epochs": 5},
        **{"phase2.supervised_weight": 0.0, "evaluate.protocols": ["R1", "H1", "S1"]},
        "evaluate.detectors": ["harris", "shi", "fast", "sift", "superpoint", "random"],
    },
}
# keys that may differ, because the profile does not use them
WITHOUT_PSEUDO_LABELS = {"labels.adaptation_aggregate", "phase2.adaptation_scales"}
WITHOUT_SHAPES = {"augment.shapes_weight", "augment.shapes_weight_end"}
WITHOUT_A_NEW_STUDENT = {"model.pretrained", "model.fpn_levels"}
WITHOUT_BLOBS_IN_PHASE_1 = {"phase1.sigma", "phase1.rank_midpoint"}
UNUSED = {
    "quick": WITHOUT_PSEUDO_LABELS | WITHOUT_SHAPES | WITHOUT_A_NEW_STUDENT,
    "small": set(),
    "paper": WITHOUT_PSEUDO_LABELS | WITHOUT_SHAPES | WITHOUT_BLOBS_IN_PHASE_1,
}


@pytest.mark.parametrize("name", OLD_PROFILES)
def test_a_profile_means_what_it_meant_before(name):
    before, now = OLD_DEFAULTS | OLD_PROFILES[name], Config.load(name).flat()
    assert set(now) == set(KEYS)
    now = {key: value for key, value in now.items() if not key.startswith("phase3.")}  # newer
    assert set(before) == set(now)
    assert {key for key in now if now[key] != before[key]} == UNUSED[name]


def test_the_defaults_are_the_small_recipe():
    assert Config().flat() | {"train.precision": "bfloat16"} == Config.load("small").flat()
    assert Config.load("") == Config()


def test_profiles_are_listed_and_a_wrong_one_is_answered_with_the_nearest():
    assert list_profiles() == ["quick", "small", "paper", "tiny"]
    (line,) = problems(Config.load, "smal")
    assert (
        "unknown profile 'smal': did you mean 'small'?" in line
        and "Choose one of quick, small, paper, tiny, or add a section to" in line
    )


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A project's root with a settings.ini to be written: project('[mine]...')."
    (tmp_path / "nbs").mkdir()
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes):
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "settings.ini").write_bytes(content)

    write("")
    return write


def test_a_mistake_in_settings_ini_says_so(project):
    project("[mine]\nphase1.lrate = 1\nrepeats = 3\n")
    assert problems(Config.load, "mine") == [
        "settings.ini, [mine]: unknown key phase1.lrate: did you mean phase1.lr?",
        "settings.ini, [mine]: repeats is now train.views_per_epoch",
    ]
    project("[mine]\nphase1.lr = 0.5\n")
    assert Config.load("mine", {"phase1.epochs": "2"}).phase1.lr == 0.5
    assert problems(Config.load, "mine", {"phase1.lr": 0})[0].startswith("phase1.lr=0:")


# -- values


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("data.images", 2017, "2017"),
        ("data.images", 1, "1"),
        ("data.images", True, "True"),
        ("labels.teacher", 3, "3"),
        ("evaluate.detectors", 7, ("7",)),
        ("evaluate.detectors", True, ("True",)),
        ("evaluate.detectors", [1, "harris", Path("a.py:f")], ("1", "harris", "a.py:f")),
        ("evaluate.detectors", Path("a.safetensors"), ("a.safetensors",)),
        ("data.images", Path("a b"), "a b"),
        ("data.images", " coco ", "coco"),
        ("evaluate.frames", "", ""),
        ("data.height", "120", 120),
        ("data.height", 120.0, 120),
        ("data.height", "1e3", 1000),
        ("run.seed", str(2**63 - 1), 2**63 - 1),
        ("phase1.lr", "1e-3", 0.001),
        ("phase1.lr", 1, 1.0),
        ("augment.mirror", "yes", True),
        ("augment.mirror", "Off", False),
        ("augment.mirror", "true", True),
        ("augment.mirror", 0, False),
        ("augment.crop", 0, 0),
        ("run.device", "cuda:1", "cuda:1"),
        (
            "evaluate.detectors",
            "harris, dog.py:dog ,disk@1+1.5",
            ("harris", "dog.py:dog", "disk@1+1.5"),
        ),
        ("evaluate.detectors", "", ()),
        ("evaluate.protocols", ["R1", "H1:aliked"], ("R1", "H1:aliked")),
        ("phase2.adaptation_scales", "1,1.5", (1.0, 1.5)),
        ("phase2.adaptation_scales", 2, (2.0,)),
    ],
)
def test_a_value_is_read_by_the_type_of_its_key(key, value, expected):
    section, name = key.split(".")
    found = getattr(getattr(Config.from_flat({key: value}), section), name)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("data.height", 1.5, "data.height=1.5: must be a whole number, at least 32"),
        ("data.height", "31", "data.height='31': must be a whole number, at least 32"),
        ("data.height", True, "data.height=True: must be a whole number, at least 32"),
        ("data.height", None, "data.height=None: must be a whole number, at least 32"),
        ("run.seed", 2**63, "must be a whole number, at least 0 and below 2**63"),
        ("augment.crop", 8, "augment.crop=8: must be a whole number, 0 or at least 32"),
        ("phase1.lr", "fast", "phase1.lr='fast': must be a number, above 0"),
        ("phase1.lr", 0, "phase1.lr=0: must be a number, above 0"),
        ("phase1.lr", "nan", "phase1.lr='nan': must be finite"),
        ("phase1.lr", math.inf, "phase1.lr=inf: must be finite"),
        ("phase1.lr", False, "phase1.lr=False: must be a number, above 0"),
        ("phase1.epochs", 0, "phase1.epochs=0: must be a whole number, at least 1"),
        ("labels.pairs_per_image", 0, "must be a whole number, at least 1"),
        ("model.fpn_levels", 5, "must be a whole number, at least 1 and at most 4"),
        ("augment.rotation", 181, "must be a number, at least 0 and at most 180"),
        ("data.val_fraction", 1, "must be a number, above 0 and below 1"),
        ("augment.mirror", "maybe", "augment.mirror='maybe': must be yes or no"),
        ("data.resize", "crop", "data.resize='crop': choose one of cover, fit"),
        ("run.device", "abacus", "choose one of auto, cpu, cuda, cuda:N, mps"),
        ("data.images", [1], "choose one of samples, coco, coco-val, a folder"),
        ("data.resize", True, "data.resize=True: choose one of cover, fit"),
        ("phase2.adaptation_scales", True, "must be a comma-separated list, each above 0"),
        ("labels.teacher", None, "labels.teacher=None: must be a detector"),
        ("phase2.adaptation_scales", "1,0", "must be a comma-separated list, each above 0"),
        ("phase2.adaptation_scales", "", "must be a comma-separated list"),
        ("evaluate.protocols", "", "must be a comma-separated list"),
        ("evaluate.detectors", {"harris"}, "must be a comma-separated list"),
        (
            "phase2.schedule",
            "steady",
            "choose one of cosine, constant ('steady' is now 'constant')",
        ),
        ("data.resize", "x" * 999, "x...: choose one of cover, fit"),
        ("labels.limit", "9" * 5000, "unknown key labels.limit: did you mean data.limit?"),
    ],
)
def test_a_value_that_a_key_cannot_have(key, value, expected):
    assert expected in problem(key, value)


@pytest.mark.parametrize(
    "key, expected",
    [
        ("phase1.lrate", "unknown key phase1.lrate: did you mean phase1.lr?"),
        ("lr", "unknown key lr: did you mean phase1.lr or phase2.lr or phase3.lr?"),
        ("augment.batch_size", "did you mean labels.batch_size or train.batch_size?"),
        ("data.heigth", "did you mean data.height?"),
        ("epoch", "did you mean phase1.epochs or phase2.epochs or phase3.epochs?"),
        ("xyz", "unknown key xyz"),
        ("", "unknown key ''"),
        ("two\nlines", r"unknown key 'two\nlines'"),
        (3, "unknown key 3"),
        ("data", "unknown key data"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(key, expected):
    assert problem(key, 1).endswith(expected)


TEXTS = {  # a few texts that a key of each kind accepts, as they are typed
    str: ["2017", "1", "True", "False", "0.5", "1,2", "a b"],
    int: ["33", "64.0"],
    float: ["1", "0.5", "1e-1"],
    bool: ["True", "False", "1", "0", "yes"],
    tuple: ["1", "1.5", "1,1.5"],
}


def typed(key: str) -> list[str]:
    "Texts that are values of a key."
    field = KEYS[key]
    kind = get_origin(field.annotation) or field.annotation
    if kind is Literal:
        return list(get_args(field.annotation))
    special = {
        **{"run.device": ["cuda:1", "cpu"], "model.fpn_levels": ["3", "2.0"]},
        **{"data.val_fraction": ["0.5", "1e-1"], "augment.zoom": ["1", "1.5"]},
    }
    return special.get(key, TEXTS[kind])


@pytest.mark.parametrize("key", KEYS)
def test_a_text_means_the_same_to_every_reader(key, project):
    (section, name), kind = key.split("."), KEYS[key].annotation
    for text in typed(key):
        project(f"[mine]\n{key} = {text}\n")
        wanted = Config.load("mine")
        resolved = _resolve_type(text)  # a truth value or a number, where it looks like one
        assert load_config("", [f"{key}={text}"]) == wanted
        assert Config.from_notebook({"overrides": {key: resolved}}, "") == wanted
        assert Config.from_notebook({name: resolved}, section) == wanted
        if kind is str or get_origin(kind) is Literal:
            assert getattr(getattr(wanted, section), name) == text


def test_overrides_that_are_no_mapping_are_refused():
    for wrong in ("phase1.lr=1e-3", 3, ["phase1.lr"]):
        (line,) = problems(Config.from_notebook, {"overrides": wrong}, "phase1")
        assert line.startswith(f"overrides={wrong!r}: must be a mapping")


def test_a_number_that_python_does_not_print_is_refused():
    assert problem("run.seed", 10**5000).startswith("run.seed=int: must be a whole number")
    assert problem("phase1.lr", 10**5000).startswith("phase1.lr=int: must be a number")
    assert problem(10**5000, 1).startswith("unknown key int")


def test_all_problems_are_reported_at_once():
    wrong = {"phase1.lr": 0, "x.y": 1, "data.height": 1, "evaluate.detectors": [1.5, None, None]}
    found = problems(Config().replace, wrong)
    assert [line.split(":")[0].split("=")[0] for line in found] == [
        *("unknown key x.y", "data.height", "phase1.lr", "evaluate.detectors")
    ]


def test_a_configuration_cannot_be_changed_in_place_but_replaced():
    config = Config()
    with pytest.raises(ValueError):
        config.phase1.lr = 1.0
    other = config.replace({"phase1.lr": "1e-4", "evaluate.protocols": "R2"})
    assert (other.phase1.lr, config.phase1.lr) == (1e-4, 3e-3)
    assert other.replace({"phase1.lr": 3e-3, "evaluate.protocols": ["R1", "S1"]}) == config


def test_flat_is_json_and_comes_back():
    flat = Config.load("paper").flat()
    assert json.loads(json.dumps(flat)) == flat
    assert Config.from_flat(flat) == Config.load("paper")


def test_outcome_leaves_out_what_no_training_depends_on():
    left_out = set(Config().flat()) - set(Config().outcome())
    free = {"run.device", "run.workers", "data.images"}
    assert left_out == free | {key for key in KEYS if key.startswith("evaluate.")}


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary(max_size=3)
    | st.sampled_from(["1", "0.5", "yes", "cover", "1e400", "-1", "9" * 5000, 10**400])
    | st.sampled_from(["own", "blob", "steady", "1+1.5", "1,2", "two\nlines", "\ud800", 1 + 2j]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
keys = st.sampled_from(
    [*KEYS, "phase1_lr", "phase2_loss", "phase1_loss", "scales", "heigth", "x.y"]
)


@given(mapping=st.dictionaries(keys | st.text() | st.none() | st.integers(), anything, max_size=4))
def test_any_mapping_is_a_configuration_or_an_error_that_names_its_keys(mapping):
    try:
        config = Config.from_flat(mapping)
    except ConfigError as error:
        lines = str(error).splitlines()
        named = sum(any(line.startswith(f"{k}") for k in mapping) for line in lines)
        assert named + sum(line.startswith("unknown key ") for line in lines) >= len(lines)
        return
    assert Config.from_flat(config.flat()) == config
    assert Config.from_flat({row["key"]: row["value"] for row in settings_table(config)})


@given(mapping=st.dictionaries(keys | st.text(), anything, max_size=4))
def test_any_settings_of_a_file_are_upgraded(mapping):
    assert set(upgrade_flat(mapping)) <= set(KEYS)


LINES = [
    "[quick]",
    "[paths]",
    "[DEFAULT]",
    "[",
    "run.seed = 3",
    "run.seed = x",
    "run.seed",
    "=",
    "é",
]


@given(
    text=st.binary(max_size=80)
    | st.lists(st.sampled_from([*LINES, "\ufeff", "  tail", "%(x)s", "seed = 3"]), max_size=6).map(
        lambda lines: "\n".join(lines).encode()
    )
)
def test_any_settings_ini_is_a_profile_or_an_error(text, project):
    project(text)
    with suppress(ConfigError):
        assert isinstance(Config.load("quick"), Config)


# -- old names


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("phase1_lr", "1e-3", "phase1_lr is now phase1.lr"),
        ("batch", 8, "batch is now train.batch_size"),
        ("repeats", "2", "repeats is now train.views_per_epoch"),
        ("phase1_loss", "blob", "phase1_loss=blob is now phase1.loss=bce"),
        ("phase1_loss", "penalty", "phase1_loss=penalty is now phase1.loss=penalty_focal"),
        ("phase1_loss", "focal", "phase1_loss is now phase1.loss"),
        ("phase2_loss", "own", "phase2_loss=own is now phase2.targets=pseudo_labels"),
        ("phase2_loss", "kl", "phase2_loss=kl is now phase2.targets=matched_pairs, phase2.loss=kl"),
        ("phase2_schedule", "steady", "phase2_schedule=steady is now phase2.schedule=constant"),
        ("matcher", "nearest", "matcher=nearest is now labels.matcher=mnn"),
        ("scales", "1+1.5", "scales=1+1.5 is now phase2.adaptation_scales=1,1.5"),
        ("views", "8", "views is now phase2.adaptation_views"),
        ("pairs_per_image", "0", "pairs_per_image is now labels.pairs_per_image"),
    ],
)
def test_an_old_key_is_answered_with_the_new_one(key, value, expected):
    assert problem(key, value) == expected


def test_every_old_key_has_a_new_one():
    from spfpn.core.config import _OLD_KEYS

    new_keys = {"phase2.init_from", "phase2.targets", "evaluate.poses"}
    new_keys |= {key for key in KEYS if key.startswith("phase3.")}
    assert set(_OLD_KEYS.values()) == set(KEYS) - new_keys and len(_OLD_KEYS) == 56


def header(name: str) -> dict:
    with safe_open(ROOT / f"spfpn/weights/{name}.safetensors", "np") as file:
        made = {key: json.loads(value) for key, value in file.metadata().items()}
        return made.get("detector", made)["settings"]


BUNDLED = {
    "spfpn-s": {
        **{"phase2.adaptation_views": 8, "phase2.epochs": 16, "augment.shapes_weight": 0.5},
    },
    "spfpn-l": {
        **{"model.backbone": "mobilenetv3_large_100", "model.fpn_levels": 4},
        **{"model.fpn_channels": 64, "phase2.adaptation_views": 4, "phase2.epochs": 28},
        **{"augment.shapes_weight_end": 1},  # a key that came later than this student
    },
}


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_student_still_says_how_it_was_made(name):
    made = Config.from_flat(upgrade_flat(header(name)))
    assert made.outcome() == Config.load("small", BUNDLED[name]).outcome()


def test_settings_of_today_need_no_upgrade():
    flat = Config.load("paper").flat()
    assert upgrade_flat(flat) == flat and upgrade_flat({}) == {}
    assert upgrade_flat({"seed": 3, "gone": 1})["run.seed"] == 3


# -- notebooks


def test_a_notebook_sets_the_keys_of_its_step():
    def picture():
        pass

    variables = dict(
        profile="quick", run="mine", lr=1e-3, epochs=None, seed=5, images=7, width=picture
    )
    config = Config.from_notebook(variables | {"batch_size": 4, "Config": Config}, "phase1")
    expected = {"phase1.lr": 1e-3, "run.seed": 5, "data.images": "7"}
    assert config == Config.load("quick", expected)
    assert Config.from_notebook(dict(batch_size="4"), "train").train.batch_size == 4
    assert Config.from_notebook(dict(limit=3, sequence_limit=2), "evaluate").data.limit == 3


def test_a_notebook_reaches_other_keys_by_overrides():
    variables = dict(overrides={"train.batch_size": 2, "phase2.lr": 0.5}, lr=0.25)
    config = Config.from_notebook(variables, "phase2")
    assert (config.train.batch_size, config.phase2.lr) == (2, 0.25)


def test_a_notebook_with_an_old_name_is_told_the_new_one():
    found = problems(Config.from_notebook, dict(phase1_lr=1e-3, views=3), "phase1")
    assert found == ["phase1_lr is now phase1.lr"]


def parameter_texts(cells: list) -> set[str]:
    "Return the names that a notebook's cell of parameters sets to a text."
    tagged = [c.source for c in cells if "parameters" in c.metadata.get("tags", [])]
    lines = [line for source in tagged for line in ast.parse(source).body]
    return {
        line.targets[0].id
        for line in lines
        if isinstance(line, ast.Assign) and isinstance(getattr(line.value, "value", None), str)
    }


def test_a_notebook_reads_its_parameters_by_their_type():
    read, raw = 0, []
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
        code = "\n".join(c.source for c in cells)
        for name in parameter_texts(cells):
            read += len(re.findall(rf"\bread_value\({name}, ", code))
            opened = rf"\b(open_images|open_sequences|RunFolder\.open)\({name}\b"
            use = rf"{opened}|\bPath\({name} or|\b{name}\.split\("
            raw += [(path.name, match[0]) for match in re.finditer(use, code)]
    assert not raw and read > 20


# -- checks before any work


@pytest.fixture
def names(monkeypatch):
    "Registries with a few names each, so that nothing heavy is imported."
    made = {kind: dict.fromkeys(("shuffle", "huber", "bce"), Entry(len)) for kind in REGISTRIES}
    made["backbone"] = {"mobilenetv3_small_100": Entry(len)}
    made["descriptor loss"] = dict.fromkeys(("cosine", "dual_softmax"), Entry(len))
    points, heatmap = Entry(len), Entry(len, {"heatmap": True})
    extractor = Entry(len, {"heatmap": True, "extractor": True})
    student = Entry(len, {"heatmap": True, "student": True})
    made["detector"] = {
        **{"fast": points, "sift": points, "random": points, "harris": heatmap, "shi": heatmap},
        **{"disk": extractor, "aliked": extractor, "superpoint-open": extractor},
        "spfpn-s": student,
    }
    made["matcher"] = {"lightglue": Entry(len, {"features": ("aliked", "disk")}), "mnn": Entry(len)}

    class Protocol:
        def __init__(self, data: str):
            self.data = data

    data = {"R1": "sequences", "S1": "shapes", "T1": "frames", "P1": "poses"}
    made["protocol"] = {name: Entry(Protocol(value)) for name, value in data.items()}
    for kind, entries in made.items():
        monkeypatch.setattr(REGISTRIES[kind], "modules", ())
        monkeypatch.setattr(REGISTRIES[kind], "_entries", entries)
    checkpoint = {"*.safetensors": lambda spec: student if spec.endswith(".safetensors") else None}
    monkeypatch.setattr(
        REGISTRIES["detector"], "resolvers", REGISTRIES["detector"].resolvers | checkpoint
    )
    nms = {"R1:nms2": lambda spec: made["protocol"]["R1"] if spec == "R1:nms2" else None}
    monkeypatch.setattr(REGISTRIES["protocol"], "resolvers", nms)


def found_by_check(**changes) -> list[str]:
    values = {key.replace("__", "."): value for key, value in changes.items()}
    return problems(Config().replace(values).check)


PAIRS = {"phase2__targets": "matched_pairs"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"phase1__init_from": "spfpn-s", "phase2__init_from": "a/best.safetensors"},
        {"labels__teacher": "spfpn-s@1+1.5", "labels__adaptation_views": 8},
        {"labels__teacher": "fast"},
        {"evaluate__detectors": "", "evaluate__protocols": "R1:nms2"},
        {**PAIRS, "labels__teacher": "superpoint-open", "labels__matcher": "mnn"},
        {
            "evaluate__frames": "nbs",
            "evaluate__protocols": "T1",
            "evaluate__sequences": "warped:nbs",
        },
        {"phase2__supervised_weight": 0, "phase2__consistency_weight": 0},
    ],
)
def test_what_passes_the_check(names, changes):
    config = Config().replace({key.replace("__", "."): value for key, value in changes.items()})
    assert config.check() is config


@pytest.mark.parametrize(
    "changes, expected",
    [
        (
            {"evaluate__detectors": "hariss,fast"},
            "evaluate.detectors=hariss: unknown detector 'hariss': did you mean 'harris'?",
        ),
        ({"evaluate__protocols": "R9"}, "evaluate.protocols=R9: unknown protocol 'R9'"),
        ({"model__backbone": "resnot"}, "model.backbone=resnot: unknown backbone 'resnot'."),
        ({"model__head": "shufle"}, "model.head=shufle: unknown head 'shufle': did you mean"),
        ({"labels__teacher": ""}, "labels.teacher=: unknown detector ''"),
        ({"labels__teacher": "disk@0"}, "scales must be above 0"),
        ({"labels__teacher": "fast@1+2"}, "fast has no heatmap to average over scales"),
        ({"labels__teacher": "no.py:f"}, "no.py: no such file"),
        ({"phase1__loss": "blob"}, "('blob' is now 'bce')"),
        ({"phase2__loss": "own"}, "('own' is now phase2.targets=pseudo_labels)"),
        ({"labels__matcher": "nearest"}, "('nearest' is now 'mnn')"),
        ({"phase1__init_from": "harris"}, "phase1.init_from=harris: is no student."),
        (
            {"labels__teacher": "fast", "labels__adaptation_views": 8},
            "labels.adaptation_views=8: homographic adaptation needs a heatmap, and fast has none.",
        ),
        (
            {**PAIRS, "labels__teacher": "spfpn-s"},
            "labels.teacher=spfpn-s: has no descriptors, which matched pairs need. Choose one of "
            "aliked, disk, superpoint-open, or set phase2.targets=pseudo_labels",
        ),
        (
            {**PAIRS, "labels__teacher": "disk@1+1.5"},
            "labels.teacher=disk@1+1.5: has no descriptors",
        ),
        (
            {**PAIRS, "labels__teacher": "superpoint-open"},
            "labels.matcher=lightglue: has no weights for superpoint-open, only for aliked, disk.",
        ),
        (
            {**PAIRS, "phase2__supervised_weight": 0, "phase2__consistency_weight": 0},
            "phase2.supervised_weight=0.0: with phase2.consistency_weight=0.0 nothing is learned",
        ),
        (
            {"evaluate__protocols": "R1,T1"},
            "evaluate.protocols=T1: measures evaluate.frames, which is empty. "
            "Set evaluate.frames=FOLDER, or leave out T1",
        ),
        ({"evaluate__protocols": "P1"}, "evaluate.protocols=P1: measures evaluate.poses"),
        ({"data__images": "no/folder"}, "data.images=no/folder: there is no folder"),
        ({"evaluate__sequences": "warped:no/folder"}, "evaluate.sequences=warped:no/folder: there"),
        ({"data__images": "~nobody/x\0" + "y" * 999}, "data.images=~nobody/x"),
    ],
)
def test_what_the_check_finds(names, changes, expected):
    (line,) = found_by_check(**changes)
    assert expected in line


def test_a_batch_is_shared_by_processes(names, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert found_by_check() == [
        "train.batch_size=16: choose a multiple of 3, the number of processes"
    ]


def test_an_empty_word_is_no_folder(names):
    assert found_by_check(evaluate__sequences="")[0].startswith("evaluate.sequences=: there is no")
    assert found_by_check(evaluate__sequences="warped:")[0].startswith("evaluate.sequences=warped:")


def test_all_checks_report_at_once(names):
    assert len(found_by_check(model__head="x", data__images="no", evaluate__protocols="T1")) == 3


def test_reading_a_configuration_imports_nothing_heavy():
    code = "import sys, spfpn.core.config as c; c.Config(); c.settings_table(c.Config()); "
    code += "print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "pydantic" in loaded.stdout.split()
    assert not {"torch", "numpy", "timm", "cv2", "pandas"} & set(loaded.stdout.split())


def test_the_table_has_every_key_with_its_meaning():
    rows = {row["key"]: row for row in settings_table(Config.load("quick"))}
    assert list(rows) == list(KEYS) and all(
        row["description"].endswith(".") for row in rows.values()
    )
    assert rows["phase1.lr"] == {
        **{"key": "phase1.lr", "value": "0.0001", "default": "0.003", "bounds": "above 0"},
        **{"choices": "", "description": "Peak learning rate of phase 1."},
    }
    assert rows["evaluate.detectors"]["choices"] == "detectors, comma-separated"
    assert rows["model.pretrained"]["value"] == "no"
    assert all(row["bounds"] or row["choices"] for row in rows.values())
