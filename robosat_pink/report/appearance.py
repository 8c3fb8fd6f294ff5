"""How the report looks: its style sheet, for the reader's own fonts. Called by `page`."""

STYLE = """
:root { --ink: #1d2127; --soft: #59616c; --line: #dde1e6; --ground: #fff; --tint: #f4f6f8; --accent: #0b5cad; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; color: var(--ink); background: var(--ground);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
header, main, footer { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 40px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3em; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 0 0 .6em; letter-spacing: -.005em; }
h3 { font-size: 1rem; margin: 1.6em 0 .5em; }
p { margin: 0 0 .9em; max-width: 72ch; overflow-wrap: anywhere; }
.soft, figcaption, caption { color: var(--soft); font-size: .875rem; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.skip { position: absolute; left: -999px; }
.skip:focus { left: 8px; top: 8px; background: var(--ground); padding: 8px; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 10px 0; margin: 18px 0 0;
  border-top: 1px solid var(--line); border-bottom: 1px solid var(--line); font-size: .925rem; }
section { padding: 34px 0 6px; border-bottom: 1px solid var(--line); }
section:last-child { border-bottom: 0; }
.headline { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 1px; margin: 22px 0 0;
  background: var(--line); border: 1px solid var(--line); }
.headline div { background: var(--ground); padding: 12px 14px; }
.headline dt { color: var(--soft); font-size: .875rem; }
.headline dd { margin: 0; font-size: 1.6rem; font-variant-numeric: tabular-nums; line-height: 1.25; }
.headline div:first-child { background: var(--tint); }
.headline div:first-child dd { font-weight: 650; }
.scroll { overflow-x: auto; margin: 0 0 1.4em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .925rem; }
caption { text-align: left; padding: 0 0 .5em; }
caption span { display: block; position: sticky; left: 0; width: max-content; max-width: calc(100vw - 40px); }
.loose td { white-space: normal; }
th, td { padding: 5px 14px 5px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap;
  vertical-align: baseline; }
th:first-child { text-align: left; }
thead th { color: var(--soft); font-weight: 600; border-bottom-color: #aeb5be; }
tbody th { font-weight: 400; }
tfoot th, tfoot td { font-weight: 650; border-bottom: 0; }
.heat { display: block; padding: 8px 14px; min-width: 118px; }
.heat small { display: block; font-size: .8rem; }
td:has(> .heat) { padding: 1px; border: 0; }
abbr { text-decoration: none; color: var(--soft); }
figure { margin: 0 0 1.2em; }
img, svg { max-width: 100%; height: auto; display: block; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 8px 20px; }
.grid img { width: 100%; }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 8px 48px; }
.beside > * { min-width: 0; }
.tile { margin: 0 0 30px; }
.tile h4 { font-size: .95rem; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
.tile p { margin: 0 0 .5em; max-width: none; }
.panels { display: grid; grid-template-columns: repeat(4, 1fr); gap: 10px; }
.panels figure { margin: 0; }
.panels img { width: 100%; border: 1px solid var(--line); }
.panels .crisp img { image-rendering: pixelated; }
.keys { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0 0 1em; font-size: .875rem; }
.key { display: inline-flex; align-items: center; gap: 7px; }
.key i { width: 14px; height: 14px; border: 1px solid #777; flex: none; }
.key i.hatch { background: repeating-linear-gradient(135deg, #f7f7f8 0 3px, #9aa0a8 3px 4px); }
.bar { display: block; width: 220px; }
.bar i { display: block; height: 10px; background: #7a8fa6; min-width: 1px; }
.words { display: block; text-align: left; padding-left: 14px; color: var(--soft); font-size: .875rem; }
pre { background: var(--tint); padding: 14px 16px; overflow-x: auto; font-size: .825rem; line-height: 1.5;
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre.wrap { white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; padding: 4px 0; font-weight: 600; }
footer { padding: 26px 20px 50px; color: var(--soft); font-size: .875rem; }
@media (max-width: 640px) {
  header, main, footer { padding-left: 16px; padding-right: 16px; }
  header { padding-top: 26px; }
  h1 { font-size: 1.4rem; }
  .headline { grid-template-columns: repeat(2, 1fr); }
  .headline dd { font-size: 1.3rem; }
  .panels { grid-template-columns: repeat(2, 1fr); }
  .heat { min-width: 96px; padding: 8px; }
}
@media print { nav, .skip { display: none; } section { break-inside: avoid-page; } details { display: block; } }
"""
