"""How the report looks, light and dark, and the little it does when it is pointed at."""

CSS = """
:root { color-scheme: light dark; --paper:#fbfbf9; --card:#fff; --ink:#1b2430; --soft:#5d6875; --faint:#e6e8e6;
  --line:#d8dcda; --accent:#2563c9; --good:#12834a; --bad:#b6411f; --wash:#eef3fb;
  --s0:#2563c9; --s1:#d3690a; --s2:#12834a; --s3:#8250c4; --s4:#b83277; --s5:#55606c; }
@media (prefers-color-scheme: dark) { :root:not([data-theme=light]) { --paper:#12161b; --card:#1a2027;
  --ink:#e7ebef;
  --soft:#9aa6b2; --faint:#28303a; --line:#343e49; --accent:#79a9ff; --good:#4fc98a; --bad:#f58b66; --wash:#1d2836;
  --s0:#79a9ff; --s1:#f5a25a; --s2:#4fc98a; --s3:#b897f0; --s4:#ee82b5; --s5:#9aa6b2; } }
:root[data-theme=light] { color-scheme: light }
:root[data-theme=dark] { color-scheme: dark; --paper:#12161b; --card:#1a2027; --ink:#e7ebef; --soft:#9aa6b2;
  --faint:#28303a; --line:#343e49; --accent:#79a9ff; --good:#4fc98a; --bad:#f58b66; --wash:#1d2836;
  --s0:#79a9ff; --s1:#f5a25a; --s2:#4fc98a; --s3:#b897f0; --s4:#ee82b5; --s5:#9aa6b2; }
* { box-sizing: border-box }
body { margin:0; background:var(--paper); color:var(--ink);
  font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif; font-variant-numeric:tabular-nums }
main { max-width:1120px; margin:0 auto; padding:40px 28px 72px }
h1 { font-size:31px; line-height:1.2; margin:4px 0 10px; letter-spacing:-.015em; text-wrap:balance }
h2 { font-size:20px; margin:54px 0 4px; letter-spacing:-.01em }
h3 { font-size:15px; margin:22px 0 8px }
p { margin:6px 0; max-width:76ch } p.say, .soft { color:var(--soft) } small { color:var(--soft);
  font-size:12.5px }
.eyebrow { color:var(--accent); font-weight:650; font-size:12.5px; letter-spacing:.09em;
  text-transform:uppercase }
.facts { list-style:none; padding:0; margin:0; color:var(--soft); display:flex; flex-wrap:wrap; gap:2px 22px }
.card, figure.chart, .tile { background:var(--card); border:1px solid var(--faint); border-radius:12px }
.alert { border:1px solid var(--bad); border-left-width:5px; border-radius:8px; padding:10px 16px;
  margin:18px 0 }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(200px,1fr)); gap:14px; margin:24px 0 0 }
.tile { padding:15px 18px 13px } .tile b { display:block; font-size:33px; line-height:1.15;
  letter-spacing:-.02em }
.tile span { display:block; font-weight:600 } .tile small { display:block; margin-top:3px }
.charts { display:grid; grid-template-columns:repeat(auto-fill,minmax(320px,1fr)); gap:14px; margin:16px 0 }
figure { margin:0 } figure.chart { padding:13px 14px 9px; position:relative }
figure.chart figcaption { display:flex; justify-content:space-between; gap:10px; padding:0 2px 6px }
figure.chart figcaption span { color:var(--soft); font-size:12.5px }
svg { display:block; width:100%; height:auto; overflow:visible } .grid { stroke:var(--faint) }
.tick { fill:var(--soft); font-size:11px } .cursor { stroke:var(--soft); stroke-dasharray:3 3;
  visibility:hidden }
.line { fill:none; stroke-width:2; stroke-linejoin:round } .raw { fill:none; stroke-width:1; opacity:.3 }
.line.s0,.raw.s0 { stroke:var(--s0) } .line.s1,.raw.s1 { stroke:var(--s1) }
.line.s2,.raw.s2 { stroke:var(--s2) }
.line.s3,.raw.s3 { stroke:var(--s3) } .line.s4,.raw.s4 { stroke:var(--s4) }
.line.s5,.raw.s5 { stroke:var(--s5) }
.dot.s0 { fill:var(--s0) } .dot.s1 { fill:var(--s1) } .dot.s2 { fill:var(--s2) }
.dot.s3 { fill:var(--s3) } .dot.s4 { fill:var(--s4) } .dot.s5 { fill:var(--s5) }
.legend { display:flex; flex-wrap:wrap; gap:2px 14px; padding:4px 2px 2px; font-size:12.5px; color:var(--soft) }
.key::before { content:""; display:inline-block; width:11px; height:3px; border-radius:2px; margin:0 6px 3px 0 }
.key.s0::before { background:var(--s0) } .key.s1::before { background:var(--s1) }
.key.s2::before { background:var(--s2) }
.key.s3::before { background:var(--s3) } .key.s4::before { background:var(--s4) }
.key.s5::before { background:var(--s5) }
.tip { position:absolute; pointer-events:none; background:var(--ink); color:var(--paper); border-radius:7px;
  opacity:0;
  padding:5px 9px; font-size:12.5px; line-height:1.4; white-space:pre; transition:opacity .1s; z-index:2 }
.scroll { overflow-x:auto } table { border-collapse:collapse; width:100% }
th { text-align:left; font-size:12.5px; color:var(--soft); font-weight:600; padding:8px 12px;
  border-bottom:1px solid var(--line) }
td { padding:6px 12px; border-bottom:1px solid var(--faint); vertical-align:middle }
tr:last-child td { border-bottom:0 }
td.n, th.n { text-align:right; white-space:nowrap } tr.test td { font-weight:650; padding-top:16px }
tr.head td { color:var(--accent); font-weight:650 } td.bar { width:34% }
.track { position:relative; height:11px; border-radius:6px; background:var(--faint) }
.track i { position:absolute; inset:0 auto 0 0; border-radius:6px; background:var(--s0) }
.track u { position:absolute; top:-3px; bottom:-3px; width:2px; background:var(--ink) }
.track u.control { background:var(--s1) }
.rows { display:grid; grid-template-columns:repeat(auto-fit,minmax(470px,1fr)); gap:14px }
.rows { margin-top:14px } .bars { padding:8px 20px 16px }
.rows .card { padding:6px 18px 12px } .found { display:grid; grid-template-columns:1fr auto; gap:14px;
  align-items:center;
  padding:9px 0; border-bottom:1px solid var(--faint) } .found:last-child { border:0 }
.found .strip { display:flex; gap:7px } .found small { display:block }
.pic { width:56px; height:56px; border-radius:8px; display:block; background:#fff;
  outline:1px solid var(--faint) }
.pic.right { outline:3px solid var(--good); outline-offset:1px } .pic.big { width:72px; height:72px }
.guess { display:grid; grid-template-columns:auto 1fr; gap:16px; align-items:center; padding:10px 0;
  border-bottom:1px solid var(--faint) } .guess:last-child { border:0 } .guess ol { margin:3px 0 0;
  padding-left:20px }
.guess li { color:var(--soft); font-size:13.5px; line-height:1.45 } .guess li.right { color:var(--good);
  font-weight:600 }
.kinds { display:flex; height:25px; border-radius:7px; overflow:hidden; margin:5px 0 7px; gap:1px }
.kinds i { display:block; min-width:1px } .k0 { background:var(--good) } .k1 { background:var(--s0) }
.k2 { background:color-mix(in srgb,var(--s0) 62%,var(--card)) } .k3 { background:var(--s1) }
.k4 { background:var(--bad) } .swatch { display:inline-block; width:11px; height:11px; border-radius:3px;
  margin-right:6px }
.drawn { padding:0; margin-top:14px; overflow:hidden; background:#fff } .drawn img { display:block; width:100% }
details { margin:14px 0 } summary { cursor:pointer; font-weight:600 }
code { font-family:ui-monospace,Menlo,Consolas,monospace;
  font-size:12.8px } td code { overflow-wrap:anywhere } .set { color:var(--accent); font-weight:650 }
.columns { columns:300px; column-gap:14px; margin-top:14px }
.columns .card { padding:4px 6px 8px; break-inside:avoid; margin-bottom:14px }
.columns h3 { margin:12px 12px 2px } .columns td { padding:4px 12px }
#theme { float:right; border:1px solid var(--line); background:var(--card); color:var(--ink); border-radius:8px;
  font:inherit; font-size:13px; padding:4px 12px; cursor:pointer }
.credits { margin-top:54px; color:var(--soft); font-size:13px; white-space:pre-line }
@media (max-width:560px) { main { padding:22px 14px } .rows { grid-template-columns:1fr }
  .found { grid-template-columns:1fr } h1 { font-size:25px } }
@media print { #theme { display:none } .card, figure.chart, .tile { break-inside:avoid } }
"""

SCRIPT = """
const root = document.documentElement;
document.getElementById('theme').onclick = () => {
  const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme = dark ? 'light' : 'dark';
};
for (const svg of document.querySelectorAll('svg[data-chart]')) {
  const {x: [first, last, left, right], curves} = JSON.parse(svg.dataset.chart);
  const cursor = svg.querySelector('.cursor'), tip = document.createElement('div');
  tip.className = 'tip';
  svg.parentNode.append(tip);
  svg.onpointerleave = () => { tip.style.opacity = 0; cursor.style.visibility = 'hidden'; };
  svg.onpointermove = event => {
    const box = svg.getBoundingClientRect(), unit = box.width / svg.viewBox.baseVal.width;
    const wanted = first + ((event.clientX - box.left) / unit - left) / (right - left) * (last - first);
    const near = points => points.reduce((a, b) => Math.abs(b[0] - wanted) < Math.abs(a[0] - wanted) ? b : a);
    const hits = curves.map(([label, points]) => [label, near(points)]);
    const step = hits[0][1][0], at = left + (step - first) / Math.max(last - first, 1e-9) * (right - left);
    cursor.setAttribute('x1', at); cursor.setAttribute('x2', at); cursor.style.visibility = 'visible';
    tip.textContent = 'step ' + step + hits.map(([label, [, value]]) => '\\n' + label + '  ' + value).join('');
    tip.style.opacity = 1;
    const frame = svg.parentNode.getBoundingClientRect(), place = box.left - frame.left + at * unit;
    tip.style.left = Math.max(4, Math.min(place + 10, frame.width - tip.offsetWidth - 6)) + 'px';
    tip.style.top = box.top - frame.top + 12 + 'px';
  };
}
"""
