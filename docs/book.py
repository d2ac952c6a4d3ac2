"""Build the book: `python docs/book.py` writes the site `_docs/html`.

Sphinx reads a copy of the notebooks, README and cards in `_docs/source`, which has the folders of
the repository, so that links between files hold. `docs/order.txt` orders the chapters.
With REPOSITORY=owner/name in the environment, chapters have buttons that open Colab and Binder.
The page in `docs/demo` runs a detector in the browser; npm brings ONNX Runtime Web for it, once.
"""

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

import nbformat
from sphinx.cmd.build import main as sphinx

ROOT = Path(__file__).resolve().parents[1]
ORDER = ROOT / "docs" / "order.txt"
SOURCE = ROOT / "_docs" / "source"
HTML = ROOT / "_docs" / "html"
FRONT = "index"  # the notebook that README is made from
DEMO = ROOT / "docs" / "demo"
ONNXRUNTIME_WEB = "1.30.0"  # the version of the npm package
RUNTIME_FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
RUNTIME_CACHE = ROOT / "_docs" / "npm" / f"onnxruntime-web-{ONNXRUNTIME_WEB}"
EXAMPLE_SIZE = (600, 400)  # width and height of both example photographs
EXAMPLE_HOMOGRAPHY = (  # from the first example to the second: a closer, turned, tilted view
    (1.40, -0.30, -28.0),
    (0.25, 1.45, -160.0),
    (1e-4, 1.5e-4, 1.0),
)

Parts = dict[str, list[str]]


# ---- the order of the chapters ----


def read_order(text: str) -> Parts:
    "Return the chapters of each part: indented lines under its title."
    parts: Parts = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if not line[0].isspace():
            chapters = parts.setdefault(line.strip(), [])
        else:
            chapters.append(line.strip())
    return parts


def notebooks() -> list[str]:
    "Return the notebooks of the book by their path in nbs/, without suffix."
    found = (path.relative_to(ROOT / "nbs") for path in sorted((ROOT / "nbs").rglob("*.ipynb")))
    names = [path.with_suffix("").as_posix() for path in found if path.parts[0][0] not in "._"]
    return [name for name in names if ".ipynb_checkpoints" not in name and name != FRONT]


def place_chapters(parts: Parts) -> tuple[Parts, list[str]]:
    "Leave out chapters without a file, append unlisted notebooks; return the parts and warnings."
    known = notebooks()
    files = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.md")}
    listed = {name for chapters in parts.values() for name in chapters}
    warnings = [f"{name}: no such file" for name in sorted(listed - {*known, *files})]
    placed = {
        title: [name for name in chapters if name in known or name in files]
        for title, chapters in parts.items()
    }
    for name in known:
        if name not in listed:
            title = part_of_folder(parts, name)
            placed[title].append(name)
            warnings.append(f"{name}: not in order.txt, appended to {title}")
    return {title: chapters for title, chapters in placed.items() if chapters}, warnings


def part_of_folder(parts: Parts, name: str) -> str:
    "Return the last part that lists a notebook of the same folder, or else the first part."
    folder = PurePosixPath(name).parent
    titles = [t for t, names in parts.items() if folder in {PurePosixPath(n).parent for n in names}]
    return titles[-1] if titles else next(iter(parts))


# ---- the copy that Sphinx reads ----


def copy_sources():
    "Copy notebooks, pictures, model cards and the files that they link to."
    shutil.rmtree(SOURCE, ignore_errors=True)
    ignored = shutil.ignore_patterns(".*", "_*", "*.md", f"{FRONT}.ipynb")
    shutil.copytree(ROOT / "nbs", SOURCE / "nbs", ignore=ignored)
    for path in (SOURCE / "nbs").rglob("*.ipynb"):
        nbformat.write(for_readers(nbformat.read(path, 4)), path)
    for pattern in ("*.md", "spfpn/weights/*.md", "LICENSE", "spfpn/settings.ini", "CITATION.cff"):
        for path in ROOT.glob(pattern):
            copy = SOURCE / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(link_front_page(path.read_text()))
    (SOURCE / "README.md").rename(SOURCE / "index.md")


def for_readers(notebook):
    "Drop hidden cells and nbdev's directives, mend links to the front page, describe pictures."
    notebook.cells = [cell for cell in notebook.cells if not is_hidden(cell)]
    minutes, said = reading_time(notebook), ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = link_front_page(cell.source)
            said = description(cell.source) or said
            continue
        cell.metadata["mystnb"] = {"image": {"alt": said}}
        hidden = "remove-input" if "#| echo: false" in cell.source else ""
        cell.source = re.sub(r"(?m)^#\|.*\n?", "", cell.source)
        if hidden or only_imports(cell.source):
            cell.metadata.tags = [hidden or "hide-input"]
    if notebook.cells and notebook.cells[0].cell_type == "markdown":
        notebook.cells[0].source += f"\n\n*{minutes} min to read*"
    return notebook


def only_imports(code: str) -> bool:
    "Say whether a cell imports and does nothing else."
    try:
        lines = ast.parse(code).body
    except SyntaxError:  # a magic of IPython
        return False
    return bool(lines) and all(isinstance(line, ast.Import | ast.ImportFrom) for line in lines)


def reading_time(notebook) -> int:
    "Return minutes for prose and code, at 200 words a minute."
    words = sum(len(cell.source.split()) for cell in notebook.cells)
    return max(1, round(words / 200))


def description(text: str) -> str:
    "Return the last sentence of prose before a picture: it says what the picture shows."
    prose = re.sub(r"(?ms)^```.*?^```|^\|.*?$|^#+ .*?$|^> ", "", text)
    prose = re.sub(r"!?\[([^\]]*)\]\([^)]*\)|[*`$]", r"\1", prose)
    sentences = re.split(r"(?<=[.:?])\s+", " ".join(prose.split()))
    return sentences[-1].rstrip(":")


def link_front_page(text: str) -> str:
    "Lead links to README, or to the notebook that it is made from, to the front page."
    return re.sub(rf"\]\([./]*(nbs/)?(README\.md|{FRONT}\.ipynb)", "](/index.md", text)


def is_hidden(cell) -> bool:
    "Say whether a cell is for nbdev alone."
    return bool(re.match(r"#\|\s*(hide|default_exp)\b", cell.source))


def write_contents(parts: Parts, demo: bool = False):
    "Append the contents of the book to the front page, and the page that leads to the demo."
    trees = [toctree(title, [document(name) for name in names]) for title, names in parts.items()]
    trees.append(toctree("Reference", ["api/index"]))
    if demo:
        (SOURCE / "demo.md").write_text(DEMO_PAGE)
        trees.insert(0, toctree("Demo", ["demo"]))
    with (SOURCE / "index.md").open("a") as page:
        page.write("\n\n" + "\n\n".join(trees))


def document(chapter: str) -> str:
    "Return what Sphinx calls a chapter: its path in the copy, without suffix."
    return chapter.removesuffix(".md") if chapter.endswith(".md") else f"nbs/{chapter}"


def toctree(title: str, documents: list[str]) -> str:
    "Write one part of the contents."
    lines = ["```{toctree}", ":hidden:", f":caption: {title}", "", *documents, "```"]
    return "\n".join(lines)


# ---- the page that runs in the browser ----

DEMO_PAGE = """# Match in your browser

The detector `spfpn-s` runs in a browser, without a server.
The photographs stay on your machine.

<p><a href="demo/index.html">Match two photographs in your browser</a></p>
"""


class DemoError(RuntimeError):
    "The demo cannot be built here; the message has the reason."


def build_demo(folder: Path):
    "Write the page of `docs/demo` with all that it loads. Raises `DemoError`."
    runtime = fetch_runtime()
    shutil.rmtree(folder, ignore_errors=True)
    weights = [ROOT / "spfpn" / "weights" / f"spfpn-s{end}" for end in (".onnx", ".describe.onnx")]
    page = [path for path in DEMO.iterdir() if path.suffix in (".html", ".css", ".js")]
    folder.mkdir(parents=True)
    for path in (*page, *weights, *(runtime / name for name in RUNTIME_FILES)):
        shutil.copyfile(path, folder / path.name)
    write_examples(folder)


def fetch_runtime() -> Path:
    "Return the folder of ONNX Runtime Web; npm fills it the first time. Raises `DemoError`."
    if RUNTIME_CACHE.is_dir():
        return RUNTIME_CACHE
    if (npm := shutil.which("npm")) is None:
        raise DemoError("npm is not installed")
    RUNTIME_CACHE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RUNTIME_CACHE.parent) as scratch:
        package = f"onnxruntime-web@{ONNXRUNTIME_WEB}"
        command = [npm, "pack", package, "--silent", "--fetch-retries=0"]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise DemoError(f"npm pack {package} failed: {reason[0]}")
        unpack_runtime(next(Path(scratch).glob("*.tgz")), Path(scratch) / "files")
        (Path(scratch) / "files").replace(RUNTIME_CACHE)
    return RUNTIME_CACHE


def unpack_runtime(archive: Path, folder: Path):
    "Copy the files that the page loads out of the npm package."
    folder.mkdir()
    with tarfile.open(archive) as package:
        for name in RUNTIME_FILES:
            (folder / name).write_bytes(package.extractfile(f"package/dist/{name}").read())


def write_examples(folder: Path):
    "Write a photograph, and a darker view of it through `EXAMPLE_HOMOGRAPHY`."
    try:
        from skimage import data, io, transform, util
    except ImportError:
        raise DemoError("scikit-image is not installed") from None
    first = data.coffee()
    back = transform.ProjectiveTransform(EXAMPLE_HOMOGRAPHY).inverse
    second = 0.6 * transform.warp(first, back, output_shape=EXAMPLE_SIZE[::-1], order=3)
    io.imsave(folder / "coffee.png", first, check_contrast=False)
    io.imsave(folder / "coffee_again.png", util.img_as_ubyte(second), check_contrast=False)


def try_demo() -> bool:
    "Build the page, or say why it is left out."
    shutil.rmtree(HTML / "demo", ignore_errors=True)
    try:
        build_demo(HTML / "demo")
    except DemoError as error:
        shutil.rmtree(HTML / "demo", ignore_errors=True)
        print(f"docs/demo: left out, {error}", file=sys.stderr)
        return False
    return True


# ---- API pages ----


def write_api_pages():
    "Write a page for each module of the library; autodoc fills it from the docstrings."
    (SOURCE / "api").mkdir()
    modules = []
    for path in sorted((ROOT / "spfpn").rglob("[!_]*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        modules.append(module)
        (SOURCE / "api" / f"{module}.rst").write_text(api_page(module, path))
    listed = "\n".join(f"   {module}" for module in modules)
    (SOURCE / "api" / "index.rst").write_text(
        f"API\n===\n\n.. autosummary::\n\n{listed}\n\n.. toctree::\n   :hidden:\n\n{listed}\n"
    )


def api_page(module: str, path: Path) -> str:
    "Write the page of a module, with a link to the chapter that defines it."
    chapter = re.search(r"File to edit: [./]*(nbs/\S+)\.ipynb", path.read_text())
    link = f"Explained in :doc:`/{chapter[1]}`.\n\n" if chapter else ""
    return f"{module}\n{'=' * len(module)}\n\n{link}.. automodule:: {module}\n   :members:\n"


# ---- the site ----


def network_loads() -> list[str]:
    "Return what pages load from a network: scripts, styles, fonts, pictures. A link loads nothing."
    element = (
        r"<(?:script|link|img|iframe|source|video)\b[^>]*\b(?:src|href)=[\"'](?:https?:)?//[^>]*>"
    )
    found = []
    for path in HTML.rglob("*.html"):
        found += [
            f"{path.relative_to(HTML)}: {load}" for load in re.findall(element, path.read_text())
        ]
    for path in HTML.rglob("*.css"):
        loads = re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)\"';]*", path.read_text())
        found += [f"{path.relative_to(HTML)}: {load}" for load in loads]
    return found


def main():
    parts, warnings = place_chapters(read_order(ORDER.read_text()))
    for warning in warnings:
        print(f"docs/order.txt: {warning}", file=sys.stderr)
    copy_sources()
    write_contents(parts, try_demo())
    write_api_pages()
    if status := sphinx(["-q", "-b", "html", "-c", str(ROOT / "docs"), str(SOURCE), str(HTML)]):
        sys.exit(status)
    if loads := network_loads():
        sys.exit("pages load from the network:\n" + "\n".join(loads))
    print(f"{HTML / 'index.html'} is the front page")


if __name__ == "__main__":
    main()
