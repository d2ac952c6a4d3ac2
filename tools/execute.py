"""Execute notebooks where they lie and store the outputs that GitHub can show: `python tools/execute.py nbs/16_widgets.ipynb nbs/tutorials/your_photographs.ipynb`.

Of a picture that comes as PNG and as JPEG the smaller one is kept; widgets, plotly's figures and what goes to stderr (progress bars, warnings) are not stored. An error in a cell leaves the file as it was."""

import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

LARGEST = 200_000  # bytes of a figure, as tests/test_notebooks.py has it


def shown(outputs: list) -> list:
    "The outputs of a cell that can be read without its kernel."
    kept = []
    for output in outputs:
        data = output.get("data", {})
        if output.get("name") == "stderr" or any(
            "widget" in kind or "plotly" in kind or "javascript" in kind for kind in data
        ):
            continue
        pictures = sorted(
            (kind for kind in data if kind in ("image/png", "image/jpeg")),
            key=lambda kind: len(data[kind]),
        )
        for kind in pictures[1:]:
            del data[kind]
        kept.append(output)
    return kept


def execute(path: Path):
    notebook = nbformat.read(path, 4)
    NotebookClient(
        notebook,
        timeout=3000,
        kernel_name="python3",
        resources=dict(metadata=dict(path=str(path.parent))),
        store_widget_state=False,
        coalesce_streams=True,
    ).execute()
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        cell.outputs = shown(cell.outputs)
        for output in cell.outputs:
            for kind, text in output.get("data", {}).items():
                if kind.startswith("image/") and len(text) * 3 / 4 > LARGEST:
                    print(
                        f"{path}, cell {number}: {kind} of {len(text) * 3 // 4000} kB, more than {LARGEST // 1000}",
                        file=sys.stderr,
                    )
    nbformat.write(notebook, path)
    subprocess.run([Path(sys.executable).with_name("nbdev-clean"), "--fname", path], check=True)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        execute(Path(argument))
