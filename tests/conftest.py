"Notebooks that tests write, a folder for outputs, Chromium, and hypothesis' number of examples."

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from hypothesis import HealthCheck, settings

# the same hundred examples each time, or with `make test-all` a thousand new ones
common = dict(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.register_profile("quick", max_examples=100, derandomize=True, **common)
settings.register_profile("thorough", max_examples=1_000, print_blob=True, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def chromium():
    "The browser; a test that asks for it is skipped where there is none."
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install 'spfpn[dev]')"
    )
    if not CHROMIUM:
        pytest.skip("no Chromium on the path (apt-get install chromium, or name one by $CHROMIUM)")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


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
    for module in ("files", "runs"):
        monkeypatch.setattr(f"spfpn.core.{module}.outputs_dir", lambda: folder)
    return folder
