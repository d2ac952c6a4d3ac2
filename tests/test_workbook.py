"""The runner: done, changed, interrupted, failed, locked.

What is decided is tested on toy notebooks that count their own executions, run in this process; what papermill does, with real kernels."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import nbformat
import papermill
import pytest

from spfpn.apps.workbook import (
    WorkbookError,
    notebook_parameters,
    read_run,
    record,
    run_folder,
    run_info,
    run_workbook,
    workbook_notebooks,
)
from spfpn.core.files import FolderError, folder_lock, project_root
from spfpn.core.settings import Settings, SettingsError
from spfpn.labels import labeling, pairs
from spfpn.train import augment, phases, tasks

COUNT = """from pathlib import Path
folder = Path(out)/"{made}"
folder.mkdir(exist_ok=True)
log = folder/"log.txt"
log.write_text((log.read_text() if log.exists() else "") + "{step}\\n")"""


def execute_here(notebook, copy, parameters):
    "A stand-in for papermill: the notebook's cells in this process, the parameters after the first."
    first, *rest = [
        cell.source for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"
    ]
    names = {}
    exec(first, names)
    names.update(parameters)
    for source in rest:
        exec(source, names)
    copy.write_text("executed")


@pytest.fixture
def toy(tmp_path, write_notebook, monkeypatch):
    "A workbook of three steps, each reading a setting of its own; run(**settings) executes it and returns the run's folder."
    monkeypatch.setattr("spfpn.apps.workbook._execute", execute_here)
    folder = tmp_path / "nbs"
    for step, made, parameters in (
        ("01_label", "labels", "seed = 0"),
        ("02_phase1", "phase1", "batch = 4"),
        ("03_phase2", "phase2", "phase2_epochs = 1"),
    ):
        write_notebook(
            folder / f"{step}.ipynb", f'out = ""\n{parameters}', COUNT.format(made=made, step=step)
        )

    def run(**settings):
        return run_workbook(Settings(**settings), "toy", notebooks=folder, outputs=tmp_path)

    run.folder = folder
    return run


def times(out: Path, made: str) -> int:
    return len((out / made / "log.txt").read_text().split())


def finished(out: Path) -> dict:
    return {step: entry["finished"] for step, entry in read_run(out)["notebooks"].items()}


def test_a_second_run_does_nothing(toy):
    out = toy()
    before = (out / "run.json").read_bytes()
    assert toy() == out
    assert (out / "run.json").read_bytes() == before
    assert [times(out, made) for made in ("labels", "phase1", "phase2")] == [1, 1, 1]


def test_what_follows_a_change_runs_again_and_the_old_is_set_aside(toy):
    out = toy()
    (out / "own").mkdir()  # phase 2's own labels, by the student that changes
    toy(batch=8)
    assert times(out, "labels") == 1
    assert (out / "previous" / "own").is_dir() and not (out / "own").exists()
    assert times(out, "phase1") == 1 and times(out, "previous/phase1") == 1, (
        "started over, the old results kept apart"
    )
    assert times(out, "previous/phase2") == 1, (
        "its own parameters are the same, but not what it reads"
    )


def test_a_setting_that_no_notebook_reads_changes_nothing(toy):
    done = finished(toy())
    assert finished(toy(phase1_lr=1.0)) == done


def test_changed_code_counts_and_changed_prose_does_not(toy, write_notebook):
    done = finished(toy())
    path = toy.folder / "03_phase2.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell("# Better explained"))
    nbformat.write(notebook, path)
    assert finished(toy()) == done
    notebook.cells[-1].source += "\n1 + 1"
    nbformat.write(notebook, path)
    out = toy()
    assert times(out, "phase2") == times(out, "previous/phase2") == times(out, "labels") == 1


def test_an_interrupted_step_goes_on_with_what_it_has(toy):
    out = toy()
    record(
        out,
        "notebooks",
        **{"02_phase1": {**read_run(out)["notebooks"]["02_phase1"], "finished": None}},
    )  # as a kill leaves it
    toy()
    assert times(out, "phase1") == 2, "the folder was kept for the step to resume"
    assert times(out, "labels") == times(out, "phase2") == 1


def test_a_change_that_was_interrupted_is_not_forgotten(toy, write_notebook):
    out = toy()
    good = (toy.folder / "02_phase1.ipynb").read_text()
    write_notebook(
        toy.folder / "02_phase1.ipynb", 'out = ""\nbatch = 4', "raise KeyError('half way')"
    )
    with pytest.raises(KeyError):
        toy(seed=1)
    (toy.folder / "02_phase1.ipynb").write_text(good)
    toy(seed=1)
    assert times(out, "labels") == 1, "finished before the failure, not run again"
    assert times(out, "phase1") == times(out, "phase2") == 1, (
        "both were made from the old labels and had to run again"
    )


def test_a_lost_copy_is_made_again(toy):
    out = toy()
    (out / "01_label.ipynb").unlink()
    toy()
    assert (out / "01_label.ipynb").is_file() and times(out, "phase1") == 1


def test_a_failure_names_cell_source_error_and_copy(tmp_path, write_notebook):
    write_notebook(tmp_path / "nbs" / "01_label.ipynb", 'out = ""', "fine = 1", "broken = 1 / 0")
    with pytest.raises(WorkbookError) as caught:
        run_workbook(Settings(), "toy", notebooks=tmp_path / "nbs", outputs=tmp_path)
    message = str(caught.value)
    for part in (
        "01_label.ipynb failed in cell 3",
        "broken = 1 / 0",
        "ZeroDivisionError: division by zero",
        str(tmp_path / "toy" / "01_label.ipynb"),
    ):
        assert part in message
    assert "Traceback" not in message and len(message.splitlines()) < 6
    assert read_run(tmp_path / "toy")["notebooks"]["01_label"]["finished"] is None


def test_a_dead_kernel_is_named(tmp_path, write_notebook):
    write_notebook(tmp_path / "nbs" / "01_label.ipynb", 'out = ""', "import os; os._exit(9)")
    with pytest.raises(WorkbookError, match="kernel died"):
        run_workbook(Settings(), "toy", notebooks=tmp_path / "nbs", outputs=tmp_path)


def test_values_stay_values(tmp_path, write_notebook):
    nasty = 'x"\nimport os; os.abort()\n"""\\'
    write_notebook(
        tmp_path / "nbs" / "01_label.ipynb",
        'out = ""\nimages = ""',
        "from pathlib import Path; Path(out, 'seen.txt').write_text(repr(images))",
    )
    out = run_workbook(Settings(images=nasty), "toy", notebooks=tmp_path / "nbs", outputs=tmp_path)
    assert (out / "seen.txt").read_text() == repr(nasty)


def test_a_folder_with_braces(tmp_path, write_notebook):
    folder = tmp_path / "{a} b"
    write_notebook(folder / "nbs" / "01_label.ipynb", 'out = ""', "out")
    assert (
        run_workbook(Settings(), "toy", notebooks=folder / "nbs", outputs=folder) / "01_label.ipynb"
    ).is_file()


def test_a_second_run_on_the_same_folder_is_refused(toy, tmp_path):
    with folder_lock(tmp_path / "toy"):
        with pytest.raises(FolderError, match="another run"):
            toy()


@pytest.mark.parametrize("name", ["../escape", "", "a/b", ".hidden", "a b"])
def test_a_name_that_is_no_folder_name(name):
    with pytest.raises(SettingsError):
        run_folder(name)


def test_parameters_may_be_set_in_any_way(tmp_path, write_notebook):
    path = write_notebook(
        tmp_path / "01_label.ipynb",
        'out = ""\nheight, width = 120, 160   # small\nlimit: int = 3\nother = 1',
    )
    assert notebook_parameters(path, Settings(height=48)) == {
        "height": 48,
        "width": 320,
        "limit": 0,
    }


def test_no_checkout(tmp_path):
    with pytest.raises(WorkbookError, match="clone the repository"):
        workbook_notebooks(tmp_path)


def test_a_lost_tag_is_named(tmp_path, write_notebook):
    path = write_notebook(tmp_path / "01_label.ipynb", 'out = ""\nseed = 0', tag="other")
    with pytest.raises(WorkbookError, match="no cell tagged `parameters`"):
        notebook_parameters(path)


def test_facts_written_at_the_same_time_are_all_kept(tmp_path):
    def add(i):
        for k in range(5):
            record(tmp_path, f"step{i}", **{f"fact{k}": k})

    with ThreadPoolExecutor() as pool:
        list(pool.map(add, range(4)))
    assert read_run(tmp_path) == {f"step{i}": {f"fact{k}": k for k in range(5)} for i in range(4)}


def test_run_info_is_json():
    info = json.loads(json.dumps(run_info(Settings(seed=5))))
    assert (
        info["seed"] == 5
        and info["versions"]["torch"]
        and info["device"] in ("cpu", "cuda:0", "mps:0")
    )


def read_in(code: str) -> set[str]:
    "The settings that code asks for."
    return set(re.findall(r"\b(?:settings|s)\.(\w+)", code)) & {f.name for f in fields(Settings)}


def read_by(*modules) -> set[str]:
    return set().union(*(read_in(Path(module.__file__).read_text()) for module in modules))


def test_every_setting_reaches_the_steps_that_read_it():
    taken = {n.stem: set(notebook_parameters(n)) for n in workbook_notebooks()}
    assert list(taken) == ["01_label", "02_phase1", "03_phase2", "04_evaluate", "05_report"]
    assert set().union(*taken.values()) == {f.name for f in fields(Settings)}
    for notebook in workbook_notebooks():
        assert (
            read_in(
                "".join(
                    cell.source
                    for cell in nbformat.read(notebook, 4).cells
                    if cell.cell_type == "code"
                )
            )
            <= taken[notebook.stem]
        ), notebook
    second = {
        "consistency_weight",
        "supervised_weight",
        "pairs_per_image",
        "scales",
        "views",
        *(name for name in read_by(phases, tasks, augment) if name.startswith("phase2")),
    }
    assert read_by(labeling, pairs) - taken["01_label"] == set()
    assert read_by(phases, tasks, augment) - taken["02_phase1"] == second
    assert read_by(phases, tasks, augment) - taken["03_phase2"] == {
        "phase1_epochs",
        "phase1_lr",
        "phase1_start",
        "pretrained",
    }  # of phase 1 alone


def test_it_goes_without_pairs_to_a_phase_2_on_its_own_labels(tmp_path):
    def execute(step, **parameters):
        papermill.execute_notebook(
            str(project_root() / "nbs" / "workbook" / f"{step}.ipynb"),
            str(tmp_path / f"{step}.ipynb"),
            dict(limit=3, height=64, width=96, **parameters),
            kernel_name="python3",
            language="python",
            progress_bar=False,
        )

    execute("01_label", out=str(tmp_path / "out"), pairs_per_image=0)
    assert [path.name for path in sorted((tmp_path / "out").iterdir()) if path.is_dir()] == [
        "labels"
    ]
    execute(
        "03_phase2", phase2_loss="own", views=2, batch=4, shapes=0.5
    )  # with a phase 1 of its own


def test_new_photographs_are_added_and_what_follows_is_made_again(toy, tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "photos" / name).touch()
        out = toy(images=str(tmp_path / "photos"))
    assert times(out, "labels") == 2, "in the same folder: it adds what is missing"
    assert times(out, "phase1") == times(out, "previous/phase1") == 1
    before = finished(out)
    assert finished(toy(images=str(tmp_path / "photos"))) == before
