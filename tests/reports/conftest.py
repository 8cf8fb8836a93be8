"""What tests of pages share."""

import pytest

from retina_ray.reports.html import charts


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes most of a page's time; what looks at no chart needs none."""
    monkeypatch.setattr(charts, "to_svg", lambda figure: "")
