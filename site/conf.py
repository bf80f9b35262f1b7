"""The course as a book: the README, the executed chapters, the exercises, the documents, and the API of loralab."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from myst_nb.core.render import MimeData, NbElementRenderer
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).parents[1]
TRANSLATIONS = {"ko/": "한국어"}
REPOSITORY = "https://github.com/loralab/lora-course"

project = "LoRA and QLoRA"
author = "The lora-course authors"
copyright = author
version = release = metadata.version("loralab")
language = "en"

extensions = [
    "sphinx_external_toc",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
external_toc_path = str(ROOT / "site" / "toc.yml")
external_toc_exclude_missing = False
include_patterns = ["README.md", "chapters/*.ipynb", "exercises/*/*.ipynb", "docs/*.md", "site/api.md"]
include_patterns += ["data/README.md", "data/base/README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
include_patterns += ["ko/README.md", "ko/chapters/*.ipynb", "ko/exercises/*/*.ipynb"]

nb_execution_mode = "off"  # the chapters are committed with their outputs
nb_merge_streams = True
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_class_signature = "separated"
python_use_unqualified_type_names = True
copybutton_selector = "div.input div.highlight pre, div.highlight-sh pre"

html_theme = "sphinx_book_theme"
html_title = project
html_favicon = "static/favicon.svg"
html_context = {"default_mode": "auto"}
html_static_path = ["static"]
html_css_files = ["course.css"]
html_theme_options = {
    "repository_url": REPOSITORY,
    "repository_branch": "main",
    "use_repository_button": True,
    "use_issues_button": True,
    "use_download_button": True,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "home_page_in_toc": True,
    "show_toc_level": 2,
    "navbar_persistent": [],  # the search box stands in the sidebar already
}
html_show_copyright = False
html_math_renderer = "mathml"


class FitForTheBook(SphinxPostTransform):
    """Replace what makes sense on GitHub alone: links to folders and files that are no pages, and Colab's badges."""

    default_priority = 1  # before MyST looks for the targets

    def run(self, **_: object) -> None:
        for link in list(self.document.findall(pending_xref)):
            target = (ROOT / self.env.docname).parent / link["reftarget"].partition("#")[0]
            if link["reftype"] == "myst" and target.is_dir():
                place = target.resolve().relative_to(ROOT).as_posix()
                link.replace_self(nodes.reference("", "", *link.children, refuri=f"{REPOSITORY}/tree/main/{place}"))
        for badge in list(self.document.findall(nodes.image)):
            if badge["uri"].endswith("colab-badge.svg"):
                badge.replace_self(nodes.Text("Open in Colab"))


def image_with_alt(renderer: NbElementRenderer, data: MimeData) -> list[nodes.Element]:
    """Render an image of a notebook with the alternative text in the output's metadata, which MyST-NB leaves out."""
    images = render_image(renderer, data)
    images[0]["alt"] = data.output_metadata.get(data.mime_type, {}).get("alt", "")
    return images


render_image = NbElementRenderer.render_image
NbElementRenderer.render_image = image_with_alt


def write_math(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers show without JavaScript and without a network."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    translator.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def offer_translation(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document) -> None:
    """Add a button to a page that exists in the other language."""
    for prefix, label in TRANSLATIONS.items():
        other = page.removeprefix(prefix) if page.startswith(prefix) else prefix + page
        if other in app.env.found_docs:
            text = "English" if page.startswith(prefix) else label
            button = {
                "type": "link",
                "url": context["pathto"](other),
                "text": text,
                "label": "language",
                "tooltip": text,
                "icon": "",
            }
            context["header_buttons"].append(button)


def write_front_page(app: Sphinx, error: Exception | None) -> None:
    """Copy the README's page to `index.html`, which a server shows for the address alone."""
    if error is None:
        shutil.copy(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    app.add_post_transform(FitForTheBook)
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
    app.connect("html-page-context", offer_translation, priority=900)  # after the theme has made its list of buttons
    app.connect("build-finished", write_front_page)
