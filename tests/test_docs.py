"The book has every notebook, and shows it without what is for nbdev alone."

import sys
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docs"))
book = pytest.importorskip("book", reason="needs the extra docs")


def test_every_notebook_is_in_the_order_once():
    listed = [n for names in book.read_order(book.ORDER.read_text()).values() for n in names]
    assert sorted(listed) == sorted(set(listed)), "a chapter is listed twice"
    assert set(book.notebooks()) <= set(listed), "add the new notebooks to docs/order.txt"


def test_chapters_without_a_file_are_left_out_and_new_ones_join_their_folder(monkeypatch):
    monkeypatch.setattr(book, "notebooks", lambda: ["data/images", "data/video", "train/loop"])
    parts = book.read_order(
        "# comment\nData\n  data/images\n\nTraining\n  train/gone\n  train/loop\n"
    )
    placed, warnings = book.place_chapters(parts)
    assert placed == {"Data": ["data/images", "data/video"], "Training": ["train/loop"]}
    assert warnings == [
        "train/gone: no such file",
        "data/video: not in order.txt, appended to Data",
    ]


def test_readers_see_no_directives_and_no_hidden_cells():
    code, text = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    sources = ["#| default_exp data.images", "#| export\nx = 1", "#| hide\ny = 2"]
    cells = [*map(code, sources), code("#| echo: false\nz"), text("[Start](../index.ipynb)")]
    shown = book.for_readers(nbformat.v4.new_notebook(cells=cells)).cells
    assert [cell.source for cell in shown] == ["x = 1", "z", "[Start](/index.md)"]
    assert shown[1].metadata.tags == ["remove-input"]


def test_imports_are_folded_and_the_idea_is_not():
    cells = [
        nbformat.v4.new_code_cell(f"#| export\n{c}")
        for c in ("import a\nfrom b import c", "import a\na()")
    ]
    shown = book.for_readers(nbformat.v4.new_notebook(cells=cells)).cells
    assert [cell.metadata.get("tags") for cell in shown] == [["hide-input"], None]


def test_a_chapter_tells_its_reading_time_and_what_its_pictures_show():
    code, text = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    story = "## Night\n\nIt is dark. [Rings](a.ipynb) mark `keypoints`:\n\n| a |\n|---|\n| 1 |"
    cells = [
        text("# Title\n\n> What it is"),
        text(story),
        code("show()"),
        text("### Next"),
        code("x"),
    ]
    shown = book.for_readers(nbformat.v4.new_notebook(cells=[*cells, text("word " * 580)])).cells
    assert shown[0].source.endswith("*3 min to read*")
    assert shown[2].metadata["mystnb"]["image"]["alt"] == "Rings mark keypoints"
    assert shown[4].metadata["mystnb"]["image"]["alt"] == "Rings mark keypoints"


def test_loads_from_a_network_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "HTML", tmp_path)
    (tmp_path / "good.html").write_text('<a href="https://a.org"></a><script src="a.js"></script>')
    assert book.network_loads() == []
    (tmp_path / "bad.html").write_text('<script async src="https://cdn.org/a.js"></script>')
    (tmp_path / "bad.css").write_text("@import '//fonts.org/a.css';")
    assert len(book.network_loads()) == 2
