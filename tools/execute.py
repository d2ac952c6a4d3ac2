"""Execute notebooks where they lie, and store the outputs that GitHub can show.

`python tools/execute.py nbs/data/images.ipynb nbs/show/widgets.ipynb`. Of a picture that comes as
PNG and as JPEG the smaller one is kept. Widgets, plotly's figures and what goes to stderr are not
stored. An error in a cell leaves the file as it was.
"""

import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

LARGEST = 200_000  # bytes of a figure, as tests/test_notebooks.py has it
HIDDEN = ("widget", "plotly", "javascript")  # kinds of output that GitHub does not show


def storable(outputs: list) -> list:
    "Return the outputs of a cell that can be read without its kernel."
    kept = []
    for output in outputs:
        data = output.get("data", {})
        pictures = [kind for kind in ("image/png", "image/jpeg") if kind in data]
        hidden = any(word in kind for kind in data for word in HIDDEN)
        if output.get("name") == "stderr" or (hidden and not pictures):
            continue
        if hidden:  # a figure with a picture beside it
            output["data"] = data = {kind: data[kind] for kind in pictures}
        for kind in sorted(pictures, key=lambda kind: len(data[kind]))[1:]:
            del data[kind]
        kept.append(output)
    return kept


def warn_of_large(path: Path, number: int, outputs: list):
    "Name each stored picture that is larger than `LARGEST`."
    for output in outputs:
        for kind, text in output.get("data", {}).items():
            size = len(text) * 3 // 4  # bytes behind base64
            if kind.startswith("image/") and size > LARGEST:
                found, limit = size // 1000, LARGEST // 1000
                print(f"{path}, cell {number}: {kind} of {found} kB, over {limit}", file=sys.stderr)


def execute(path: Path):
    "Execute a notebook in its own folder and write it with its outputs."
    notebook = nbformat.read(path, 4)
    NotebookClient(
        notebook,
        timeout=3000,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False,
        coalesce_streams=True,
    ).execute()
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            cell.outputs = storable(cell.outputs)
            warn_of_large(path, number, cell.outputs)
    nbformat.write(notebook, path)
    clean = Path(sys.executable).with_name("nbdev-clean")
    subprocess.run([clean, "--fname", path], check=True)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        execute(Path(argument))
