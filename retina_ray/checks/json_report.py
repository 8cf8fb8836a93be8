"""The findings of a check as data: what `--json` writes."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from retina_ray.checks.check import CheckReport
from retina_ray.checks.findings import Case, Finding

REPORT_VERSION = 2
"""Raised when a name disappears or changes its meaning; new names may come without."""


def report_json(report: CheckReport) -> str:
    """All of a report as JSON.

    Returns:
        One object: `check_version`, `dataset`, `layout`, `verdict` ("clean", "warnings", "errors"),
        `num_errors`, `num_warnings`, `settings`, `splits`, `passed_over`, and `findings`, each with
        `kind`, `severity`, `count`, `advice` and its `cases` (split, file, image_id, annotation_id,
        message); at most 100 000 cases of a kind are listed.
    """
    verdict = "errors" if report.num_errors else "warnings" if report.num_warnings else "clean"
    content = {
        "check_version": REPORT_VERSION,
        "dataset": report.dataset,
        "layout": report.layout,
        "verdict": verdict,
        "num_errors": report.num_errors,
        "num_warnings": report.num_warnings,
        "settings": asdict(report.settings),
        "splits": [
            {
                "name": split.name,
                "num_images": split.num_images,
                "num_empty_images": split.num_empty,
                "num_boxes": split.num_boxes,
                "num_crowd": split.num_crowd,
                "class_counts": split.class_counts,
            }
            for split in report.splits
        ],
        "passed_over": list(report.passed_over),
        "findings": [_finding(finding) for finding in report.findings],
    }
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind.name,
        "severity": finding.kind.severity,
        "count": finding.count,
        "advice": finding.kind.advice,
        "cases": [_case(case) for case in finding.cases],
    }


def _case(case: Case) -> dict[str, Any]:
    fault = case.fault
    return {
        "split": case.split,
        "file": fault.file,
        "image_id": fault.image_id,
        "annotation_id": fault.annotation_id,
        "message": fault.message,
    }
