"""Write README.md from nbs/index.ipynb, nbs/README.md from docs/order.txt, and the model cards.

`python tools/readme.py`. Comments in the text of nbs/index.ipynb and nbs/results/*.md mark where
tables from the rows in nbs/results/ go. (`nbdev-readme` would need Quarto.)
"""

import posixpath
import re
import sys
from pathlib import Path

import nbformat
import pandas as pd
from nbconvert import MarkdownExporter

from spfpn.apps.benchmark import STAGES, benchmark_summary
from spfpn.evaluate.results import markdown_table, read_metrics, summarize

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
CARDS = ROOT / "spfpn" / "weights"
NOTE = "<!-- Made from nbs/{} by `make readme`: edit that. -->\n\n"

sys.path.insert(0, str(ROOT / "docs"))
from book import ORDER, place_chapters, read_order  # noqa: E402


def for_readers(notebook):
    "Drop hidden cells and nbdev's directives; of a cell with `echo: false` keep the output alone."
    cells = [c for c in notebook.cells if not re.match(r"#\|\s*hide\b", c.source)]
    for cell in cells:
        if cell.cell_type == "code":
            quiet = "#| echo: false" in cell.source
            cell.source = "" if quiet else re.sub(r"(?m)^#\|.*\n?", "", cell.source)
    notebook.cells = cells
    return notebook


def from_root(text):
    "Turn relative links as seen from nbs/ into links as seen from the root."

    def relink(match):
        return f"]({posixpath.normpath(posixpath.join('nbs', match[1]))})"

    return re.sub(r"\]\((?![a-z]+:|#|nbs/)([^)\s]+)\)", relink, text)


def to_markdown(rows):
    "Return lists of cells as a Markdown table; the first list is its head."
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


# ---- what fills a comment ----


def metrics_table(file, protocol, name, *metrics):
    "Fill `<!-- table: FILE PROTOCOL SET METRIC... -->`."
    return markdown_table(read_metrics(NBS / file), protocol, name, metrics)


def times_table(file):
    "Fill `<!-- times: FILE -->`: medians in milliseconds, and ratios to the first row."
    rows = [["", *STAGES, "total", "of the first row"]]
    for row in benchmark_summary(pd.read_parquet(NBS / file)).to_dict("records"):
        times = [f"{row[name]:.1f}" for name in (*STAGES, "total")]
        rows.append([row["row"], *times, f"{row['ratio']:.2f}"])
    return to_markdown(rows)


def overview(metrics, models):
    "Fill `<!-- overview: METRICS MODELS -->`: quality and size of each detector."
    rows = read_metrics(NBS / metrics)
    quality = summarize(rows[rows.protocol == "R1"]).query("split == 'all'").set_index("detector")
    named = ["repeatability@3", "repeatability@1", "localization_error"]
    table = [["detector", "at 3 px", "at 1 px", "error, px", "parameters"]]
    known = pd.read_csv(NBS / models).query("detector in @quality.index")
    for model in known.sort_values("detector", key=quality_order(quality)).to_dict("records"):
        found = [f"{quality.loc[model['detector'], metric]:.3f}" for metric in named]
        size = f"{int(model['parameters']):,}" if model["parameters"] > 0 else "–"
        table.append([f"`{model['detector']}`", *found, size])
    return to_markdown(table)


MATCHING = {  # protocol, set and metrics of each column
    ("P1:own", "fountain-P11"): {"auc@5": "pose, fountain, AUC@5"},
    ("P1:own", "Herz-Jesus-P8"): {"auc@5": "pose, Herz-Jesus, AUC@5"},
    ("H2:own", "oxford-affine"): {"auc@3": "homography, AUC@3", "mma@3": "right matches, 3 px"},
}


def matching(metrics, times, models):
    "Fill `<!-- matching: METRICS TIMES MODELS -->`: how well each system's own descriptors match."
    total = benchmark_summary(pd.read_parquet(NBS / times)).set_index("row")["total"]
    whole = summarize(read_metrics(NBS / metrics)).query("split == 'all'")
    table, order = [], []
    for model in pd.read_csv(NBS / models).to_dict("records"):
        for matcher in ("", ":lightglue"):
            found = []
            for (protocol, name), columns in MATCHING.items():
                same = whole[(whole.protocol == protocol + matcher) & (whole["set"] == name)]
                row = same[same.detector == model["detector"]]
                found += [row[metric].item() if len(row) else None for metric in columns]
            if None not in found:
                size = f"{int(model['parameters']):,}" if model["parameters"] > 0 else "–"
                who = f"`{model['detector']}`{' + LightGlue' * bool(matcher)}"
                values = [f"{value:.3f}" for value in found]
                table.append([who, *values, size, f"{total[model['detector']]:.0f}"])
                order.append(-found[0])
    heads = [head for columns in MATCHING.values() for head in columns.values()]
    ranked = [row for _, row in sorted(zip(order, table))]
    return to_markdown([["system", *heads, "parameters", "ms"], *ranked])


def quality_order(quality):
    "Return a sort key that puts the best repeatability first."
    return lambda names: -names.map(quality["repeatability@3"])


def title_and_subject(path):
    "Return a chapter's first heading, and the quotation below it or nothing."
    if path.suffix == ".md":
        text = path.read_text(encoding="utf-8")
    else:
        cells = nbformat.read(path, 4).cells
        text = next(cell.source for cell in cells if cell.source.startswith("# "))
    title = re.search(r"(?m)^# (.+)", text)[1]
    subject = re.search(r"(?m)^> (.+)", text)
    return title, subject[1] if subject else ""


FILLERS = {
    "table": metrics_table,
    "times": times_table,
    "overview": overview,
    "matching": matching,
}


def fill(text):
    "Put behind each marked comment the table that it asks for."

    def filled(match):
        return f"{match[0]}\n\n{FILLERS[match[1]](*match[2].split())}"

    return re.sub(rf"<!-- ({'|'.join(FILLERS)}): (.*?) -->", filled, text)


def write_readme():
    "Write README.md and the pictures that its notebook has stored."
    resources = {"unique_key": "index", "output_files_dir": "nbs/index_files"}
    notebook = for_readers(nbformat.read(NBS / "index.ipynb", 4))
    text, resources = MarkdownExporter().from_notebook_node(notebook, resources)
    for name, data in resources["outputs"].items():
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_bytes(data)
    text = re.sub(r"```\s*```\n", "", text)  # what is left of a cell without a source
    text = fill(from_root(re.sub(r"\n{3,}", "\n\n", text))).strip()
    (ROOT / "README.md").write_text(NOTE.format("index.ipynb") + text + "\n", encoding="utf-8")


def write_chapters():
    "Write nbs/README.md: the parts of docs/order.txt with their chapters."
    parts, _ = place_chapters(read_order(ORDER.read_text(encoding="utf-8")))
    text = "# Chapters\n\nEach chapter is a notebook. Most define a module of the library.\n"
    for part, names in parts.items():
        rows = [["chapter", "what it is about"]]
        for name in names:
            path = ROOT / name if name.endswith(".md") else NBS / f"{name}.ipynb"
            title, subject = title_and_subject(path)
            rows.append([f"[{title}]({posixpath.relpath(path, NBS)})", subject])
        text += f"\n## {part}\n\n{to_markdown(rows)}\n"
    note = "<!-- Made from docs/order.txt by `make readme`: edit that. -->\n\n"
    (NBS / "README.md").write_text(note + text, encoding="utf-8")


def write_cards():
    "Write the model cards beside the weights."
    for card in (NBS / "results").glob("*.md"):
        text = fill(card.read_text(encoding="utf-8")).strip()
        note = NOTE.format(f"results/{card.name}")
        (CARDS / card.name).write_text(note + text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_readme()
    write_chapters()
    write_cards()
