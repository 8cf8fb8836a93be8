"""The lines of a run: read whole, read while they are written."""

import json

import pytest

from retina_ray.train.tracking.metrics_file import MetricsFile, MetricsFollower, read_metrics

TORN = '{"step": 3, "met'


def line(step, **metrics):
    return json.dumps({"step": step, "metrics": metrics})


def test_no_file_has_no_lines(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize(
    "bad", [TORN, "", "[]", '{"step": "3", "metrics": {}}', '{"step": 3}', "ÿ"]
)
def test_lines_that_are_not_whole_are_left_out_and_told(tmp_path, bad, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{line(1, x=1.0)}\n{line(2)}\n{bad}\n")
    assert [one["step"] for one in read_metrics(path)] == [1, 2]
    assert "left out 1 lines" in caplog.text


def test_a_growing_file_is_followed_by_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    follower = MetricsFollower(path)
    assert follower.new_lines() == []
    file = MetricsFile(path)
    file.write(1, {"x": 1.0})
    with path.open("a") as torn:
        torn.write(TORN)
    assert [one["step"] for one in follower.new_lines()] == [1]
    assert follower.new_lines() == []
    with path.open("a") as rest:
        rest.write('rics": {}}\n')
    assert [one["step"] for one in follower.new_lines()] == [3]


def test_what_was_there_before_or_is_cut_off_is_not_read_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{line(1)}\n{line(2)}\n")
    follower = MetricsFollower(path)
    file = MetricsFile(path, resume=True, resume_step=1)
    assert follower.new_lines() == []
    file.write(2, {"x": 2.0})
    assert [one["metrics"] for one in follower.new_lines()] == [{"x": 2.0}]
