"""The grader's HTML pages: what a page prints is sanitised and escaped wherever it comes from, and no page runs scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from loralab.files import write_whole
from loralab.record import duration

from ..text import display, display_name

PAGES = Environment(
    loader=PackageLoader(__package__),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=lambda value: display(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGES.filters["name"] = display_name
PAGES.filters["duration"] = duration
PAGES.filters["points"] = lambda value: f"{value:.4g}"


def write_page(template: str, path: Path, **content: Any) -> Path:
    """Render a template to `path`; the page appears whole or not at all."""
    return write_whole(path, PAGES.get_template(template).render(**content))
