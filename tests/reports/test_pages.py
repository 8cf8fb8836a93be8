"""What all pages promise: nothing escapes into them, and they need nothing but themselves."""

import base64
import io
import json
import re

import pytest
from jinja2 import UndefinedError
from page_inputs import Page, found, trial, write_run, write_set
from PIL import Image
from typer.testing import CliRunner

from retina_ray.cli.app import app
from retina_ray.config import ExperimentConfig, with_overrides
from retina_ray.reports.dataset.report import show_dataset
from retina_ray.reports.html.colors import theme_color
from retina_ray.reports.html.render import render
from retina_ray.reports.run.report import run_report
from retina_ray.sweep.report import write_report

NASTY = """<script>alert("x")</script>'"{{ 7 * 7 }}{% raw %}&amp;$x_1$"""
TRUTH = [[(1, 1, 20, 20, 0, 0), (5, 5, 40, 30, 1, 1)], [(2, 2, 30, 30, 1, 0)]]
SMALL = {"input.train_sizes_px": [32], "input.train_max_size_px": 64}


def dataset_page(folder, name):
    options = {"name": name, "source": name, "file_names": {0: f"{name}.png"}}
    write_set(folder / "train", TRUTH, (name, "a&b"), **options)
    config = with_overrides(ExperimentConfig(), SMALL)
    return show_dataset(folder / "train", config=config, num_images=2)


def run_page(folder, name):
    dataset = write_set(folder / "val", TRUTH, (name, "a&b"), file_names={0: f"{name}.png"})
    results = [found(0, 10, (1, 1, 20, 20), 0.9), found(1, 10, (2, 2, 30, 30), 0.8)]
    run = write_run(folder / "run", dataset, results=results, name=name)
    (run / "failure.txt").write_text(f"boom {name}")
    (run / "bad_images.json").write_text(json.dumps({f"{name}.jpg": name}))
    (run / "metrics.jsonl").write_text(
        json.dumps({"step": 1, "metrics": {f"train/{name}": 1.0, "train/loss": 2.0}}) + "\n"
    )
    return run_report(run).html


def sweep_page(folder, name):
    params = {f"model.{name}": name, "lr": 0.1}
    rows = [
        trial(name, 0.3, epochs=2, params=params, checkpoint=f"/runs/{name}"),
        trial("other", status="failed", params=params, reason=f"boom {name}"),
    ]
    paths = write_report(rows, folder, sweep_name=name, train_on_command=f"echo {name}")
    return paths.report.read_text()


PAGES = {"data set": dataset_page, "run": run_page, "sweep": sweep_page}


@pytest.fixture(scope="module", params=PAGES)
def html(request, tmp_path_factory):
    return PAGES[request.param](tmp_path_factory.mktemp("page"), NASTY)


def test_names_stay_text(html):
    page = Page(html)
    assert page.all("script") == []
    assert page.text().count(NASTY) >= 5
    assert "{{ 7 * 7 }}" in page.text()
    assert {key for _, attrs in page.tags for key in attrs if key.startswith("on")} == set()


def test_nothing_is_loaded_from_elsewhere(html):
    page = Page(html)
    names = ("src", "href", "srcset", "xlink:href", "data", "action", "poster")
    links = [value for _, attrs in page.tags for key, value in attrs.items() if key in names]
    assert len(links) > 4
    assert [link for link in links if not link.startswith(("data:image/", "#"))] == []
    assert [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object")] == []
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    assert {attrs["href"][1:] for attrs in page.all("a")} == set(page.sections)


def test_ids_are_unique_and_those_that_are_named_exist(html):
    page = Page(html)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    named = re.findall(r"url\(#([^)]+)\)", html)
    named += [a["xlink:href"][1:] for a in page.all("use")]
    assert named
    assert set(named) <= set(ids)


def test_embedded_images_can_be_decoded(html):
    found = re.findall(r"data:image/(\w+);base64,([^\"]+)", html)
    for kind, text in found:
        with Image.open(io.BytesIO(base64.b64decode(text))) as image:
            assert image.format == kind.upper()
            image.load()


def test_charts_follow_the_theme(html):
    assert "prefers-color-scheme: dark" in html
    charts = re.findall(r'<svg class="plot".*?</svg>', html)
    assert charts
    for chart in charts:
        assert "var(--" in chart
        assert theme_color("axis") not in chart
        assert "<style" not in chart
        assert "<metadata" not in chart


def test_the_same_input_makes_the_same_page(html, request, tmp_path):
    again = PAGES[request.node.callspec.params["html"]](tmp_path, NASTY)
    paths = re.compile(r"/[\w/.-]*/(?:test_|page)[\w/-]*")
    assert paths.sub("", again) == paths.sub("", html)


def test_a_name_that_a_template_does_not_get_is_an_error():
    with pytest.raises(UndefinedError):
        render("reports/dataset/page.html.j2", title="x")


@pytest.fixture(params=[("data", "show"), ("run", "report")], ids=" ".join)
def command(request, tmp_path, no_figures):
    """A command that makes a page, called with what it is to make it of."""
    dataset = write_set(tmp_path / "val", TRUTH, ("ant", "bee"))
    write_run(tmp_path / "run", dataset, results=[])
    source = {"data": dataset.uri, "run": str(tmp_path / "run")}[request.param[0]]

    def call(*args, of=source):
        return CliRunner().invoke(app, [*request.param, str(of), *map(str, args)])

    return call


def test_commands_write_the_page_in_one_step(command, tmp_path):
    out = tmp_path / "new folder" / "page.html"
    for _ in range(2):  # one that is there is replaced
        done = command("--out", out, "--num-images", 1)
        assert done.exit_code == 0, done.output
        assert str(out) in done.output
    assert Page(out.read_text()).sections
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


def test_commands_say_what_is_wrong(command, tmp_path):
    (tmp_path / "empty").mkdir()
    for done, words in (
        (command(of=tmp_path / "nothing"), "no such folder"),
        (command(of=tmp_path / "empty"), "holds n"),
        (command(of=f"file://{tmp_path}/nothing"), "no"),
        (command("--out", tmp_path), "is a folder"),
        (command("--out", "s3://bucket/page.html"), "a local file is needed"),
        (command("--num-images", -1), "num-images"),
    ):
        assert done.exit_code == 2, done.output
        assert words in done.output
        assert "Traceback" not in done.output
