"Runs: what is found, what is missing, what is written down, and what a changed step sets aside."

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import spfpn
from spfpn.core import runs
from spfpn.core.distributed import torch_threads
from spfpn.core.files import FolderError, atomic_write
from spfpn.core.runs import (
    PACKAGES,
    RunError,
    RunFolder,
    checkpoint_name,
    code_digest,
    collect_provenance,
    default_cache,
    find_checkpoint,
    newest_checkpoint,
)


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    "The folder of all runs, a test's own."
    folder = tmp_path / "outputs"
    monkeypatch.setattr(runs, "outputs_dir", lambda: folder)
    return folder


def write(path: Path, seconds: int = 0) -> Path:
    "A file at `path` that was written so many seconds after the first one."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    for changed in (path, path.parent):
        os.utime(changed, (10**9 + seconds, 10**9 + seconds))
    return path


# ---- finding runs


def test_a_name_is_a_folder_of_outputs_and_a_path_is_itself(outputs, tmp_path):
    assert RunFolder.open("quick-2.b").path == outputs / "quick-2.b"
    assert RunFolder.open("elsewhere/quick").path == Path.cwd() / "elsewhere" / "quick"
    assert RunFolder.open(str(tmp_path)).path == RunFolder.open(tmp_path).path == tmp_path
    assert RunFolder.open(RunFolder(tmp_path)).path == tmp_path
    assert RunFolder.open("~/quick").path == Path.home() / "quick"
    assert not outputs.exists(), "a mistyped name makes no folder"


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a b", "a\n"])
def test_a_text_that_is_neither_is_refused(name):
    with pytest.raises(RunError, match="it becomes a folder of outputs/"):
        RunFolder.open(name)


def test_all_runs_the_newest_first(outputs):
    assert RunFolder.all() == []
    write(RunFolder.open("trained").phase(1).log, 30)
    write(RunFolder.open("labeled").labels / "part-00000.parquet", 20)
    write(RunFolder.open("begun").facts, 40)
    write(default_cache() / "a.safetensors", 90)
    (outputs / "empty").mkdir()
    assert [run.path.name for run in RunFolder.all()] == ["begun", "trained", "labeled"]


def test_the_newest_student_is_of_the_latest_phase(outputs):
    with pytest.raises(RunError, match=r"no student in .*outputs yet: `spfpn run` trains one"):
        newest_checkpoint()
    write(RunFolder.open("a").phase(1).best, 50)
    assert newest_checkpoint() == outputs / "a" / "phase1" / "best.safetensors"
    old, new = (write(RunFolder.open(name).phase(2).best, s) for name, s in (("b", 10), ("c", 20)))
    write(RunFolder.open("d").phase(2).last, 90)
    assert newest_checkpoint() == new, "a phase 2 counts before any phase 1"
    os.utime(old, (2 * 10**9, 2 * 10**9))
    assert newest_checkpoint() == old


def test_a_table_names_a_student_and_the_name_finds_it():
    best = write(RunFolder.open("v1.5").phase(2).best)
    assert checkpoint_name(best) == "v1.5/phase2/best"
    assert find_checkpoint("v1.5/phase2/best") == best
    assert find_checkpoint("harris") is None and find_checkpoint("v1.5/phase1/best") is None


# ---- what is missing


def test_what_is_missing_names_the_command_that_makes_it(outputs, tmp_path):
    run = RunFolder.open("quick")
    for targets, message in (
        (None, f"no labels in {outputs / 'quick'}: run `spfpn label --run quick`"),
        (
            "matched_pairs",
            "no pairs in .*`spfpn label -p phase2.targets=matched_pairs --run quick`",
        ),
        ("pseudo_labels", "no pseudo-labels in .*: run `spfpn train phase2 --run quick`"),
    ):
        with pytest.raises(RunError, match=message):
            run.training_store(targets)
    with pytest.raises(RunError, match=r"no student in .*: run `spfpn train phase1 --run quick`"):
        run.student  # noqa: B018
    run.labels.mkdir(parents=True)
    write(run.labels / "skipped.json")
    with pytest.raises(RunError, match="no labels in"):
        run.training_store()
    with pytest.raises(RunError, match=f"--run {tmp_path / 'mine'}`"):
        RunFolder(tmp_path / "mine").training_store()


def test_stores_and_students_that_are_there():
    run = RunFolder.open("quick")
    write(run.pairs / "part-00000.parquet")
    assert run.training_store("matched_pairs") == run.pairs
    first = write(run.phase(1).best)
    assert run.student == first
    write(run.phase(2).last)
    assert run.student == first, "phase 2 has no best checkpoint yet"
    second = write(run.phase(2).best)
    assert run.student == second and run.checkpoints() == [first, second]


def test_pseudo_labels_of_an_older_run_are_read_and_added_to():
    run = RunFolder.open("old")
    assert run.pseudo_labels.name == "pseudo_labels"
    write(run.path / "own" / "part-00000.parquet")
    assert run.training_store("pseudo_labels") == run.path / "own"
    run.set_aside("03_phase2")
    assert run.pseudo_labels.name == "pseudo_labels", "new ones have the new name"
    assert (run.path / "previous" / "own" / "part-00000.parquet").is_file()


# ---- what is written down


def test_facts_written_at_the_same_time_are_all_kept():
    def add(i: int):
        for k in range(5):
            RunFolder.open("quick").record(f"step{i}", **{f"fact{k}": k})

    with ThreadPoolExecutor() as pool:
        list(pool.map(add, range(4)))
    facts = {f"fact{k}": k for k in range(5)}
    assert RunFolder.open("quick").read() == {f"step{i}": facts for i in range(4)}


def test_tensors_and_paths_are_written_down():
    run = RunFolder.open("quick")
    run.record("evaluate", means=torch.tensor([1.5, 2.5]), file=Path("a.png"))
    assert run.read() == {"evaluate": {"means": [1.5, 2.5], "file": "a.png"}}


@pytest.mark.parametrize("text", ['{"run": {', "[1]", "null", '"run"'])
def test_a_damaged_run_json_is_named_and_kept(text):
    run = RunFolder.open("quick")
    write(run.facts).write_text(text)
    with pytest.raises(RunError, match=r"run.json: not the facts of a run .* Delete it"):
        run.record("label", images=1)
    assert run.facts.read_text() == text


def test_one_writer_at_a_time():
    run = RunFolder.open("quick")
    with run.lock(), pytest.raises(FolderError, match="another run is writing there"), run.lock():
        pass
    with run.lock():
        pass


# ---- steps


def begun(fingerprint: str = "a", **facts) -> RunFolder:
    "A run whose phase 1 has begun and left a state."
    run = RunFolder.open("quick")
    run.start("02_phase1", fingerprint, **facts)
    write(run.phase(1).state)
    write(run.notebook("02_phase1"))
    return run


def test_a_step_is_done_once_it_is_finished_with_the_same_facts_and_copy():
    run = begun(photographs="p", parameters=dict(lr=1e-3))
    assert not run.is_done("02_phase1", "a", photographs="p"), "it was interrupted"
    run.finish("02_phase1", 12.34)
    assert run.is_done("02_phase1", "a", photographs="p")
    assert not run.is_done("02_phase1", "b", photographs="p")
    assert not run.is_done("02_phase1", "a", photographs="q")
    assert not run.is_done("03_phase2", "a")
    entry = run.step("02_phase1")
    facts = ["fingerprint", "photographs", "parameters", "started", "finished", "seconds"]
    assert list(entry) == facts
    assert entry["parameters"] == dict(lr=1e-3) and entry["seconds"] == 12.3
    run.notebook("02_phase1").unlink()
    assert not run.is_done("02_phase1", "a", photographs="p"), "a lost copy is made again"


def test_an_interrupted_step_keeps_what_it_has_and_a_changed_one_sets_it_aside():
    run = begun("a")
    run.start("02_phase1", "a")
    assert run.phase(1).state.is_file()
    for fingerprint in ("b", "c"):
        run.phase(1).state.write_text(f"before {fingerprint}")
        run.start("02_phase1", fingerprint)
        assert not run.phase(1).path.exists() and not run.notebook("02_phase1").exists()
        previous = run.path / "previous" / "phase1" / "state.pt"
        assert previous.read_text() == f"before {fingerprint}", "one generation is kept"
        write(run.phase(1).state)
        write(run.notebook("02_phase1"))
    assert run.step("02_phase1")["finished"] is None


# ---- provenance


def test_provenance_is_json_and_the_same_twice():
    config = SimpleNamespace(
        run=SimpleNamespace(device="cpu", seed=5), flat=lambda: {"run.seed": 5, "phase1.lr": 1e-3}
    )
    facts = RunFolder.provenance(config)
    assert json.loads(json.dumps(facts)) == facts == RunFolder.provenance(config)
    assert facts["settings"]["phase1.lr"] == 1e-3
    assert (facts["seed"], facts["device"]) == (5, "cpu")
    assert set(facts["versions"]) == set(PACKAGES) and facts["versions"]["torch"]
    assert facts["threads"] == torch.get_num_threads() and facts["processor"]
    assert collect_provenance("cpu", 0, ("torch",))["versions"] == dict(
        torch=facts["versions"]["torch"]
    )


def test_code_that_finds_keypoints_has_another_digest_when_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(spfpn, "__file__", str(tmp_path / "spfpn" / "__init__.py"))

    def digest(name: str) -> str:
        write(tmp_path / "spfpn" / name).write_text(f"# {name}")
        code_digest.cache_clear()
        return code_digest()

    first = digest("features/superpoint.py")
    assert digest("matching/deep/inside.py") != first
    assert digest("show/figures.py") == digest("features/notes.txt"), "it draws, and finds nothing"
    code_digest.cache_clear()


# ---- without PyTorch, and with its threads


def test_core_loads_and_works_without_pytorch(tmp_path):
    code = """
import sys
sys.modules["torch"] = None  # as where it is not installed
from spfpn.core.distributed import broadcast, get_rank
from spfpn.core.files import content_digest
from spfpn.core.runs import RunFolder
run = RunFolder(sys.argv[1])
with run.lock():
    run.record("label", digest=content_digest("a"), rank=get_rank(), told=broadcast(lambda: 1))
"""
    environment = os.environ | dict(PYTHONPATH=str(Path(spfpn.__file__).parents[1]))
    subprocess.run([sys.executable, "-c", code, tmp_path / "run"], check=True, env=environment)
    facts = dict(digest="ca978112ca1bbdca", rank=0, told=1)
    assert RunFolder(tmp_path / "run").read() == {"label": facts}


def test_threads_that_share_a_file_each_write_a_draft_of_their_own(tmp_path):
    together = threading.Barrier(8)

    def add(text: str):
        with atomic_write(tmp_path / "a.txt", shared=True) as draft:
            draft.write_text(text * 9)
            together.wait()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, "abcdefgh"))
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() in [c * 9 for c in "abcdefgh"]


def test_overlapping_blocks_leave_pytorch_its_threads():
    first_in, second_in, first_out = (threading.Event() for _ in range(3))

    def first() -> int:
        with torch_threads(1):
            first_in.set()
            assert second_in.wait(60)
        first_out.set()
        return torch.get_num_threads()

    def second() -> int:
        assert first_in.wait(60)
        with torch_threads(1):
            second_in.set()
            assert first_out.wait(60)
        return torch.get_num_threads()

    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with ThreadPoolExecutor(3) as pool:
            pair = [pool.submit(first), pool.submit(second)]
            assert [thread.result() for thread in pair] == [3, 3]
            assert pool.submit(torch.get_num_threads).result() == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(usual)
