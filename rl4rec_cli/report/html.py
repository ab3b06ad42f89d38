"""Pages: one HTML file each, without a script and without an address to fetch from.

Decides: the look of every page (`base.html.j2`) and of its tables and figures (`parts.html.j2`); that titles, texts and
names, which can hold anything, stay text.
Hides: jinja2, which is imported when a page is made.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rl4rec_cli import console

Figure = tuple[str, str, str]
"""Title, what is seen in words, and the drawing, an `<svg>` of `plots.py`."""


def render(template: Path, **values: Any) -> str:
    """Renders a template to a page. A missing value is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["clean"] = console.clean
    return environment.get_template(template.name).render(**values)


def figures(plots: Iterable[Figure]) -> list[Figure]:
    """Returns the figures for a page, which treats only the drawings as HTML."""
    from markupsafe import Markup

    return [(title, words, Markup(drawing)) for title, words, drawing in plots]
