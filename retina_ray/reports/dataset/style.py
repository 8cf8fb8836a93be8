"""The look of a data set's page: one style sheet, light and dark, wide and narrow."""

BOX_COLOURS = ("#f0a30a", "#5cc3f5", "#12b886", "#f5e642", "#3b8fe8", "#ff7a2f", "#e58bc0")
"""Colours of classes in pictures: Okabe and Ito's, made lighter, since each has a dark edge."""

_BOXES = "".join(
    f".c{number}{{stroke:{colour};fill:{colour}}}.k{number}{{background:{colour}}}"
    for number, colour in enumerate(BOX_COLOURS)
)

STYLE = (
    """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d2327; --soft: #5b6570; --line: #dfe3e6;
  --panel: #f5f7f8; --warn: #b2182b; --link: #0b66a8; }
@media (prefers-color-scheme: dark) { :root { --paper: #171b1f; --ink: #e4e8eb; --soft: #9aa5af;
  --line: #333b43; --panel: #20262b; --warn: #ff8f87; --link: #79bdf2; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1240px; margin: 0 auto; padding: 1.6em 20px 4em; }
h1 { font-size: 1.7em; line-height: 1.2; margin: 0 0 .2em; overflow-wrap: anywhere; }
h2 { font-size: 1.25em; margin: 2.4em 0 .5em; padding-top: .7em;
  border-top: 1px solid var(--line); }
h3 { font-size: 1em; margin: 0; overflow-wrap: anywhere; }
p { margin: .3em 0 .9em; max-width: 75ch; } a { color: var(--link); }
.soft { color: var(--soft); } .warn { color: var(--warn); }
nav { display: flex; flex-wrap: wrap; gap: .2em 1.2em; margin: .8em 0 1.4em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
td { overflow-wrap: anywhere; min-width: 6em; }
th, td { padding: .32em 1em .32em 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { white-space: nowrap; } 
tbody th { font-weight: 400; color: var(--soft); white-space: nowrap; }
code { font-size: 12.5px; overflow-wrap: anywhere; }
details { margin: .8em 0; } summary { cursor: pointer; color: var(--link); }
details li, pre { font-size: 13px; overflow-wrap: anywhere; }
.legend { display: inline-flex; flex-wrap: wrap; gap: .1em 1.1em; font-size: 13px;
  color: var(--soft); }
.legend span { overflow-wrap: anywhere; }
.legend i { display: inline-block; width: 22px; border-top: 3px solid; margin-right: .45em;
  vertical-align: .28em; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr));
  gap: 2em 2.4em; margin-top: 1em; }
.charts + .charts { margin-top: 2.2em; }
.charts.square { grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)); }
figure { margin: 0; min-width: 0; }
.chart img { display: block; width: 100%; height: auto; margin: .3em 0; }
.chart figcaption, .card p, .shot figcaption { font-size: 13px; color: var(--soft);
  overflow-wrap: anywhere; }
.chart figcaption div { margin: .1em 0; }
.classes.many { columns: 2 480px; column-gap: 3em; }
.classes { margin-top: 1em; font-size: 13px; }
.classes:not(.many) { max-width: 720px; }
.class { break-inside: avoid; display: grid; grid-template-columns: minmax(6em, 9.5em) 1fr;
  gap: 0 .9em; padding: .26em 0; border-bottom: 1px solid var(--line); align-items: center; }
.class > span { overflow-wrap: anywhere; line-height: 1.25; }
.bar { display: grid; grid-template-columns: 1fr 9.6em; gap: .7em; align-items: center;
  font-variant-numeric: tabular-nums; line-height: 1.35; }
.bar > span:last-child { white-space: nowrap; }
.track { position: relative; height: 9px; }
.track b { position: absolute; inset: 0 auto 0 0; border-radius: 0 2px 2px 0; opacity: .42; }
.track b + b { opacity: 1; inset: 2.5px auto 2.5px 0; }
.cards { display: grid; gap: 1.6em; margin-top: 1.2em; }
.card header { display: flex; flex-wrap: wrap; gap: 0 1em; align-items: baseline; }
.card header p { margin: 0; max-width: none; }
.shots { display: grid; gap: .7em 10px; align-items: start; margin-top: .35em;
  grid-template-columns: repeat(4, minmax(0, 1fr)); }
.shots.loose { gap: 1.6em 18px; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); }
.frame { position: relative; overflow: hidden; border-radius: 3px; background: var(--panel);
  outline: 1px solid var(--line); width: 100%; max-width: calc(var(--a) * 420px);
  margin: 0 auto .3em 0; }
.frame img { display: block; width: 100%; height: auto; }
.frame img.tiny { image-rendering: pixelated; }
.frame svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.frame .none { display: grid; place-items: center; padding: 1em; font-size: 13px;
  color: var(--warn); overflow-wrap: anywhere; aspect-ratio: 4 / 3; overflow: auto; }
.frame polygon { fill-opacity: 0; stroke-width: 2; vector-effect: non-scaling-stroke;
  stroke-linejoin: round; }
.frame polygon:hover { fill-opacity: .25; }
.frame .halo { fill: none; stroke: #111; stroke-opacity: .75; stroke-width: 4;
  vector-effect: non-scaling-stroke; stroke-linejoin: round; }
.frame .crowd { stroke-dasharray: 7 5; fill-opacity: .22; }
.frame .pale { stroke-opacity: .45; stroke-width: 1; }
.frame text { font-family: system-ui, sans-serif; font-weight: 600; stroke: #111;
  stroke-width: .22em; stroke-linejoin: round; paint-order: stroke; pointer-events: none; }
.card .key { max-width: none; }
.key i { display: inline-block; width: 10px; height: 10px; border-radius: 2px;
  margin: 0 .35em 0 .1em; border: 1px solid #0008; }
.key span { margin-right: .9em; white-space: nowrap; }
@media (max-width: 760px) { body { padding: 1em 14px 3em; }
  .shots { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .shots.loose { grid-template-columns: 1fr 1fr; gap: 1.2em 10px; }
  .class { grid-template-columns: 6.2em 1fr; } .bar { grid-template-columns: 1fr 8.4em; }
  h2 { margin-top: 1.8em; } }
@media print { .card, .chart, .class { break-inside: avoid; } nav { display: none; } }
"""
    + _BOXES
)
