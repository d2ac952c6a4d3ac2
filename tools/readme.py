"""Write README.md from nbs/index.ipynb, the model cards from nbs/results/*.md, and their tables from the rows in nbs/results/: `python tools/readme.py` (nbdev-readme would need Quarto)."""
import posixpath
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

from spfpn.results import markdown_table, read_metrics

ROOT = Path(__file__).resolve().parents[1]
INDEX = ROOT/"nbs"/"index.ipynb"
PICTURES = "nbs/index_files"
TABLE = r"<!-- table: (\S+) (\S+) (\S+) (.*?) -->"
CARDS = ROOT/"spfpn"/"weights"
NOTE = "<!-- Made from nbs/{} by `make readme`: edit that. -->\n\n"


def shown(notebook):
    "The notebook without hidden cells and nbdev's directives."
    notebook.cells = [c for c in notebook.cells if c.cell_type != "code" or not re.match(r"#\|\s*hide\b", c.source)]
    for cell in notebook.cells:
        if cell.cell_type == "code": cell.source = re.sub(r"(?m)^#\|.*\n?", "", cell.source)
    return notebook


def from_root(text):
    "Relative links, written as seen from nbs/, as seen from the root."
    def relink(match): return f"]({posixpath.normpath(posixpath.join('nbs', match[1]))})"
    return re.sub(r"\]\((?![a-z]+:|#|nbs/)([^)\s]+)\)", relink, text)


def with_tables(text):
    "`<!-- table: FILE PROTOCOL SET METRIC... -->`, FILE in nbs/, followed by the table of those rows."
    def table(match): return f"{match[0]}\n\n{markdown_table(read_metrics(INDEX.parent/match[1]), match[2], match[3], tuple(match[4].split()))}"
    return re.sub(TABLE, table, text)


def main():
    resources = {"unique_key": "index", "output_files_dir": PICTURES}
    text, resources = MarkdownExporter().from_notebook_node(shown(nbformat.read(INDEX, 4)), resources)
    for name, data in resources["outputs"].items():
        (ROOT/name).parent.mkdir(exist_ok=True)
        (ROOT/name).write_bytes(data)
    (ROOT/"README.md").write_text(NOTE.format("index.ipynb") + with_tables(from_root(re.sub(r"\n{3,}", "\n\n", text))).strip() + "\n", encoding="utf-8")
    for card in (INDEX.parent/"results").glob("*.md"):
        (CARDS/card.name).write_text(NOTE.format(f"results/{card.name}") + with_tables(card.read_text(encoding="utf-8")).strip() + "\n", encoding="utf-8")


if __name__ == "__main__": main()
