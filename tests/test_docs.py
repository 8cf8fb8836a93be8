"""What docs and docstrings say of the code is there."""

import pkgutil
import re

from builders import ROOT

NAME = re.compile(r"`(retina_ray(?:\.\w+)+)`")


def test_dotted_names_lead_somewhere():
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("datasets/*.md")]
    files += ROOT.glob("retina_ray/**/*.py")
    found = {name: file for file in files for name in NAME.findall(file.read_text())}
    assert len(found) > 30
    lost = {}
    for name, file in found.items():
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError) as error:
            lost[name] = f"{file}: {error}"
    assert not lost
