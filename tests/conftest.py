"Notebooks that the tests write, and a place for what the library writes."
from pathlib import Path

import nbformat
import pytest


@pytest.fixture
def write_notebook():
    "write_notebook(path, parameters, *cells): a notebook whose first cell is tagged `parameters`."
    def write(path: Path, parameters: str, *cells: str, tag: str = "parameters"):
        cells = [nbformat.v4.new_code_cell(source) for source in (parameters, *cells)]
        cells[0].metadata["tags"] = [tag]
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return path
    return write


@pytest.fixture(autouse=True)
def outputs(tmp_path_factory, monkeypatch):
    "What a command leaves in outputs/ lies in a folder of the test's own."
    folder = tmp_path_factory.mktemp("outputs")
    monkeypatch.setattr("spfpn.settings.outputs_dir", lambda: folder)
    return folder
