"""A worker that hangs ends itself and says where; one that is only slow is left alone."""

import subprocess
import sys
import time

from retina_ray.train.recovery import watchdog
from retina_ray.train.recovery.watchdog import Watchdog

SCRIPT = """
import sys, time
from retina_ray.train.recovery import watchdog

watchdog.START_S = float(sys.argv[2])

def stuck_in_a_collective():
    time.sleep(60)

with watchdog.Watchdog(sys.argv[1], rank=3, timeout_s=0.4) as dog:
    for number in dog.watch(range(5)):
        if number == int(sys.argv[3]):
            stuck_in_a_collective()
"""


def run(folder, *, start_s, hangs_at):
    start = time.monotonic()
    command = [sys.executable, "-c", SCRIPT, str(folder), str(start_s), str(hangs_at)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    return done, time.monotonic() - start


def test_a_hung_worker_ends_and_says_where(tmp_path):
    done, took = run(tmp_path, start_s=30, hangs_at=2)
    assert done.returncode == watchdog.EXIT_CODE
    assert took < 30
    (path,) = (tmp_path / "hung").iterdir()
    text = path.read_text()
    assert path.name.endswith("-rank3.txt")
    assert text.startswith("worker 3 (process ")
    assert "made no step for 0.4 s, after 2 batches" in text
    assert "in stuck_in_a_collective" in text
    assert text in done.stderr


def test_a_first_batch_that_hangs_counts_too_also_without_a_folder_for_it(tmp_path):
    (tmp_path / "hung").write_text("a file in the way")
    done, _ = run(tmp_path, start_s=1, hangs_at=0)
    assert done.returncode == watchdog.EXIT_CODE
    assert "made no step for 1 s, after 0 batches" in done.stderr
    assert "in stuck_in_a_collective" in done.stderr


def test_slow_steps_and_what_follows_the_last_are_left_alone(tmp_path):
    with Watchdog(str(tmp_path), rank=0, timeout_s=0.5) as dog:
        for number in dog.watch(range(3)):
            time.sleep(0.8 if number == 0 else 0.2)  # the first one may compile
        time.sleep(0.8)
    time.sleep(0.3)
    assert not (tmp_path / "hung").exists()
