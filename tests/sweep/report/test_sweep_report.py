"""The sweep report: order, honesty marks, files that can be read back, and odd sweeps."""

import csv
import io
import json
import math
import re
import subprocess
import sys

import pytest
from page_inputs import Page, trial
from rich.console import Console

from retina_ray.sweep.report import (
    TrialRow,
    rank,
    read_results,
    report_notes,
    report_table,
    write_report,
)
from retina_ray.sweep.report.parameters import plot_parameters
from retina_ray.sweep.report.results import write_csv, write_json
from retina_ray.sweep.report.rows import (
    best_trial,
    format_duration,
    format_value,
    repeats,
    short_names,
)

NAN = math.nan


def mixed():
    """A sweep with every kind of outcome."""

    def params(lr, sizes=(16.0, 32.0)):
        return {"optimizer.lr": lr, "model.anchors.sizes": sizes}

    nan = "RuntimeError: loss is nan <b>\nat step 3"
    stopped = {"status": "stopped", "epochs": 3, "reason": "asha stopped it after epoch 3"}
    return [
        trial("slow", 0.30, params=params(1e-4, (32.0, 64.0))),
        trial("bad", status="failed", epochs=0, reason=nan, params=params(0.5)),
        trial("quick", 0.35, params=params(0.02, None), **stopped),
        trial("nan", NAN, params=params(0.03)),
        trial("top", 0.45, params=params(0.01), checkpoint="/runs/top/step_120"),
    ]


def shown(renderable, width=160):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


def test_best_ap_first_then_no_ap_then_failures():
    rows = [
        *mixed(),
        trial("crashed late", 0.99, status="failed"),
        trial("waits", status="pending"),
        trial("as good", 0.45),
    ]
    order = [row.trial_id for row in rank(rows)]
    assert order == ["top", "as good", "quick", "slow", "nan", "waits", "crashed late", "bad"]
    assert best_trial(rows).trial_id == "top"
    assert best_trial(rows[1:2]) is None


def test_short_names_stay_apart():
    same = ["loss.gamma", "schedule.gamma", "gamma", "a.b.gamma", "x.b.gamma", "schedule.name"]
    names = {name: name for name in same}
    names |= {"optimizer.lr": "lr", "model.anchors.scale": "anchors.scale"}
    assert short_names(list(names)) == names


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.00123456, "0.00123"),
        (1e-7, "1e-07"),
        (1024.5, "1024.5"),
        (True, "true"),
        (3, "3"),
        (None, "-"),
        ("giou", "giou"),
        ((32.0, 64.0, 101.25), "(32, 64, 101)"),
        ({"milestones": (0.5, 0.75)}, "{milestones: (0.5, 0.75)}"),
        ("x" * 40 + "end", "x" * 13 + "..." + "x" * 9 + "end"),
    ],
)
def test_values_are_short(value, expected):
    assert format_value(value) == expected


def test_durations():
    texts = {0: "0s", 45.4: "45s", 190: "3m 10s", 7500: "2h 05m", NAN: "-"}
    assert [format_duration(seconds) for seconds in texts] == list(texts.values())


def test_the_table_marks_what_does_not_compare():
    lines = shown(report_table(mixed())).splitlines()

    def line(name):
        return next(text.split() for text in lines if f" {name} " in text)

    assert line("top")[:9] == ["1", "top", "45.0", "67.5", "12", "12", "1m", "01s", "finished"]
    assert line("quick")[2] == "35.0*"
    assert line("quick")[-1] == "-"  # the setting without effect
    assert line("nan")[2:4] == ["-", "-"]
    text = " ".join(" ".join(lines).split())
    assert "* ran fewer than 12 epochs, the longest of this sweep (1 of 3 trials" in text
    assert "failed: bad: RuntimeError: loss is nan <b> at step 3" in text
    assert "(16, 32)" in text


def test_a_narrow_console_keeps_the_figures_and_markup_is_shown_as_it_is():
    params = {f"section.setting_number_{i}": (1.5, 2.5, 3.5) for i in range(9)}
    text = shown(report_table([trial("a1b2_00000", 0.4567, params=params)], width=80), width=80)
    for part in ("45.7", "68.5", "finished", "setting_number_8=(1.5, 2.5,"):
        assert part in text
    few = [trial("a", 0.4, params={"loss.focal_gamma": 2.0, "loss.box_loss": "smooth_l1"})]
    assert "finished  focal_gamma=2, box_loss=smooth_l1" in shown(report_table(few, width=80), 80)
    rows = [
        trial("[bold]x", 0.1, params={"a.b": "[red]"}),
        trial("y", status="failed", reason="[/]"),
        trial("z", status="failed", reason=f"disk full: {'a path ' * 60}: free some space"),
    ]
    text = shown(report_table(rows))
    for part in ("[bold]x", "[red]", "failed: y: [/]", "free some space"):
        assert part in text


def test_spread_over_seeds():
    settings = {"loss.gamma": 2.0}
    rows = [
        trial("a", 0.40, params=settings, seed=0),
        trial("b", 0.44, params={**settings, "train.seed": 1}, seed=1),  # a swept seed
        trial("c", 0.42, params=settings, seed=2),
        trial("again", 0.40, params=settings, seed=0),  # not another seed
        trial("early", 0.10, params=settings, seed=3, status="stopped", epochs=2),
        trial("other", 0.43, params={"loss.gamma": 1.0}),
    ]
    spread = repeats(rows)
    assert set(spread) == {"a", "b", "c", "again"}
    assert spread["a"].num_seeds == 3
    assert spread["a"].mean == pytest.approx(0.42)
    assert spread["a"].std == pytest.approx(0.02)  # sqrt((0.02**2 + 0.02**2) / 2)
    assert "42.0 ± 2.0 (n=3)" in shown(report_table(rows))
    assert any("spread by 2.0 AP points" in note for note in report_notes(rows))


def test_notes_do_not_claim_a_spread_that_was_not_measured():
    notes = " ".join(report_notes(mixed(), num_val_images=80, num_val_boxes=301))
    assert "does not show how much chance moves AP" in notes
    assert "80 images and 301 boxes" in notes
    assert "best evaluation" in notes
    assert "±" not in notes
    assert "fewer" not in " ".join(report_notes([trial("a", 0.1), trial("b", 0.2)]))


def test_results_are_read_back_as_they_were(tmp_path):
    rows = mixed()
    rows[0].history.append({"epoch": 13, "AP": NAN, "loss": math.inf, "note": None})
    path = tmp_path / "results.json"
    write_json(path, rows, sweep_name="s", num_val_images=80)
    json.loads(path.read_text(), parse_constant=pytest.fail)  # strict JSON
    read = read_results(path)
    assert repr(read) == repr(rank(rows))  # repr, because NaN is not equal to itself
    assert read[0].params["model.anchors.sizes"] == (16.0, 32.0)
    assert json.loads(path.read_text())["num_val_images"] == 80


def test_a_file_that_is_no_report_is_named(tmp_path):
    path = tmp_path / "other.json"
    for content in ("{}", "[]", "not json", '{"trials": [{"params": {}}]}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"other\.json is not the results\.json"):
            read_results(path)


def test_csv_has_a_line_for_each_trial(tmp_path):
    write_csv(tmp_path / "results.csv", mixed())
    with (tmp_path / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["trial_id"] for line in lines] == ["top", "quick", "slow", "nan", "bad"]
    assert lines[0]["rank"] == "1"
    assert float(lines[0]["AP"]) == 0.45
    assert float(lines[0]["optimizer.lr"]) == 0.01
    assert json.loads(lines[0]["model.anchors.sizes"]) == [16.0, 32.0]
    assert lines[0]["checkpoint"] == "/runs/top/step_120"
    assert (lines[1]["model.anchors.sizes"], lines[4]["AP"]) == ("", "")


def test_the_page_holds_everything(tmp_path):
    command = "python train.py --init-from '/runs/top' && echo"
    options = {"sweep_name": "a sweep", "num_val_images": 80, "num_val_boxes": 300}
    paths = write_report(mixed(), tmp_path, train_on_command=command, **options)
    page = Page(paths.report.read_text())
    assert "a sweep 5 trials: 1 failed, 3 finished, 1 stopped" in page.text()
    assert command in page.text("next")
    assert "Resume this sweep" not in page.text()
    assert page.row("checkpoint") == ["/runs/top/step_120"]
    order = [cells[1] for where, cells in page.rows if where == "trials"]
    assert order == ["trial", "top", "quick", "slow", "nan", "bad"]
    assert page.row("2", "trials")[1] == "35.0*"
    assert page.row("2", "trials")[-1] == "stopped: asha stopped it after epoch 3"
    assert page.row("5", "trials")[-1] == "failed"
    assert "failed: bad: RuntimeError: loss is nan <b> at step 3" in page.text("trials")
    assert "80 images and 300 boxes" in page.text("trials")
    assert "top: AP 45.0%" in page.text("curves")
    assert "without effect in 1" in page.text("parameters")
    again = write_report([trial("a")], tmp_path, sweep_name="s", resume_command="go on")
    assert "Resume this sweep: go on" in Page(again.report.read_text()).text("next")


LONG = {"model.anchors.sizes": tuple(float(i) for i in range(60)), "a.text": "word $x_1$ " * 30}
ODD_SWEEPS = {
    "no trials": [],
    "one epoch": [trial("a", 0.3, epochs=1), trial("b", 0.2, epochs=1)],
    "only failures": [trial(n, status="failed", epochs=0, reason="boom") for n in "ab"],
    "only NaN": [trial("a", NAN)],
    "nothing swept": [trial("a", 0.3, params={}), trial("b", 0.2, params={}, seed=1)],
    "long values": [trial("_a", 0.3, params=LONG), trial("b", 0.2, params=LONG)],
    "mixed types": [
        trial(str(v), 0.3, params={"x.y": v}) for v in (1, 0.0, -2.5, True, "s", (1, (2, 3)), None)
    ],
    "no effect anywhere": [trial("a", 0.0, params={"x.y": None})],
    "different settings": [trial("a", 0.3, params={"x": 1}), trial("b", 0.2, params={"y": 1e9})],
    "many": [trial(f"t{i}", i / 100, params={"x.lr": 10.0**-i, "z": i % 9}) for i in range(20)],
    "loss not finite": [
        TrialRow("a", {"x": 1}, "failed", history=[{"epoch": 1, "AP": 0.1, "loss": NAN}]),
    ],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ODD_SWEEPS)
def test_odd_sweeps_are_reported(tmp_path, name):
    rows = ODD_SWEEPS[name]
    paths = write_report(rows, tmp_path, sweep_name=name)
    for picture in (paths.learning_curves, paths.parameters):
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert picture.stat().st_size > 4000
    assert repr(read_results(paths.results_json)) == repr(rank(rows))
    assert shown(report_table(rows)).strip()


def test_numbers_of_a_wide_span_have_a_log_axis(tmp_path):
    params = ({"lr": 10.0**-i, "gamma": 1.0 + i / 2} for i in range(9))
    rows = [trial(str(i), 0.1, params=of_trial) for i, of_trial in enumerate(params)]
    svg = plot_parameters(rows, tmp_path / "a.png")
    ticks = re.findall(r">([\d.e-]+)</text>", svg)
    assert {"0.0001", "0.01", "2.0", "4.0"} <= set(ticks)
    assert "0.2" not in ticks  # of a linear axis from 0 to 1


def test_reporting_leaves_matplotlib_alone():
    code = (
        "import sys, retina_ray.sweep.report as r; assert 'matplotlib' not in sys.modules;"
        "import tempfile; r.write_report([], tempfile.mkdtemp(), sweep_name='s');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
