"Settings of Sphinx for the book; `docs/book.py` calls it."

import os
import re
import sys
from pathlib import Path

from fastcore.docments import docments

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import spfpn

project = "spfpn"
author = "The spfpn authors"
version = release = spfpn.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
]

html_theme = "sphinx_book_theme"
html_title = f"spfpn {version}"
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the search stands in the sidebar
    "show_toc_level": 2,
}
if repository := os.environ.get("REPOSITORY"):  # owner/name at GitHub
    html_theme_options |= {
        "repository_url": f"https://github.com/{repository}",
        "launch_buttons": {
            "colab_url": "https://colab.research.google.com",
            "binderhub_url": "https://mybinder.org",
        },
    }
html_context = {"default_mode": "auto"}
html_static_path = ["_static"]
html_css_files = ["book.css"]

# Pages show the outputs that the notebooks store. Nothing runs, and no widget asks a network.
nb_execution_mode = "off"
nb_ipywidgets_js: dict = {}
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "html_image"]
myst_heading_anchors = 3

autodoc_default_options = {"member-order": "bysource", "undoc-members": True}
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
default_role = "code"


def to_rst(text: str) -> str:
    "Turn a docstring in Markdown into reStructuredText: backticks mean code, all else is text."
    texts = re.split(r"`([^`]+)`", text)  # text and code by turns
    texts[::2] = [re.sub(r"([*|\\]|_\b)", r"\\\1", text) for text in texts[::2]]
    texts[1::2] = [rf"\ ``{code}``\ " for code in texts[1::2]]  # `\ ` may touch a letter
    return "".join(texts)


def process_docstring(app, what, name, target, options, lines):
    "Add the comments beside parameters (docments), as nbdev shows them."
    lines[:] = to_rst("\n".join(lines)).split("\n")
    if what in ("function", "method"):
        lines += ["", *parameter_lines(target)]


def parameter_lines(function) -> list[str]:
    "Return the commented parameters and the commented result as a field list."
    try:
        comments = docments(function)
    except (OSError, TypeError, ValueError):  # no source, no signature
        return []
    fields = [
        f":{'returns' if name == 'return' else f'param {name}'}: {to_rst(' '.join(text.split()))}"
        for name, text in comments.items()
        if text
    ]
    return fields


def setup(app):
    app.connect("autodoc-process-docstring", process_docstring)
