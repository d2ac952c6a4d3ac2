"Where relative paths start: one rule for checkout and wheel, terminal and notebook."

import builtins
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import spfpn
from spfpn.core.config import Config, list_profiles
from spfpn.core.files import checkout_dir, data_dir, outputs_dir, project_root, user_path
from spfpn.core.registry import DETECTORS
from spfpn.core.runs import RunFolder
from spfpn.data.images import open_images
from spfpn.data.sequences import open_frames, open_sequences
from spfpn.models.spfpn import CheckpointError, checkpoint_metadata, resolve_checkpoint

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def project(tmp_path):
    "A project with notebooks and photographs: settings.ini, nbs/workbook, photos."
    (tmp_path / "nbs" / "workbook").mkdir(parents=True)
    (tmp_path / "settings.ini").touch()
    photographs(tmp_path / "photos")
    return tmp_path


def photographs(folder: Path, count: int = 3) -> Path:
    "Make a folder of small photographs."
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        tiles = Image.effect_noise((12, 8), 80 + number)  # corners for every detector
        tiles.resize((96, 64), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


# ---- the rule


def test_paths_of_a_terminal_start_from_the_current_folder(project, monkeypatch):
    for folder in (project, project / "nbs", project / "photos", ROOT / "nbs", ROOT / "tests"):
        monkeypatch.chdir(folder)
        assert project_root() == folder and user_path("a/b") == folder / "a" / "b"


def test_paths_of_a_notebook_start_from_the_root_of_its_project(project, monkeypatch):
    monkeypatch.setattr(builtins, "__IPYTHON__", True, raising=False)
    monkeypatch.delenv("SPFPN_ROOT", raising=False)
    for folder, root in {
        project / "nbs" / "workbook": project,
        project / "nbs": project,
        project / "photos": project / "photos",
        ROOT / "nbs" / "workbook": ROOT,
    }.items():
        monkeypatch.chdir(folder)
        assert project_root() == root
    (project / "settings.ini").unlink()
    monkeypatch.chdir(project / "nbs")
    assert project_root() == project / "nbs", "a folder of that name is not yet a project"


def test_a_command_tells_its_notebooks_where_the_user_stands(project, monkeypatch):
    monkeypatch.setattr(builtins, "__IPYTHON__", True, raising=False)
    monkeypatch.setenv("SPFPN_ROOT", str(project / "photos"))
    monkeypatch.chdir(project / "nbs")
    assert project_root() == project / "photos"


def test_everything_that_takes_a_path_follows_the_rule(project, monkeypatch):
    "A notebook lies in nbs/workbook, and each of these is at the project's root."
    monkeypatch.setattr(builtins, "__IPYTHON__", True, raising=False)
    monkeypatch.delenv("SPFPN_ROOT", raising=False)
    monkeypatch.setenv("DATA_DIR", "data")
    (project / "mine.py").write_text("def dots(image):\n    return [[1.0, 2.0]]\n")
    (project / "broken.safetensors").write_bytes(b"nothing")
    for k in (1, 2):
        photographs(project / "frames" / str(k), 2)
    monkeypatch.chdir(project / "nbs" / "workbook")
    assert RunFolder.open("runs/a").path == project / "runs" / "a"
    assert data_dir() == project / "data"
    assert len(open_images("photos")) == 3
    assert len(open_sequences("warped:photos").sequences) == 2
    assert len(open_frames("frames").sequences) == 2
    assert DETECTORS.find("mine.py:dots").source == project / "mine.py"
    assert resolve_checkpoint("broken.safetensors") == project / "broken.safetensors"
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        checkpoint_metadata("broken.safetensors")
    assert Config().replace({"data.images": "photos"}).check().data.images == "photos"


def test_home_is_written_as_a_shell_does(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert user_path("~/photos") == tmp_path / "photos"
    assert user_path("~nobody-of-that-name/x").name == "x"
    assert resolve_checkpoint("~/a.safetensors") == tmp_path / "a.safetensors"


# ---- settings.ini


def test_a_settings_ini_here_adds_profiles_and_replaces_one_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = list_profiles()
    assert packaged == ["quick", "small", "paper", "tiny"]
    own = "[paths]\noutputs = results\n[mine]\nrun.seed = 4\n[tiny]\nphase1.epochs = 3\n"
    (tmp_path / "settings.ini").write_text(own)
    assert list_profiles() == [*packaged, "mine"]
    assert Config.load("mine").run.seed == 4
    assert Config.load("tiny") == Config().replace({"phase1.epochs": 3})
    assert Config.load("paper").data.height == 480


def test_the_folders_of_settings_ini_start_where_the_user_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert outputs_dir() == tmp_path / "outputs"
    (tmp_path / "settings.ini").write_text("[paths]\noutputs = results\ndata_dir = ~/data\n")
    monkeypatch.delenv("DATA_DIR", raising=False)
    assert outputs_dir() == tmp_path / "results" and data_dir() == Path.home() / "data"


def test_the_package_brings_its_settings():
    assert (Path(spfpn.__file__).parent / "settings.ini").is_file()
    assert checkout_dir() == ROOT


# ---- a wheel, used in another folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    "The folder of an unpacked wheel of this checkout."
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "checkout"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "spfpn", copy / "spfpn", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, copy], check=True)
    [built] = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def spfpn_here(wheel, tmp_path):
    "spfpn_here(*arguments): what a command of the wheel answers in an empty folder."
    environment = os.environ | dict(PYTHONPATH=str(wheel), OMP_NUM_THREADS="1")
    environment.pop("DATA_DIR", None)

    def call(*arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "spfpn", *map(str, arguments)]
        options = dict(cwd=tmp_path, env=environment, capture_output=True, text=True)
        done = subprocess.run(command, **options)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    return call


TINY = [
    word
    for key in ("data.images=photos", "train.views_per_epoch=1", "labels.matcher=mnn")
    for word in ("-p", key)
]


def test_a_wheel_works_in_another_folder(spfpn_here, tmp_path):
    photographs(tmp_path / "photos", 6)
    assert "data.limit" in spfpn_here("config", "--profile", "tiny")
    for command in ("label", "train phase1", "train phase2"):
        spfpn_here(*command.split(), "--profile", "tiny", *TINY)
    run = RunFolder(tmp_path / "outputs" / "tiny")
    assert run.labels.is_dir() and len(run.checkpoints()) == 2
    student = "outputs/tiny/phase2/best.safetensors"
    measured = ("--protocol", "R1", "--sequences", "warped:photos", "--limit", "1")
    spfpn_here("evaluate", "--detector", student, "--detector", "harris", *measured)
    assert (tmp_path / "outputs" / "metrics.parquet").is_file()
    assert "tiny/phase2/best − harris" in spfpn_here("compare", "tiny/phase2/best", "harris")
    spfpn_here("detect", "photos", "--detector", student, "--csv", "--out", "found")
    assert (tmp_path / "found" / "keypoints.csv").is_file()
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"photos", "outputs", "found"}, "nothing lies elsewhere"


def test_a_wheel_has_no_notebooks_and_says_so(spfpn_here):
    assert "clone the repository" in spfpn_here("run", "--profile", "tiny", code=1)
    assert "clone the repository" in spfpn_here("explore", code=2)
