"""The runner: done, changed, interrupted, failed, locked.

Decisions are tested on toy notebooks that count their executions and run in this process. What
papermill does is tested with real kernels."""

import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
from PIL import Image

from spfpn.apps.workbook import (
    _READS,
    WorkbookError,
    notebook_parameters,
    run_workbook,
    step_keys,
    workbook_notebooks,
)
from spfpn.core.config import Config, ConfigError
from spfpn.core.files import FolderError, folder_lock, project_root
from spfpn.core.runs import RunError, RunFolder
from spfpn.core.sections import KEYS
from spfpn.data.images import validation_ids
from spfpn.labels import descriptions, labeling, pairs
from spfpn.labels.store import LabelStore
from spfpn.models.spfpn import SPFPN, checkpoint_metadata, save_checkpoint
from spfpn.train import augment, description, phases, tasks

COUNT = """from pathlib import Path
folder = Path(run)/"{made}"
folder.mkdir(exist_ok=True)
log = folder/"log.txt"
log.write_text((log.read_text() if log.exists() else "") + "{step}\\n")"""


def execute_here(notebook, copy, parameters):
    "A stand-in for papermill: run the cells here, with the parameters after the first one."
    first, *rest = [
        cell.source for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"
    ]
    names = {}
    exec(first, names)
    names.update(parameters)
    for source in rest:
        exec(source, names)
    copy.write_text("executed")


CELL = 'profile = ""\nrun = ""\noverrides = {}\n'


@pytest.fixture
def toy(tmp_path, write_notebook, monkeypatch):
    "A workbook of three steps; run({key: value}) executes it and returns the run."
    monkeypatch.setattr("spfpn.apps.workbook._execute", execute_here)
    folder = tmp_path / "nbs"
    for step, made in (("01_label", "labels"), ("02_phase1", "phase1"), ("03_phase2", "phase2")):
        write_notebook(folder / f"{step}.ipynb", CELL, COUNT.format(made=made, step=step))

    def run(changes=()):
        config = Config().replace(dict(changes))
        return run_workbook(config, RunFolder(tmp_path / "toy"), notebooks=folder)

    run.folder = folder
    return run


def times(run: RunFolder, made: str) -> int:
    return len((run.path / made / "log.txt").read_text().split())


def finished(run: RunFolder) -> dict:
    return {step: entry["finished"] for step, entry in run.read()["notebooks"].items()}


def test_a_second_run_does_nothing(toy):
    run = toy()
    before = run.facts.read_bytes()
    assert toy().path == run.path
    assert run.facts.read_bytes() == before
    assert [times(run, made) for made in ("labels", "phase1", "phase2")] == [1, 1, 1]


def test_what_follows_a_change_runs_again_and_the_old_is_set_aside(toy):
    run = toy()
    for name in ("pseudo_labels", "own"):  # phase 2's own labels, by the student that changes
        (run.path / name).mkdir()
    toy({"train.batch_size": 8})
    assert times(run, "labels") == 1
    for name in ("pseudo_labels", "own"):
        assert (run.path / "previous" / name).is_dir() and not (run.path / name).exists()
    assert times(run, "phase1") == 1 and times(run, "previous/phase1") == 1, "started over"
    assert times(run, "previous/phase2") == 1, "its keys are the same, but not what it reads"


def test_a_key_that_no_notebook_reads_changes_nothing(toy):
    done = finished(toy())
    assert finished(toy({"evaluate.protocols": "R2", "run.workers": 0})) == done


def test_a_training_key_does_not_redo_the_labels(toy):
    run = toy()
    toy({"phase1.lr": 1.0})
    assert times(run, "labels") == 1 and times(run, "previous/phase1") == 1
    toy({"phase1.lr": 1.0, "phase2.lr": 1.0})
    assert times(run, "labels") == 1 and times(run, "phase1") == 1
    assert times(run, "previous/phase2") == 1


def test_changed_code_counts_and_changed_prose_does_not(toy, write_notebook):
    done = finished(toy())
    path = toy.folder / "03_phase2.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell("# Better explained"))
    nbformat.write(notebook, path)
    assert finished(toy()) == done
    notebook.cells[-1].source += "\n1 + 1"
    nbformat.write(notebook, path)
    run = toy()
    assert times(run, "phase2") == times(run, "previous/phase2") == times(run, "labels") == 1


def test_an_interrupted_step_goes_on_with_what_it_has(toy):
    run = toy()
    killed = {"02_phase1": {**run.step("02_phase1"), "finished": None}}  # as a kill leaves it
    run.record("notebooks", **killed)
    toy()
    assert times(run, "phase1") == 2, "the folder was kept for the step to resume"
    assert times(run, "labels") == times(run, "phase2") == 1


def test_a_change_that_was_interrupted_is_not_forgotten(toy, write_notebook):
    run = toy()
    good = (toy.folder / "02_phase1.ipynb").read_text()
    write_notebook(toy.folder / "02_phase1.ipynb", CELL, "raise KeyError('half way')")
    with pytest.raises(KeyError):
        toy({"run.seed": 1})
    (toy.folder / "02_phase1.ipynb").write_text(good)
    toy({"run.seed": 1})
    assert times(run, "labels") == 1, "finished before the failure, not run again"
    assert times(run, "phase1") == times(run, "phase2") == 1, (
        "both were made from the old labels and had to run again"
    )


def test_a_lost_copy_is_made_again(toy):
    run = toy()
    run.notebook("01_label").unlink()
    toy()
    assert run.notebook("01_label").is_file() and times(run, "phase1") == 1


def test_mistakes_are_found_before_any_work(toy):
    wrong = {"labels.teacher": "dsik", "evaluate.protocols": "R9", "data.images": "no/folder"}
    with pytest.raises(ConfigError) as caught:
        toy(wrong)
    assert len(str(caught.value).splitlines()) == 3
    assert not (toy.folder.parent / "toy").exists()


def test_a_failure_names_cell_source_error_and_copy(tmp_path, write_notebook):
    write_notebook(tmp_path / "nbs" / "01_label.ipynb", CELL, "fine = 1", "broken = 1 / 0")
    run = RunFolder(tmp_path / "toy")
    with pytest.raises(WorkbookError) as caught:
        run_workbook(Config(), run, notebooks=tmp_path / "nbs")
    message = str(caught.value)
    for part in (
        "01_label.ipynb failed in cell 3",
        "broken = 1 / 0",
        "ZeroDivisionError: division by zero",
        str(run.notebook("01_label")),
    ):
        assert part in message
    assert "Traceback" not in message and len(message.splitlines()) < 6
    assert run.step("01_label")["finished"] is None


def test_a_dead_kernel_is_named(tmp_path, write_notebook):
    write_notebook(tmp_path / "nbs" / "01_label.ipynb", CELL, "import os; os._exit(9)")
    with pytest.raises(WorkbookError, match="kernel died"):
        run_workbook(Config(), RunFolder(tmp_path / "toy"), notebooks=tmp_path / "nbs")


def test_values_stay_values(tmp_path, write_notebook):
    nasty = str(tmp_path / 'x"\nimport os; os.abort()\n"""\\')
    Path(nasty).mkdir()
    write_notebook(
        tmp_path / "nbs" / "01_label.ipynb",
        f"{CELL}images = 'mine'",
        "from pathlib import Path; Path(run, 'seen.txt').write_text(repr((images, overrides)))",
    )
    config, run = Config().replace({"data.images": nasty}), RunFolder(tmp_path / "toy")
    run_workbook(config, run, notebooks=tmp_path / "nbs")
    seen = (run.path / "seen.txt").read_text()
    assert seen == repr((None, {"data.images": nasty})), "the run's value, and not the notebook's"


def test_a_folder_with_braces(tmp_path, write_notebook):
    folder = tmp_path / "{a} b"
    write_notebook(folder / "nbs" / "01_label.ipynb", CELL, "run")
    run = run_workbook(Config(), RunFolder(folder / "toy"), notebooks=folder / "nbs")
    assert run.notebook("01_label").is_file()


def test_a_second_run_on_the_same_folder_is_refused(toy, tmp_path):
    with folder_lock(tmp_path / "toy"), pytest.raises(FolderError, match="another run"):
        toy()


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a b"])
def test_a_name_that_is_no_folder_name(name):
    with pytest.raises(RunError):
        RunFolder.open(name)


def test_parameters_may_be_set_in_any_way(tmp_path, write_notebook):
    cell = f"{CELL}height, width = 120, 160   # small\nlimit: int = 3\nother = 1"
    path = write_notebook(tmp_path / "01_label.ipynb", cell)
    assert notebook_parameters(path, Config().replace({"data.height": 48})) == {
        **{"profile": "", "overrides": {"data.height": 48}},
        **{"height": None, "width": None, "limit": None},
    }


def test_no_checkout(tmp_path):
    with pytest.raises(WorkbookError, match="clone the repository"):
        workbook_notebooks(tmp_path)


def test_a_lost_tag_is_named(tmp_path, write_notebook):
    path = write_notebook(tmp_path / "01_label.ipynb", CELL, tag="other")
    with pytest.raises(WorkbookError, match="no cell tagged `parameters`"):
        notebook_parameters(path)


def read_in(code: str) -> set[str]:
    "The keys that code asks a configuration for."
    code = re.sub(r"config\.data\.size\b", "config.data.height config.data.width", code)
    found = {f"{a}.{b}" for a, b in re.findall(r"\bconfig\.([a-z0-9]+)\.(\w+)", code)}
    # parts of a configuration that have a name of their own, such as `labels = config.labels`
    short = re.findall(r"\b(labels|model|phase1|phase2|phase3|augment|train|data|run)\.(\w+)", code)
    return (found | {f"{a}.{b}" for a, b in short}) & set(KEYS)


def read_by(*modules) -> set[str]:
    return set().union(*(read_in(Path(module.__file__).read_text()) for module in modules))


def test_every_key_reaches_the_steps_that_read_it():
    notebooks = workbook_notebooks()
    assert [path.stem for path in notebooks] == list(_READS)
    assert [path.stem for path in notebooks] == [
        *("01_label", "02_phase1", "03_phase2", "04_phase3", "05_evaluate", "06_report")
    ]
    assert set(step_keys("06_report")) == set(step_keys("07_mine")) == set(KEYS)
    for path in notebooks:
        notebook_parameters(path)
        cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
        assert read_in("".join(cells)) <= set(step_keys(path.stem)), path
    phase2, phase3, evaluation = (
        {key for key in KEYS if key.startswith(f"{section}.")}
        for section in ("phase2", "phase3", "evaluate")
    )
    assert read_by(labeling, pairs) - set(step_keys("01_label")) == set()
    assert read_by(phases, tasks, augment) - set(step_keys("02_phase1")) <= phase2 | phase3
    assert read_by(phases, tasks, augment) - set(step_keys("03_phase2")) <= phase3
    assert read_by(phases, description, descriptions) <= set(step_keys("04_phase3"))
    assert set(step_keys("03_phase2")) == set(KEYS) - evaluation - phase3
    assert set(step_keys("04_phase3")) == set(KEYS) - evaluation
    assert not {"phase1.lr", "train.batch_size", "data.val_fraction"} & set(step_keys("01_label"))


def test_a_notebook_declares_only_the_keys_of_its_step():
    sections = {
        "01_label": "labels",
        "02_phase1": "phase1",
        "03_phase2": "phase2",
        "04_phase3": "phase3",
    }
    for path in workbook_notebooks():
        own = {"data", "run", sections.get(path.stem, "evaluate")}
        for name in set(notebook_parameters(path)) - {"profile", "overrides"}:
            assert any(f"{section}.{name}" in KEYS for section in own), (path.stem, name)


def execute(step: str, folder: Path, **parameters):
    "A notebook of the workbook in a kernel of its own."
    small = {"limit": 3, "height": 64, "width": 96}
    papermill.execute_notebook(
        str(project_root() / "nbs" / "workbook" / f"{step}.ipynb"),
        str(folder / f"{step}.ipynb"),
        {**small, **parameters},
        kernel_name="python3",
        language="python",
        progress_bar=False,
    )


def test_it_goes_without_pairs_to_a_phase_2_on_its_own_labels(tmp_path):
    run, alone = RunFolder(tmp_path / "run"), {"phase2.targets": "pseudo_labels"}
    execute("01_label", tmp_path, run=str(run), overrides=alone)
    assert [path.name for path in sorted(run.path.iterdir()) if path.is_dir()] == ["labels"]
    execute("02_phase1", tmp_path, run=str(run), profile="tiny", lr=1e-3)
    assert checkpoint_metadata(run.phase(1).best)["settings"]["phase1.lr"] == 1e-3
    more = {"train.batch_size": 4, "augment.shapes_per_view": 0.5, "phase2.adaptation_views": 2}
    execute("03_phase2", tmp_path, targets="pseudo_labels", overrides=more)


def test_new_photographs_are_added_and_what_follows_is_made_again(toy, tmp_path):
    photographs = {"data.images": str(tmp_path / "photos")}
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    for name in ("b.png", "c.png"):
        (tmp_path / "photos" / name).touch()
        run = toy(photographs)
    assert times(run, "labels") == 2, "in the same folder: it adds what is missing"
    assert times(run, "phase1") == times(run, "previous/phase1") == 1
    before = finished(run)
    assert finished(toy(photographs)) == before


def test_one_photograph_is_refused_before_any_work(toy, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    with pytest.raises(WorkbookError, match=r"photos: one photograph .* needs two or more"):
        toy({"data.images": str(tmp_path / "photos")})
    assert not (tmp_path / "toy").exists()


def test_each_step_says_how_long_the_rest_takes(toy, capsys, monkeypatch):
    run = RunFolder(toy.folder.parent / "toy")
    run.record("expected", **{"01_label": 60, "02_phase1": 1200, "03_phase2": 6000})
    clock = iter(range(0, 10_000, 120))  # each step takes 120 seconds
    monkeypatch.setattr("spfpn.apps.workbook.time", SimpleNamespace(perf_counter=clock.__next__))
    toy()
    said = re.findall(r"\d/3 \w+  (.*)", capsys.readouterr().out)
    assert said == ["about 2.0 h left", "about 4.0 h left", "about 19 min left"]
    toy()
    assert re.findall(r"\d/3 \w+  (.*)", capsys.readouterr().out) == ["done earlier"] * 3


def photographs(folder: Path, count: int, size=(64, 48)) -> Path:
    "A folder of so many different photographs, and a file that is none."
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(count):
        blocks = generator.integers(0, 256, (size[1] // 4, size[0] // 4), np.uint8)
        Image.fromarray(blocks).resize(size, Image.NEAREST).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_photographs_of_ones_own_are_held_back_measured_and_shown(tmp_path):
    run, own = RunFolder(tmp_path / "run"), photographs(tmp_path / "own", 4)
    student, label = SPFPN(channels=8), dict(height=48, width=64, teacher="x", score=[1.0])
    save_checkpoint(student, run.phase(1).best)
    store, names = LabelStore(run.labels), [f"{i}.png" for i in range(4)]
    store.append([label | dict(id=name, x=[1.0], y=[1.0]) for name in names], {})
    shared = dict(
        run=str(run),
        profile="quick",
        overrides={"data.images": str(own), "data.val_fraction": 0.25},
    )
    shared["overrides"] |= {"data.height": 48, "data.width": 64, "phase1.init_from": "spfpn-s"}
    execute("05_evaluate", tmp_path, **shared, detectors="harris", protocols="R1", limit=0)
    held_back = validation_ids(names, 0.25)
    rows = pd.read_parquet(run.metrics)
    assert set(rows["set"]) == {"warped-own"}
    assert set(rows.sequence) == {f"{kind}_{name[0]}" for kind in "iv" for name in held_back}
    assert {"run/phase1/best", "spfpn-s", "harris", "random"} <= set(rows.detector)
    facts = run.read()["evaluate"]
    assert (facts["start"], facts["student"][-11:]) == ("spfpn-s", "phase1/best")
    shared["overrides"]["labels.teacher"] = "harris"
    execute("06_report", tmp_path, **shared, limit=0)
    page = run.report.read_text()
    assert all(f'alt="Photograph {name} with' in page for name in held_back)
    assert "camera.png" not in page
    title = "Too few photographs to tell"
    assert title in page and page.index(title) < page.index(">Results</h2>")
