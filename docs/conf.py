"""Settings of Sphinx, which builds the site from these pages and the docstrings.

Build it with `sphinx-build -W -b html docs site`, after `pip install -e ".[all,docs]"`.
"""

import re
from pathlib import Path

import attzoo
import attzoo.torch  # before Keras: triton must be loaded before TensorFlow

project = "attzoo"
release = version = attzoo.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"attzoo {version}"
html_show_copyright = False
root_doc = "index"
exclude_patterns = ["images"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["myst.xref_missing"]   # links to files outside docs/; tests/test_docs.py checks every link

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
default_role = "code"   # `name` in docstrings
napoleon_use_rtype = False


def escape_stars(app, what, name, obj, options, lines):
    """Keep the star of `*S` in docstrings, which would begin emphasis."""
    lines[:] = [re.sub(r"(?<![*`\\])\*(?=\S)", r"\\*", line) for line in lines]


def add_contents(app, name, source):
    """Append the table of contents to the index: the pages in the order in which it links to them, and the API."""
    if name == root_doc:
        pages = dict.fromkeys(re.findall(r"\]\(([\w/-]+)\.md\)", source[0]))
        source[0] += "\n\n```{toctree}\n:hidden:\n\n" + "\n".join([*pages, "api"]) + "\n```\n"
    if name == "blocks/README":
        pages = sorted(page.stem for page in Path(app.srcdir, "blocks").glob("*.md") if page.stem != "README")
        source[0] += "\n\n```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```\n"


def setup(app):
    """Register the changes of sources and docstrings."""
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", escape_stars)
