"""The colors of all pages, light and dark: the style sheet and the charts take them from here."""

THEME = {
    "paper": ("#ffffff", "#171b1f"),
    "ink": ("#1d2327", "#e4e8eb"),
    "soft": ("#5b6570", "#9aa5af"),
    "line": ("#dfe3e6", "#333b43"),
    "panel": ("#f5f7f8", "#20262b"),
    "warn": ("#b2182b", "#ff8f87"),
    "link": ("#0b66a8", "#79bdf2"),
    "stopped": ("#6b5900", "#d9c25a"),
    "axis": ("#39424b", "#c3cad1"),  # of charts: axes and what is written at them
    "rest": ("#9aa3ab", "#66717b"),  # lines of a chart that stay in the background
}
"""CSS variables by name: on light and on dark paper."""

SERIES = ("#2b83c6", "#e07b00", "#009e73", "#cc79a7", "#8c8c8c", "#b59f00")
"""Of lines and splits: told apart by the color-blind, and seen on light and on dark."""
LINE_STYLES = ("solid", "dashed", "dotted")
"""Of lines and splits, beside their colors."""

BOXES = ("#f0a30a", "#5cc3f5", "#12b886", "#f5e642", "#3b8fe8", "#ff7a2f", "#e58bc0")
"""Of classes in images: Okabe and Ito's, made lighter, since each has a dark edge."""

VERDICTS = {
    "right": "#12b886",
    "class": "#e58bc0",
    "location": "#f0a30a",
    "both": "#b48cf2",
    "duplicate": "#5cc3f5",
    "background": "#ff5a4f",
    "lost": "#ff5a4f",
}
"""Of detections by what they are, and of boxes that were not found."""

COLOR_MAPS = {"light": "YlGnBu", "dark": "viridis"}
"""Of counts in the cells of a chart; matplotlib's names."""


def theme_color(name: str) -> str:
    """The light color of the theme, which charts are drawn with."""
    return THEME[name][0]
