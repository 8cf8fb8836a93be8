"""The report of a sweep: a table for the console, and files that say what it can and cannot show.

The ranking is honest about three things: which trials ran less long than others, that a best of
many evaluations flatters, and how far runs of equal settings lie apart, where the sweep knows it.
"""

from retina_ray.sweep.report.files import ReportPaths, write_report
from retina_ray.sweep.report.notes import report_notes
from retina_ray.sweep.report.results import read_results
from retina_ray.sweep.report.rows import TrialRow, rank
from retina_ray.sweep.report.table import report_table

__all__ = [
    "ReportPaths",
    "TrialRow",
    "rank",
    "read_results",
    "report_notes",
    "report_table",
    "write_report",
]
