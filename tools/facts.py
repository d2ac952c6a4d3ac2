"""Measure the form of code and prose.

`python tools/facts.py` prints the figures as a Markdown table, with `--names` also which functions
and names they count. `--check` exits with 1 where a limit is broken. `--long FILE ...` lists the
sentences of over 25 words of notebooks, Markdown files and Python files.
"""

import argparse
import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import mean, median

import nbformat

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = 100  # of a line of code
LONG = 25  # words of a sentence
BODY_LINES = 30  # of a function, after its signature and docstring
PARAMETERS = 8  # of a function; commands of the command line are exempt

# what `--check` allows at most; the keys are rows of the table
LIMITS = {
    "code lines over 100 columns, %": 0,
    "modules": 45,
    "lines of the longest module": 420,
    "functions with over 8 parameters": 0,
    "public names": 250,
    "public names in several modules": 0,
    "README words": 900,
    "words a sentence": 16,
    "sentences over 25 words, %": 5,
    "docstrings: words a sentence": 16,
    "docstrings: sentences over 25 words, %": 5,
}


# ---- files ----


def project_files() -> list[Path]:
    "Return the files that git tracks or would track."
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in names.split("\0") if name and (path := ROOT / name).is_file()]


def is_library(path: Path) -> bool:
    "Say whether nbdev-export wrote this file."
    return path.suffix == ".py" and path.is_relative_to(ROOT / "spfpn")


def library_modules(files: list[Path]) -> dict[str, str]:
    "Return the text of each module by name, without `_modidx` and `__init__`."
    modules = [f for f in files if is_library(f) and not f.stem.startswith("_")]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts): f.read_text() for f in modules}


def cells(path: Path, kind: str) -> list:
    "Return a notebook's cells of one kind: code or markdown."
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


# ---- prose ----


def sentences(text: str) -> list[str]:
    "Split Markdown into its sentences of over 3 words, without code, tables and headings."
    text = re.sub(r"```.*?```", " ", text, flags=re.S)
    text = re.sub(r"^\s*(\||#|<|!\[).*$", " ", text, flags=re.M)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    parts = re.split(r"(?<=[.!?])\s+|\n\s*\n|\n\s*[-*] ", text)
    return [" ".join(part.split()) for part in parts if len(part.split()) > 3]


def docstrings(source: str) -> list[str]:
    "Return the docstrings of a module, its classes and functions."
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
    return [text for node in nodes if (text := ast.get_docstring(node))]


def prose(path: Path) -> list[str]:
    "Return the sentences of a notebook's text, a Markdown file or a Python file's docstrings."
    if path.suffix == ".ipynb":
        texts = [cell.source for cell in cells(path, "markdown")]
    elif path.suffix == ".md":
        texts = [path.read_text()]
    else:
        texts = docstrings(path.read_text())
    return [sentence for text in texts for sentence in sentences(text)]


def words_and_long(found: list[str]) -> tuple[float, float]:
    "Return the mean number of words of sentences, and how many percent have over 25."
    words = [len(sentence.split()) for sentence in found]
    return mean(words), 100 * mean(n > LONG for n in words)


# ---- code ----


def code_lines(files: list[Path]) -> list[str]:
    "Return the lines of notebooks' code and of tests and tools; the library repeats the notebooks."
    lines = []
    for path in files:
        if path.suffix == ".ipynb":
            lines += [line for cell in cells(path, "code") for line in cell.source.splitlines()]
        elif path.suffix == ".py" and not is_library(path):
            lines += path.read_text().splitlines()
    return [line for line in lines if line.strip()]


def export_cells(files: list[Path]) -> list[int]:
    "Return the number of lines of each exported cell, without directives."
    notebooks = [path for path in files if path.suffix == ".ipynb"]
    sources = [cell.source for path in notebooks for cell in cells(path, "code")]
    exported = [s for s in sources if re.match(r"(#\|.*\n)*#\|\s*export", s)]
    return [len(re.sub(r"(?m)^#\|.*\n?", "", source).strip().splitlines()) for source in exported]


def functions(modules: dict[str, str]) -> list[tuple[str, int, int]]:
    "Return name, lines of the body and number of parameters of every function."
    found = []
    for module, source in modules.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[bool(ast.get_docstring(node)) :] or node.body
                lines = node.end_lineno - body[0].lineno + 1
                found.append((f"{module}.{node.name}", lines, parameters(node)))
    return found


def parameters(node: ast.FunctionDef) -> int:
    "Count parameters but for self and cls; 0 for a command of the command line."
    if any(re.search(r"\.(command|callback)\b", ast.unparse(d)) for d in node.decorator_list):
        return 0
    names = [a.arg for a in node.args.posonlyargs + node.args.args + node.args.kwonlyargs]
    return len([name for name in names if name not in ("self", "cls")])


def public_names(modules: dict[str, str]) -> dict[str, list[str]]:
    "Return the modules that define each public name."
    found: dict[str, list[str]] = {}
    for module, source in modules.items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                for name in ast.literal_eval(node.value):
                    found.setdefault(name, []).append(module)
    return found


# ---- configuration ----


def config_keys() -> list[str]:
    "Return the keys of the configuration, as `section.key`."
    sys.path.insert(0, str(ROOT))
    from spfpn.core.sections import KEYS

    return list(KEYS)


def assigned_names(source: str) -> list[str]:
    "Return the names that code assigns to."
    nodes = ast.walk(ast.parse(source))
    return [n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


def declared_keys(files: list[Path], keys: list[str]) -> Counter:
    "Count by folder the assignments to a key's name in the notebooks' cells of parameters."
    names = {key.split(".")[-1] for key in keys}
    declared = Counter(workbook=0, tutorials=0, research=0)
    for path in files:
        if path.suffix == ".ipynb" and path.parent.name in declared:
            for cell in cells(path, "code"):
                if "parameters" in cell.metadata.get("tags", []):
                    assigned = assigned_names(cell.source)
                    declared[path.parent.name] += sum(name in names for name in assigned)
    return declared


def lines_of_code(text: str) -> int:
    "Count the lines of a module without blank ones and nbdev's marks of cells."
    return sum(bool(line.strip()) and not line.startswith("# %%") for line in text.splitlines())


# ---- the table ----


def measure(files: list[Path]) -> dict[str, object]:
    "Return all figures, by the names of the table's rows."
    modules = library_modules(files)
    lengths = {name: len(text.splitlines()) for name, text in modules.items()}
    return {
        **code_facts(files),
        "lines of code in the library": sum(map(lines_of_code, modules.values())),
        "modules": len(modules),
        "lines of the longest module": max(lengths.values()),
        **function_facts(modules),
        **prose_facts(files),
        **config_facts(files),
    }


def code_facts(files: list[Path]) -> dict[str, object]:
    "Measure lines and export cells."
    columns = [len(line) for line in code_lines(files)]
    exported = export_cells(files)
    return {
        "code lines over 100 columns, %": 100 * mean(n > COLUMNS for n in columns),
        "columns of the longest line": max(columns),
        "export cells: median lines": median(exported),
        "export cells: most lines": max(exported),
    }


def function_facts(modules: dict[str, str]) -> dict[str, object]:
    "Measure functions and public names; lists where the names themselves are of interest."
    found = functions(modules)
    public = public_names(modules)
    twice = [f"{name} ({', '.join(where)})" for name, where in public.items() if len(where) > 1]
    return {
        "functions with over 30 lines": [name for name, lines, _ in found if lines > BODY_LINES],
        "functions with over 8 parameters": [name for name, _, n in found if n > PARAMETERS],
        "public names": len(public),
        "public names in several modules": sorted(twice),
    }


def prose_facts(files: list[Path]) -> dict[str, object]:
    "Measure README, all text, and the library's docstrings."
    readme = ROOT / "README.md"
    text = [f for f in files if f.suffix in (".ipynb", ".md") and f.name != "index.md"]
    words, long = words_and_long([s for path in text for s in prose(path)])
    doc_words, doc_long = words_and_long([s for f in files if is_library(f) for s in prose(f)])
    return {
        "README words": len(readme.read_text().split()),
        "README: words a sentence": words_and_long(prose(readme))[0],
        "words a sentence": words,
        "sentences over 25 words, %": long,
        "docstrings: words a sentence": doc_words,
        "docstrings: sentences over 25 words, %": doc_long,
    }


def config_facts(files: list[Path]) -> dict[str, object]:
    "Measure how many keys there are, and how often notebooks declare them again."
    keys = config_keys()
    declared = declared_keys(files, keys)
    return {
        "configuration keys": len(keys),
        "keys declared in workbook notebooks": declared["workbook"],
        "keys declared in workbook, tutorials and research": sum(declared.values()),
    }


def number(value: object) -> float:
    "Return a figure to compare; of a list its length."
    return len(value) if isinstance(value, list) else value


def written(value: object) -> str:
    "Write a figure: a count as it is, a mean or a share with one decimal."
    value = number(value)
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def table(facts: dict[str, object]) -> str:
    "Write the figures as Markdown, with the limits beside them."
    lines = ["| | now | at most |", "|---|---|---|"]
    for name, value in facts.items():
        lines.append(f"| {name} | {written(value)} | {LIMITS.get(name, '')} |")
    return "\n".join(lines)


def broken_limits(facts: dict[str, object]) -> list[str]:
    "Say which limits are broken, and by what."
    found = []
    for name, limit in LIMITS.items():
        if number(facts[name]) > limit:
            what = ": " + ", ".join(facts[name]) if isinstance(facts[name], list) else ""
            found.append(f"{name}: {written(facts[name])}, at most {limit}{what}")
    return found


def list_long(path: Path):
    "Print the sentences with over 25 words, the longest first."
    long = [(n, s) for s in prose(path) if (n := len(s.split())) > LONG]
    print(f"{path}: {len(long)} of {len(prose(path))} sentences have over {LONG} words")
    for words, sentence in sorted(long, reverse=True):
        print(f"  {words}: {sentence}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 where a limit is broken")
    parser.add_argument("--names", action="store_true", help="name what the table counts")
    parser.add_argument("--long", nargs="+", type=Path, metavar="FILE", help="list long sentences")
    arguments = parser.parse_args()
    if arguments.long:
        for path in arguments.long:
            list_long(path)
        return
    facts = measure(project_files())
    print(table(facts))
    if arguments.names:
        for name, value in facts.items():
            if isinstance(value, list):
                print(f"\n{name}:", *value, sep="\n- ")
    if arguments.check and (broken := broken_limits(facts)):
        sys.exit("\nover the limit:\n- " + "\n- ".join(broken))


if __name__ == "__main__":
    main()
