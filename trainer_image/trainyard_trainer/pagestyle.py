"""The style of `report.html`. Colours are variables, given twice: for the light and for the dark."""

LIGHT = (
    "--page:#ffffff;--ink:#1b1f24;--faint:#656d76;--line:#d0d7de;--panel:#f6f8fa;--accent:#0969da;--heat:9,105,218;"
    "--s0:#0969da;--s1:#bf3989;--s2:#1a7f37;--s3:#bc4c00;--s4:#8250df;--s5:#0a7d91;--s6:#9a6700;--s7:#cf222e;--s8:#57606a;--s9:#4d7c0f"
)
DARK = (
    "--page:#0f1318;--ink:#e6edf3;--faint:#9198a1;--line:#30363d;--panel:#171c23;--accent:#58a6ff;--heat:88,166,255;"
    "--s0:#58a6ff;--s1:#f778ba;--s2:#56d364;--s3:#ffa657;--s4:#bc8cff;--s5:#39c5cf;--s6:#e3b341;--s7:#ff7b72;--s8:#b1bac4;--s9:#a3d65c"
)

_SERIES = "".join(
    f".c{i}{{stroke:var(--s{i})}}.d{i}{{fill:var(--s{i})}}.k{i}::before{{background:var(--s{i})}}" for i in range(10)
)

STYLE = f""":root{{color-scheme:light dark;{LIGHT}}}
@media (prefers-color-scheme:dark){{:root{{{DARK}}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}}
header,main{{max-width:1200px;margin:0 auto;padding:0 20px}}
h1{{font-size:24px;margin:24px 0 8px}}
h2{{font-size:19px;margin:36px 0 12px;padding-top:8px;border-top:1px solid var(--line)}}
h3{{font-size:16px;margin:24px 0 8px}}
dl{{display:flex;flex-wrap:wrap;gap:6px 28px;margin:0 0 8px}}
dt{{color:var(--faint);font-size:12px}}
dd{{margin:0;overflow-wrap:anywhere}}
nav{{position:sticky;top:0;background:var(--page);border-bottom:1px solid var(--line);padding:8px 20px;display:flex;flex-wrap:wrap;
gap:4px 16px;justify-content:center;z-index:1}}
a{{color:var(--accent);text-decoration:none}}
p.note,figcaption,.legend{{color:var(--faint);font-size:13px}}
.charts{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr));gap:16px}}
.pictures{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,250px),1fr));gap:14px}}
.looks{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,200px),1fr));gap:14px}}
figure{{margin:0;padding:12px;background:var(--panel);border:1px solid var(--line);border-radius:8px;min-width:0}}
figure img{{max-width:100%;height:auto;display:block;margin:0 auto 6px;border-radius:4px}}
figcaption{{overflow-wrap:anywhere}}
.weak{{opacity:.75}}
svg{{width:100%;height:auto;display:block}}
svg text{{fill:var(--faint);font-size:11px}}
svg polyline{{fill:none;stroke-width:1.6;stroke-linejoin:round}}
.grid{{stroke:var(--line);stroke-width:.7}}
.axis{{stroke:var(--faint);stroke-width:.8}}
.legend{{display:flex;flex-wrap:wrap;gap:2px 14px}}
.key::before{{content:"";display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:5px}}
{_SERIES}
.scroll{{overflow-x:auto}}
table{{border-collapse:collapse;font-size:14px}}
th,td{{text-align:left;padding:4px 12px 4px 0;border-bottom:1px solid var(--line);vertical-align:top}}
th{{color:var(--faint);font-weight:500}}
.number{{text-align:right;font-variant-numeric:tabular-nums}}
.matrix td,.matrix th{{padding:5px 9px;border:1px solid var(--page);text-align:center}}
.matrix th.true{{text-align:right}}
.bars .row{{display:grid;grid-template-columns:minmax(70px,28%) 1fr 56px;gap:8px;align-items:center;font-size:13px}}
.bars .name{{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}}
.bars .bar span{{display:block;height:11px;border-radius:3px;background:var(--s0)}}
pre{{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:12px;overflow:auto;font-size:12.5px}}
summary{{cursor:pointer;color:var(--accent)}}
@media print{{nav{{display:none}}figure{{break-inside:avoid}}}}"""
