import subprocess
import sys
from types import SimpleNamespace

import pytest

from retina_ray.data.loading import ray_stream as pipeline
from retina_ray.data.loading.ray_stream import (
    IDLE_VARIABLE,
    MAX_ROWS_PER_BLOCK,
    Rest,
    keep_idle_processes,
    rows_per_block,
    task_cpus,
)


def test_blocks_of_few_large_or_many_small_batches():
    assert rows_per_block(1000) == MAX_ROWS_PER_BLOCK
    assert rows_per_block(16 * 800 * 1067 * 3) == 2
    assert rows_per_block(16 * 800 * 1333 * 3) == 1
    assert rows_per_block(2**40) == 1
    for batch_bytes in (10**5, 10**6, 5 * 10**6, 3 * 10**7):
        assert rows_per_block(batch_bytes) * batch_bytes <= 96 * 2**20


@pytest.mark.parametrize(
    ("kept_ms", "cpus"), [(None, 1.0), ("1000", 1.0), ("a minute", 1.0), ("60000", 0.5)]
)
def test_decoding_shares_cpus_only_where_ray_keeps_idle_processes(monkeypatch, kept_ms, cpus):
    monkeypatch.delenv(IDLE_VARIABLE, raising=False)
    if kept_ms is not None:
        monkeypatch.setenv(IDLE_VARIABLE, kept_ms)
    assert task_cpus() == cpus


def test_decoding_and_preparing_need_no_torch_and_only_the_stream_needs_ray():
    names = [
        *("prepared.schema", "prepared.dataset", "synthetic.prepare", "images.files", "export"),
        *(f"importers.{name}" for name in ("writing.ray_tasks", "coco", "voc", "yolo")),
        *("loading.batch_loader", "plan.run_plan"),
    ]
    lines = [
        "import sys",
        *(f"import retina_ray.data.{name}" for name in names),
        "assert not {'torch', 'ray', 'wandb'} & set(sys.modules)",
        "import retina_ray.data.loading.ray_stream",
        "assert 'torch' not in sys.modules",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


def test_what_the_user_set_stays(monkeypatch):
    monkeypatch.setenv(IDLE_VARIABLE, "2000")
    keep_idle_processes()
    assert task_cpus() == 1.0
    monkeypatch.delenv(IDLE_VARIABLE)
    keep_idle_processes()
    assert task_cpus() == 0.5


def test_the_scheduler_rests_only_where_it_looks_again_at_once_and_sees_the_same(monkeypatch):
    clock, rests = [100.0], []
    monkeypatch.setattr(pipeline.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(pipeline.time, "sleep", rests.append)
    metrics = SimpleNamespace(
        num_tasks_submitted=2,
        num_tasks_finished=1,
        num_task_outputs_generated=1,
        num_outputs_taken=1,
    )
    executor = SimpleNamespace(_topology=[SimpleNamespace(metrics=metrics)])
    rest = Rest()

    def look(after_s):
        clock[0] += after_s
        rests.clear()
        rest.on_execution_step(executor)
        return rests == [pipeline.REST_S]

    assert not look(0.001)  # the first one
    assert look(0.001)
    assert look(0.001)
    metrics.num_outputs_taken += 1
    assert not look(0.001)
    assert not look(0.1)  # it waited for its tasks by itself
    assert look(0.001)
