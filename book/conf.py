"""Sphinx's configuration of the book. book/build.py calls Sphinx with it; nothing here names another machine."""

import hashlib
from base64 import b64decode
from pathlib import Path

import nbformat
from docutils import nodes
from sphinx.errors import ExtensionError

project = "qtutor"
language = "en"
extensions = ["myst_nb"]

# --- chapters: outputs as they are stored ---
nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # tables and formulas in outputs too
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

# --- scripts, all of them out of _static (book/build.py puts them there) ---
mathjax_path = "tex-svg-full.js"
# MathJax's menu would offer to load components that the site does not have.
mathjax3_config = {"options": {"enableMenu": False}}
nb_ipywidgets_js = {}  # no page stores the state of a widget; widgets bring their own frames

# --- looks ---
html_theme = "sphinx_book_theme"
html_title = "qtutor"
html_static_path = ["static", "_build/assets"]
html_css_files = ["book.css"]
html_favicon = "static/favicon.svg"
html_logo = "static/favicon.svg"
html_copy_source = False
html_show_sourcelink = False
html_use_index = False
html_show_sphinx = False
html_theme_options = {
    "logo": {"text": "qtutor", "alt_text": ""},
    "use_download_button": False,  # the learner's copy comes from `make learn`, with a place to work in
    "use_issues_button": False,
    "use_repository_button": False,
    "use_edit_page_button": False,
    "show_toc_level": 2,
    "extra_footer": "<p>qtutor is free software under the Apache License 2.0.</p>",
    "footer_content_items": ["extra-footer.html"],
    "navbar_persistent": [],  # the search field stands in the sidebar
}
html_context = {"default_mode": "auto"}  # light or dark as the reader's system is, until they choose


def describe_pictures(app, doctree) -> None:
    """Give every picture in a stored output the alt text of its metadata, which myst-nb leaves out.

    myst-nb names a picture's file by the sha256 of its bytes: that ties an image node to its output.
    """
    source = Path(app.env.doc2path(app.env.docname))
    if source.suffix != ".ipynb":
        return
    described = {}
    for cell in nbformat.read(source, 4).cells:
        for output in cell.get("outputs", []):
            for mime, metadata in output.get("metadata", {}).items():
                if mime.startswith("image/") and "alt" in metadata:
                    described[hashlib.sha256(b64decode(output.data[mime])).hexdigest()] = metadata["alt"]
    for image in doctree.findall(nodes.image):
        image["alt"] = image.get("alt") or described.get(Path(image["uri"]).stem, "")
        if not image["alt"]:
            raise ExtensionError(f"{source.name} shows a picture ({image['uri']}) without a text that describes it")


def setup(app) -> dict:
    app.connect("doctree-read", describe_pictures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
