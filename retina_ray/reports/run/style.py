"""What the page of a run adds to the look of a data set's page."""

VERDICT_CLASSES = ("right", "class", "location", "both", "duplicate", "background", "lost")

_COLOURS = ("#12b886", "#e58bc0", "#f0a30a", "#b48cf2", "#5cc3f5", "#ff5a4f", "#ff5a4f")

RUN_STYLE = """
:root { --share: 43 131 198; --fault: 214 69 65; }
svg.lines { display: block; width: 100%; max-width: 640px; height: auto; margin: .3em 0; }
svg.lines text { font: 12px system-ui, sans-serif; fill: var(--soft); }
svg.lines .grid line { stroke: var(--line); } svg.lines .mark { stroke: var(--soft);
  stroke-dasharray: 3 3; }
svg.lines polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.charts.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 260px), 1fr));
  gap: 1.4em 1.6em; }
.wide + .wide { margin-top: 1.4em; }
.figures { display: grid; gap: .9em 1.6em; margin: 1em 0;
  grid-template-columns: repeat(auto-fill, minmax(10.5em, 1fr)); }
.figures b { font-size: 1.45em; font-weight: 600; font-variant-numeric: tabular-nums; }
.figures span { color: var(--soft); } .figures small { display: block; color: var(--soft);
  line-height: 1.3; }
.number { text-align: right; } thead .number { padding-left: .6em; }
.problems { border-left: 3px solid var(--warn); padding-left: .9em; margin: 1em 0; }
.problems li { margin: .25em 0; overflow-wrap: anywhere; } .problems ul { padding-left: 1.1em; }
.costs { max-width: 860px; margin-top: 1em; }
.cost { display: grid; grid-template-columns: 11em 1fr 11.5em; gap: .1em .9em; padding: .4em 0;
  border-bottom: 1px solid var(--line); align-items: center; }
.cost p { grid-column: 1 / -1; margin: 0; font-size: 13px; color: var(--soft); max-width: none; }
.cost .track { height: 12px; } .cost .track b { background: rgb(var(--fault)); opacity: 1; }
.cost > span:last-of-type { font-variant-numeric: tabular-nums; white-space: nowrap; }
.matrix { font-size: 13px; } .matrix td { min-width: 2.6em; text-align: right; padding: .3em .5em;
  overflow-wrap: normal; background: rgb(var(--share) / calc(var(--s, 0) * .75)); }
.matrix td.off { background: rgb(var(--fault) / calc(var(--s, 0) * .75)); }
.matrix th { padding-right: .7em; } .matrix thead th:not(:first-child) {
  text-align: right; padding-left: .5em; max-width: 9em; overflow: hidden;
  text-overflow: ellipsis; font-weight: 400; }
.judged { display: grid; gap: 1.6em 18px; margin-top: .8em;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); align-items: start; }
.judged .frame { max-width: none; } .judged figcaption { font-size: 13px; color: var(--soft);
  overflow-wrap: anywhere; } .judged figcaption b { color: var(--ink); font-weight: 600; }
.frame polygon.true { stroke: #fff; stroke-width: 1.4; stroke-dasharray: 5 4; fill: none; }
.frame polygon.lost { stroke-dasharray: 5 4; stroke-width: 2.4; }
.verdicts span { margin-right: 1.1em; white-space: nowrap; font-size: 13px; }
.verdicts i { display: inline-block; width: 16px; height: 11px; border: 2px solid;
  margin-right: .4em; vertical-align: -1px; }
.verdicts i.lost, .verdicts i.true { border-style: dashed; background: none; }
.verdicts i.true { border-color: var(--soft); }
@media (max-width: 760px) { .cost { grid-template-columns: 7em 1fr 9.6em; }
  .table-wide td { min-width: 3.4em; } }
""" + "".join(
    f".v-{name}{{stroke:{colour};fill:{colour}}}.verdicts .v-{name}{{border-color:{colour}}}"
    for name, colour in zip(VERDICT_CLASSES, _COLOURS, strict=True)
)
