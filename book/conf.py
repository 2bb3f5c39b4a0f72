"""Sphinx's configuration for the book. book/build.py calls Sphinx with it; nothing here names another machine."""

import hashlib
import json
import sys
from base64 import b64decode
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from docutils import nodes
from sphinx.errors import ExtensionError

sys.path.insert(0, str(Path(__file__).parent))
from parts import cut

project = "qtutor"
language = "en"
extensions = ["myst_nb"]

# --- chapters: stored outputs ---
nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # tables and formulas in outputs too
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

# --- scripts, all from _static (book/build.py puts them there) ---
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
    "navbar_persistent": [],  # the search field is in the sidebar
}
html_context = {"default_mode": "auto"}  # light or dark like the reader's system, until the reader chooses


def describe_pictures(app, doctree) -> None:
    """Give every picture in a stored output the alt text of its metadata, which myst-nb leaves out.

    myst-nb names a picture's file by the sha256 of its bytes, so the name shows to which output an image node belongs.
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


def cut_pictures(app, doctree) -> None:
    """Turn the panels of a picture into separate pictures, side by side; a phone shows them beneath each other."""
    for image in list(doctree.findall(nodes.image)):
        relative, absolute = app.env.relfn2path(image["uri"], app.env.docname)
        parts = cut(Path(absolute)) if absolute.endswith(".png") else []
        if not parts:
            continue
        box = nodes.container(classes=["qtutor-parts"])
        for number, part in enumerate(parts, start=1):
            one = image.deepcopy()
            one["uri"] = str(Path(relative).with_name(part.name))
            one["candidates"] = {"*": one["uri"]}
            if number > 1:
                one["alt"] = f"Panel {number} of {len(parts)} of the picture before"
            app.env.images.add_file(app.env.docname, one["uri"])
            box += one
        image.replace_self(box)


# --- search, also for pages on the disk ---


def add_search_from_the_disk(app, pagename, templatename, context, doctree) -> None:
    """Add the script with the texts that a browser cannot read from the disk; only on the search page."""
    if pagename == "search":
        app.add_js_file("search_on_disk.js", priority=100)


def store_texts(app, exception) -> None:
    """Write the pages' texts, by section, to a script, because pages on the disk may not fetch each other."""
    if exception or app.builder.name != "html":
        return
    texts = {}
    for name in sorted(app.env.found_docs):
        page = f"{name}.html"
        article = BeautifulSoup((Path(app.outdir) / page).read_text(encoding="utf-8"), "html.parser").article
        for unwanted in article.select("script, style, svg, .headerlink, .qtutor-frames"):
            unwanted.decompose()
        for tag in article.find_all(True):
            if tag.name == "section":
                tag.attrs = {"id": tag.get("id", "")}
            else:
                tag.unwrap()
        texts[page] = f'<div role="main">{" ".join(article.decode_contents().split())}</div>'
    script = f"window.qtutorTexts = {json.dumps(texts)};\n"
    (Path(app.outdir) / "_static" / "search_texts.js").write_text(script, encoding="utf-8")


def setup(app) -> dict:
    app.connect("doctree-read", describe_pictures)
    app.connect("doctree-read", cut_pictures, priority=600)
    app.connect("html-page-context", add_search_from_the_disk)
    app.connect("build-finished", store_texts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
