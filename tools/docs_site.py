"""Which pages the site has: those of the repository where they are, and one for each package.

A page keeps its place in the repository, so a link that works there works in the site. mkdocs calls
the functions here by their names (`hooks` in mkdocs.yml).
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = ["*.md", "docs/**/*.md", "benchmarks/results/*.md", "datasets/README.md"]
LINKED = ["LICENSE", "ray_cluster.yaml", "retina_ray/**/*.py", "experiments/*.py"]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the parts of `nav` that end in a star."""
    for part in config.nav or []:
        for title, pages in part.items() if isinstance(part, dict) else []:
            if isinstance(pages, str) and pages.endswith("/*"):
                part[title] = _navigation(pages.removesuffix("/*"))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the pages from the repository's root instead of docs/ alone."""
    for page in files.documentation_pages():
        files.remove(page)
    for pattern in (*PAGES, *LINKED):
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    for name, text in _reference().items():
        files.append(File.generated(config, name, content=text))
    return files


def _navigation(folder: str) -> list[str]:
    if folder == "api":
        return sorted(_reference())
    pages = [path.relative_to(ROOT).as_posix() for path in ROOT.glob(f"{folder}/*.md")]
    return sorted(pages, key=lambda page: (not page.endswith("README.md"), page))


def _reference() -> dict[str, str]:
    """A page for each folder of retina_ray: its own docstring, then its modules."""
    pages = {}
    for init in sorted((ROOT / "retina_ray").rglob("__init__.py")):
        folder = init.parent
        package = ".".join(folder.relative_to(ROOT).parts)
        modules = [f"{package}.{path.stem}" for path in sorted(folder.glob("[!_]*.py"))]
        own = f"::: {package}\n    options:\n      heading_level: 1\n      members: false"
        text = "\n\n".join([f"---\ntitle: {package}\n---", own, *(f"::: {m}" for m in modules)])
        pages[f"api/{package}.md"] = text
    return pages
