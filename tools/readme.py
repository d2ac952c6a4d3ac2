"""Write README.md from nbs/index.ipynb, the model cards from nbs/results/*.md, and their tables from the rows and times in nbs/results/: `python tools/readme.py` (nbdev-readme would need Quarto)."""

import posixpath
import re
from pathlib import Path

import nbformat
import pandas as pd
from nbconvert import MarkdownExporter

from spfpn.apps.benchmark import STAGES, benchmark_summary
from spfpn.evaluate.results import markdown_table, read_metrics

ROOT = Path(__file__).resolve().parents[1]
INDEX = ROOT / "nbs" / "index.ipynb"
PICTURES = "nbs/index_files"
TABLE = r"<!-- table: (\S+) (\S+) (\S+) (.*?) -->"
TIMES = r"<!-- times: (\S+) -->"
CARDS = ROOT / "spfpn" / "weights"
NOTE = "<!-- Made from nbs/{} by `make readme`: edit that. -->\n\n"


def shown(notebook):
    "The notebook without hidden cells and nbdev's directives; of a cell with `echo: false` what came out of it alone."
    notebook.cells = [
        c
        for c in notebook.cells
        if c.cell_type != "code" or not re.match(r"#\|\s*hide\b", c.source)
    ]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = (
                "" if "#| echo: false" in cell.source else re.sub(r"(?m)^#\|.*\n?", "", cell.source)
            )
    return notebook


def from_root(text):
    "Relative links, written as seen from nbs/, as seen from the root."

    def relink(match):
        return f"]({posixpath.normpath(posixpath.join('nbs', match[1]))})"

    return re.sub(r"\]\((?![a-z]+:|#|nbs/)([^)\s]+)\)", relink, text)


def with_tables(text):
    "`<!-- table: FILE PROTOCOL SET METRIC... -->` and `<!-- times: FILE -->`, FILE in nbs/, followed by the table of those rows."

    def table(match):
        return f"{match[0]}\n\n{markdown_table(read_metrics(INDEX.parent / match[1]), match[2], match[3], tuple(match[4].split()))}"

    def times(match):
        return f"{match[0]}\n\n{times_table(pd.read_parquet(INDEX.parent / match[1]))}"

    return re.sub(TIMES, times, re.sub(TABLE, table, text))


def times_table(times):
    "A benchmark as Markdown: medians in milliseconds, and the total as a share of the first row's in the same round."
    lines = [["", *STAGES, "total", "of the first row"], ["---"] * (len(STAGES) + 3)]
    lines += [
        [row["row"], *(f"{row[name]:.1f}" for name in (*STAGES, "total")), f"{row['ratio']:.2f}"]
        for row in benchmark_summary(times).to_dict("records")
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main():
    resources = {"unique_key": "index", "output_files_dir": PICTURES}
    text, resources = MarkdownExporter().from_notebook_node(
        shown(nbformat.read(INDEX, 4)), resources
    )
    text = re.sub(r"```\s*```\n", "", text)  # what is left of a cell without a source
    for name, data in resources["outputs"].items():
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_bytes(data)
    (ROOT / "README.md").write_text(
        NOTE.format("index.ipynb")
        + with_tables(from_root(re.sub(r"\n{3,}", "\n\n", text))).strip()
        + "\n",
        encoding="utf-8",
    )
    for card in (INDEX.parent / "results").glob("*.md"):
        (CARDS / card.name).write_text(
            NOTE.format(f"results/{card.name}")
            + with_tables(card.read_text(encoding="utf-8")).strip()
            + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
