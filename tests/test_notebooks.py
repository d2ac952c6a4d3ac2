"The notebooks as chapters of a book: what a reader finds on GitHub, without running anything."

import base64
import re
from pathlib import Path

import nbformat
import pytest

NBS = Path(__file__).resolve().parents[1] / "nbs"
NOTEBOOKS = {
    p.relative_to(NBS).with_suffix("").as_posix(): nbformat.read(p, 4)
    for p in sorted(NBS.rglob("*.ipynb"))
    if ".ipynb_checkpoints" not in p.parts
}
LIBRARY = NBS.parent / "spfpn"
CHAPTERS = [n for n in NOTEBOOKS if "/" in n and (LIBRARY / n).with_suffix(".py").is_file()]
GUIDED = CHAPTERS + [name for name in NOTEBOOKS if name.startswith("tutorials/")]
LARGEST = 200_000  # bytes of a stored figure
FIGURES = ("image/png", "image/jpeg", "image/svg+xml")


def outputs(name):
    return [
        data
        for cell in NOTEBOOKS[name].cells
        for output in cell.get("outputs", [])
        if (data := output.get("data"))
    ]


def stored(name) -> list[int]:
    "The sizes in bytes of a notebook's figures: stored by its cells, and files in its text."
    sizes = [
        len(text.encode() if kind == "image/svg+xml" else base64.b64decode(text))
        for data in outputs(name)
        for kind, text in data.items()
        if kind in FIGURES
    ]
    return sizes + [
        (NBS / name).parent.joinpath(path).stat().st_size
        for path in re.findall(r"!\[[^\]]+\]\(([^):]+)\)", prose(name))
    ]


def prose(name):
    return "\n\n".join(
        cell.source for cell in NOTEBOOKS[name].cells if cell.cell_type == "markdown"
    )


def code(name):
    return "\n".join(cell.source for cell in NOTEBOOKS[name].cells if cell.cell_type == "code")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_title_and_what_it_is_about(name):
    assert re.match(r"# \S[^\n]*\n+> \S", prose(name))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_nothing_is_stored_that_github_cannot_show(name):
    assert "widgets" not in NOTEBOOKS[name].metadata
    for data in outputs(name):
        assert not [
            kind for kind in data if "plotly" in kind or "widget" in kind or "javascript" in kind
        ]
        assert "<script" not in "".join(data.get("text/html", ""))
    assert all(size <= LARGEST for size in stored(name))


def tables(name) -> bool:
    "Whether a cell has stored a table."
    return any("<table" in "".join(data.get("text/html", "")) for data in outputs(name))


def printed(name) -> bool:
    "Whether a cell has stored what a command prints, of three lines or more."
    cells = NOTEBOOKS[name].cells
    found = (output.get("text", "") for cell in cells for output in cell.get("outputs", []))
    return any("".join(text).count("\n") >= 3 for text in found)


def test_every_module_has_its_chapter():
    modules = (p.relative_to(LIBRARY).with_suffix("").as_posix() for p in LIBRARY.rglob("*/*.py"))
    named = {name for name in modules if not name.endswith("__init__")}
    assert named - set(NOTEBOOKS) == {"apps/benchmark"}, "nbs/research/benchmark exports that one"


@pytest.mark.parametrize("name", GUIDED)
def test_a_chapter_has_something_to_see_a_source_a_check_and_what_to_try(name):
    assert stored(name) or tables(name) or printed(name)
    assert re.search(r"\]\(https?://", prose(name))
    assert re.search(r"\bassert\b|\btest_\w+\(", code(name))
    assert re.search(r"^## (What to try next|And then)$", prose(name), re.M)


def test_readme_leads_to_every_chapter():
    assert "(nbs/README.md)" in (NBS.parent / "README.md").read_text(encoding="utf-8")
    chapters = (NBS / "README.md").read_text(encoding="utf-8")
    for name in NOTEBOOKS:
        assert name == "index" or f"({name}.ipynb)" in chapters


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_links_to_files_lead_somewhere(name):
    for path in re.findall(r"\]\((?!https?:|#|mailto:)([^)\s#]+)", prose(name)):
        assert (NBS / name).parent.joinpath(path).exists(), path
