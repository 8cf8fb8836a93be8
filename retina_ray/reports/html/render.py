"""Pages from Jinja2 templates; whatever comes from outside is escaped by the templates."""

from __future__ import annotations

import base64
import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from retina_ray.evaluation.tables import percent
from retina_ray.reports.html import colors

_PACKAGE = Path(__file__).parents[2]


def render(template: str, **context: Any) -> str:
    """Make a page: HTML that refers to nothing outside itself.

    Args:
        template: path within the package, e.g. `reports/run/page.html.j2`.
        context: what the template names; anything that it names and does not get is an error.
    """
    # Sections enter themselves into `nav`, so that the page can link to them.
    return _environment().get_template(template).render(nav=[], **context)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    environment.filters["thousands"] = "{:,}".format
    environment.filters["percent"] = percent
    environment.globals["colors"] = colors
    return environment
