"""Colours, for light and dark, and how the page is laid out.

Okabe and Ito's colours, which colour-blind readers tell apart; on a dark page the blue
and the grey are lighter. Yellow is left out: it cannot be seen on white.
"""

_LIGHT = {
  'ink': '#1b1f24', 'soft': '#57606a', 'rule': '#d0d7de', 'faint': '#e6e9ed',
  'page': '#ffffff', 'card': '#f6f8fa',
  'error': '#b3261e', 'warning': '#8a5300', 'note': '#0b5a8f',
  'c0': '#0072b2', 'c1': '#d55e00', 'c2': '#009e73', 'c3': '#cc79a7',
  'c4': '#e69f00', 'c5': '#56b4e9', 'c6': '#000000', 'c7': '#7f7f7f',
}  # fmt: skip
_DARK = _LIGHT | {
  'ink': '#e6edf3', 'soft': '#9da7b3', 'rule': '#3d444d', 'faint': '#2a3038',
  'page': '#0d1117', 'card': '#161b22',
  'error': '#ff8a80', 'warning': '#ffb95c', 'note': '#7cc4f5',
  'c0': '#3d9fdc', 'c1': '#ef7a2b', 'c2': '#17bd8e', 'c6': '#ffffff', 'c7': '#a0a0a0',
}  # fmt: skip
FONT = 'system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif'

_FIGURE = """
text{font-family:FONT;fill:var(--ink);font-size:13px}
text.title{font-size:15px;font-weight:600}
text.label,text.tick{fill:var(--soft)}
text.tick{font-size:12px}
text.end{text-anchor:end}
text.middle{text-anchor:middle}
.grid,.axis,.line,.reference,.median{fill:none}
.grid{stroke:var(--faint)}
.axis{stroke:var(--soft)}
.reference{stroke:var(--soft);stroke-width:1.5;stroke-dasharray:1 3}
.line{stroke:currentColor;stroke-width:1.8;stroke-linejoin:round}
.many .line{stroke-width:1.1}
.band{fill:currentColor;fill-opacity:.13}
.mark{fill:currentColor}
.hollow,.open{fill:var(--page);stroke:currentColor;stroke-width:1.5}
.box{fill:currentColor;fill-opacity:.35;stroke:currentColor}
.box.open{fill:var(--page);fill-opacity:1}
.median{stroke:currentColor;stroke-width:2.5}
.block{fill:currentColor}
.row{paint-order:stroke;stroke:var(--page);stroke-width:4px;stroke-linejoin:round}
""".replace('FONT', FONT).strip()


def _variables(colours: dict[str, str]) -> str:
  return ''.join(f'--{name}:{colour};' for name, colour in colours.items())


_CLASSES = ''.join(f'.c{i}{{color:var(--c{i})}}' for i in range(8))
COLOURS = (
  f':root{{color-scheme:light dark;{_variables(_LIGHT)}}}\n'
  f'@media(prefers-color-scheme:dark){{:root{{{_variables(_DARK)}}}}}\n{_CLASSES}\n'
)
FIGURE = COLOURS + _FIGURE

PAGE = f"""{FIGURE}
*{{box-sizing:border-box}}
html{{-webkit-text-size-adjust:100%}}
body{{margin:0 auto;padding:1.5rem 1rem 4rem;max-width:70rem;font:16px/1.5 {FONT};
color:var(--ink);background:var(--page);overflow-wrap:anywhere}}
h1{{font-size:1.75rem;line-height:1.2;margin:.5rem 0}}
h2{{font-size:1.3rem;margin:3rem 0 .75rem;padding-top:1rem;border-top:1px solid var(--rule)}}
h3{{font-size:1.05rem;margin:0 0 .25rem}}
p{{margin:.5rem 0;max-width:46rem}}
a{{color:var(--note)}}
code{{font:.9em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}}
.soft{{color:var(--soft)}}
nav{{display:flex;flex-wrap:wrap;gap:.25rem 1.1rem;margin:1rem 0}}
.tally{{display:flex;flex-wrap:wrap;gap:.5rem;margin:1rem 0;padding:0;list-style:none}}
.tally li{{border:1px solid var(--rule);border-radius:2rem;padding:.1rem .8rem}}
.finding{{border:1px solid var(--rule);border-left:5px solid;border-radius:.4rem;
padding:.7rem 1rem;margin:.75rem 0;background:var(--card)}}
.finding>*{{color:var(--ink)}}
.finding .level{{font-weight:700;text-transform:uppercase;font-size:.75rem;
letter-spacing:.06em;margin-right:.6rem}}
.finding h4{{display:inline;margin:0;font-size:1rem}}
.error,.error .level{{color:var(--error)}}
.warning,.warning .level{{color:var(--warning)}}
.note,.note .level{{color:var(--note)}}
figure{{margin:2rem 0}}
figcaption{{max-width:46rem;color:var(--soft);margin-bottom:.5rem}}
.legend{{display:flex;flex-wrap:wrap;gap:.15rem 1.2rem;margin:.4rem 0;padding:0;
list-style:none;font-size:.9rem}}
.legend li{{display:flex;align-items:center;gap:.45rem}}
.legend svg{{flex:none;width:30px;height:14px}}
.panels{{display:grid;gap:1rem;align-items:start;
grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr))}}
.panels svg{{display:block;width:100%;max-width:540px;height:auto}}
details{{margin:.5rem 0}}
summary{{cursor:pointer;color:var(--soft);padding:.2rem 0}}
.scroll{{overflow:auto;max-height:30rem;border:1px solid var(--rule);border-radius:.4rem}}
.scroll.free{{max-height:none}}
table{{border-collapse:collapse;width:100%;font-size:.88rem;
font-variant-numeric:tabular-nums;overflow-wrap:normal}}
th,td{{padding:.3rem .7rem;text-align:right;vertical-align:top}}
th{{background:var(--card);position:sticky;top:0;font-weight:600}}
tr+tr td{{border-top:1px solid var(--faint)}}
th.text,td.text{{text-align:left}}
td.text{{min-width:7rem}}
th.prose,td.prose{{text-align:left;min-width:17rem}}
table.sortable th{{cursor:pointer}}
.missing{{border:1px dashed var(--rule);border-radius:.4rem;padding:.6rem 1rem;margin:1rem 0}}
dl{{display:grid;grid-template-columns:minmax(8rem,max-content) 1fr;gap:.2rem 1rem}}
dt{{color:var(--soft)}}
dd{{margin:0}}
@media(max-width:36rem){{
dl{{display:block}}dd{{margin-bottom:.5rem}}
.cards,.cards tbody{{display:block}}
.cards thead{{display:none}}
.cards tr{{display:block;padding:.5rem .7rem;border-top:1px solid var(--rule)}}
.cards tr:first-child{{border-top:0}}
.cards tr td{{display:flex;justify-content:space-between;padding:.1rem 0;border:0;
text-align:left;min-width:0}}
.cards td.text{{font-weight:600}}
.cards td[data-name]::before{{content:attr(data-name);color:var(--soft);padding-right:1rem}}
}}
@media print{{.scroll{{max-height:none;overflow:visible}}}}
"""
