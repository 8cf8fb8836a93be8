"""What a sweep shows and what it does not, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from retina_ray.sweep.report.rows import (
    TrialRow,
    average_precision,
    format_duration,
    longest_run,
    repeats,
)

BAD_IMAGES = "data/bad_images"


def report_notes(
    rows: Sequence[TrialRow],
    *,
    num_val_images: int | None = None,
    num_val_boxes: int | None = None,
) -> list[str]:
    """What a reader must know before believing the ranking, each note a sentence or two."""
    notes = []
    scored = [row for row in rows if not math.isnan(average_precision(row))]
    if scored:
        notes.append(
            "AP is that of each trial's best evaluation, chosen on the same validation set as the "
            "ranking, so the top of the list flatters: confirm it on a test set or another seed."
        )
    else:
        notes.append("No trial has an AP, so there is no ranking.")
    longest = longest_run(rows)
    if shorter := sum(row.epochs_run < longest for row in scored):
        notes.append(
            f"* ran fewer than {longest} epochs, the longest of this sweep ({shorter} of "
            f"{len(scored)} trials with an AP): not comparable with trials that ran on."
        )
    if any(value is None for row in rows for value in row.params.values()):
        notes.append("- in place of a setting: it had no effect in that trial.")
    counts = [max((e.get(BAD_IMAGES, 0) for e in row.history), default=0) for row in rows]
    if max(counts, default=0) > 0:
        trials = sum(count > 0 for count in counts)
        notes.append(
            f"Images could not be decoded and were replaced, in {trials} of {len(rows)} trials, at "
            f"most {max(counts):.0f} in one: bad_images.json in the folder of a trial names them."
        )
    if scored:
        notes.append(_noise_note(rows))
    if num_val_images is not None:
        boxes = "" if num_val_boxes is None else f" and {num_val_boxes} boxes"
        notes.append(
            f"The validation set has {num_val_images} images{boxes}; the fewer, the more of a "
            "difference in AP is chance."
        )
    return notes


def failure_notes(rows: Sequence[TrialRow]) -> list[str]:
    """A line for each different reason, with the trials that failed by it."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.status == "failed":
            reasons.setdefault(one_line(row.reason) or "no reason known", []).append(row.trial_id)
    return [f"failed: {', '.join(trials)}: {reason}" for reason, trials in reasons.items()]


def summary(rows: Sequence[TrialRow]) -> str:
    """`12 trials: 5 finished, 6 stopped, 1 failed; 2h 05m of trial time`."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.status] = counts.get(row.status, 0) + 1
    parts = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    seconds = sum(row.time_s for row in rows if math.isfinite(row.time_s))
    return f"{len(rows)} trials{': ' if parts else ''}{parts}; {format_duration(seconds)} in all"


def one_line(text: str) -> str:
    """Text without line breaks; whole, since what to do stands at the end of a reason."""
    return " ".join(text.split())


def _noise_note(rows: Sequence[TrialRow]) -> str:
    spread = {(r.mean, r.std, r.num_seeds): r for r in repeats(rows).values()}.values()
    if not spread:
        return (
            "No settings were run to the end with several seeds, so this sweep does not show how "
            "much chance moves AP: repeat the leading trials with other seeds before believing a "
            "small lead."
        )
    # Pooled over the groups, each weighted by its degrees of freedom.
    freedom = sum(r.num_seeds - 1 for r in spread)
    pooled = math.sqrt(sum((r.num_seeds - 1) * r.std**2 for r in spread) / freedom)
    return (
        f"Runs of equal settings that differ only in the seed spread by {100 * pooled:.1f} AP "
        f"points (standard deviation, {freedom} degrees of freedom): leads of about that size are "
        "not evidence. AP over seeds is mean ± standard deviation."
    )
