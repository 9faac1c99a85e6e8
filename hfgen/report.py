"""The gallery: one HTML page, complete in itself, of what a few runs made, and a summary.json beside it."""

from __future__ import annotations

import base64
import html
import io
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from .runs import Run, read_run, write_json
from .tables import format_number, format_seconds

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --page: #f6f7f9; --card: #fff; --line: #d9dee3;
  --train: #2563eb; --eval: #d9480f; --good: #1a7f37; --bad: #b42318; --code: #eef1f4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #9aa4af; --page: #111418; --card: #1a1e24;
  --line: #333a43; --train: #7aa7ff; --eval: #ffa066; --good: #5cc97b; --bad: #ff8a80; --code: #242a32; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.3rem; margin: 0; } h3 { font-size: 1rem; margin: 0; }
p { margin: .25rem 0; } a { color: var(--train); } .soft { color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.1rem;
  margin-top: 1.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child > * { border-bottom: 0; } thead th { color: var(--soft); font-weight: 600; white-space: nowrap; }
pre { background: var(--code); border-radius: .4rem; padding: .6rem .8rem; margin: .6rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.good { color: var(--good); } .bad { color: var(--bad); }
.grid { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr));
  margin-top: .7rem; }
figure { margin: 0; min-width: 0; } figcaption { font-size: .88rem; color: var(--soft); margin-top: .35rem; }
figcaption strong { display: block; color: var(--ink); font-size: .95rem; }
img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: .3rem;
  background: #fff; }
svg { display: block; width: 100%; height: auto; stroke-linejoin: round; stroke-linecap: butt; }
.scores { columns: 17rem; column-gap: 2rem; margin: .4rem 0; font-size: .93rem; font-variant-numeric: tabular-nums; }
.scores div { display: flex; justify-content: space-between; gap: 1rem; padding: .25rem 0; break-inside: avoid;
  border-bottom: 1px solid var(--line); }
dd { margin: 0; }
section > h3 { margin-top: 1.1rem; }
td.text { white-space: pre-wrap; max-width: 40rem; font-size: .9rem; }
@media (max-width: 32rem) { table { font-size: .85rem; } th, td { padding-right: .5rem; } }
.key::before { content: ""; display: inline-block; width: 1.1em; height: .2em; margin: 0 .35em .25em 0;
  background: currentColor; } .key.train { color: var(--train); } .key.eval { color: var(--eval); }
"""

# Logged beside the metrics, and no curve to look at.
_NO_CURVES = re.compile(r"^(step|epoch|total_flos|train_.*|.*_runtime|.*_per_second|.*_steps_per_second)$")
_TRAIN_COLOR, _EVAL_COLOR, _INK = "#010203", "#010204", "#010205"


def loss_curves(log_history: list[dict[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """The curves in a log.

    Args:
        log_history: transformers' list of logged dictionaries, each with its `step`.

    Returns:
        Metric -> `"train"` or `"eval"` (the entries `eval_<metric>`) -> points (step, value), finite ones only;
        `loss` first, then in the order of the log. A metric with one point of each kind has no curve.
    """
    curves: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(dict)
    for entry in log_history:
        if "alarm" in entry:
            continue
        for key, value in entry.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
            if number and "step" in entry and not _NO_CURVES.match(key):
                kind = "eval" if key.startswith("eval_") else "train"
                curves[key.removeprefix("eval_")].setdefault(kind, []).append((entry["step"], value))
    drawn = {name: kinds for name, kinds in curves.items() if max(map(len, kinds.values())) > 1}
    return dict(sorted(drawn.items(), key=lambda item: item[0] != "loss"))


def curve_svg(kinds: dict[str, list[tuple[float, float]]], salt: str) -> str:
    """One metric's curves as an inline SVG whose colours are the page's own, in the light and in the dark.

    Args:
        kinds: `"train"` and/or `"eval"` -> points (step, value).
        salt: makes the ids in the SVG its own: several stand in one page.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = {"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 9, "font.family": "sans-serif"}
    style |= {f"{part}.color": _INK for part in ("text", "xtick", "ytick")}
    style |= {"axes.edgecolor": _INK, "axes.labelcolor": _INK}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(3.6, 2.1), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        for kind, color in (("train", _TRAIN_COLOR), ("eval", _EVAL_COLOR)):
            points = kinds.get(kind, [])
            marker = "o" if len(points) < 30 and kind == "eval" else None
            axes.plot(*zip(*points, strict=True) if points else ((), ()), color=color, marker=marker, markersize=3)
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.locator_params(nbins=5)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Ids of groups repeat from plot to plot; those that something refers to are salted.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|(?<=<g) id=\"[^\"]*\"", "", svg, flags=re.DOTALL)
    tag, _, rest = svg.partition(">")
    svg = re.sub(r' (xmlns(:\w+)?|version|width|height)="[^"]*"', "", tag) + ">" + rest
    for placeholder, color in ((_TRAIN_COLOR, "var(--train)"), (_EVAL_COLOR, "var(--eval)"), (_INK, "currentColor")):
        svg = svg.replace(placeholder, color)
    return svg


def _escape(text: Any) -> str:
    return html.escape(str(text), quote=True)


def _breakable(name: str) -> str:
    """A name, or sacrebleu's signature, that a narrow screen may break after its underscores and bars."""
    return _escape(name).replace("_", "_<wbr>").replace("|", "|<wbr>")


def _scores(metrics: dict[str, float]) -> str:
    rows = "".join(
        f"<div><dt>{_breakable(k)}</dt><dd>{_breakable(format_number(v))}</dd></div>" for k, v in metrics.items()
    )
    return f'<h3>Scores</h3><dl class="scores">{rows}</dl>' if rows else ""


def _pictures(run: Run) -> str:
    parts = []
    for figure in run.figures:
        path = run.directory / "figures" / Path(figure["file"]).name
        if not path.is_file():
            continue
        data = base64.b64encode(path.read_bytes()).decode()
        title, caption = _escape(figure.get("title", "")), _escape(figure.get("caption", ""))
        parts.append(
            f'<figure><img alt="{title}" src="data:image/png;base64,{data}">'
            f"<figcaption><strong>{title}</strong>{caption}</figcaption></figure>"
        )
    return f'<h3>Pictures</h3><div class="grid">{"".join(parts)}</div>' if parts else ""


def _samples(run: Run) -> str:
    """What a text model wrote: a column a key, a row a sample."""
    if not run.samples:
        return ""
    names = list(dict.fromkeys(name for row in run.samples for name in row))
    head = "".join(f"<th>{_escape(name)}</th>" for name in names)
    rows = "".join(
        "<tr>" + "".join(f'<td class="text">{_escape(row.get(name, ""))}</td>' for name in names) + "</tr>"
        for row in run.samples
    )
    return f'<h3>Output</h3><div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _curves(run: Run, anchor: str) -> str:
    curves = loss_curves(run.log_history)
    if not curves:
        return ""
    plots = "".join(
        f"<figure><figcaption><strong>{_escape(name)}</strong></figcaption>{curve_svg(kinds, anchor + name)}</figure>"
        for name, kinds in curves.items()
    )
    keys = '<span class="key train">training</span> &nbsp; <span class="key eval">evaluation</span>'
    return f'<h3>Curves</h3><p class="soft">{keys}</p><div class="grid">{plots}</div>'


def _alarms(run: Run) -> str:
    if not run.alarms:
        return '<h3>Alarms</h3><p class="good">no alarm</p>'
    rows = "".join(
        f'<tr><td class="bad">{_escape(a["alarm"])}</td><td>step {_escape(a.get("step", "?"))}</td>'
        f"<td>{_escape(a.get('message', ''))}</td></tr>"
        for a in run.alarms
    )
    return f'<h3>Alarms</h3><div class="wide"><table><tbody>{rows}</tbody></table></div>'


def _title(run: Run) -> str:
    return f"{run.recipe}: {run.config}" if run.config else run.recipe


def _section(run: Run, anchor: str) -> str:
    facts = [] if run.error else [f"trained in {format_seconds(run.seconds)}"]
    if name := run.dataset.get("name"):
        facts.append(f"on {name}")
    if run.num_processes > 1:
        facts.append(f"{run.num_processes} processes")
    facts += [f"{package} {version}" for package, version in run.versions.items()]
    command = f"<pre><code>{_escape(run.command)}</code></pre>" if run.command else ""
    if run.error:
        body = f'<p class="bad">{_escape(run.error)}</p>'
    else:
        body = _pictures(run) + _samples(run) + _scores(run.metrics) + _alarms(run)
    return (
        f'<section class="card" id="{anchor}"><h2>{_escape(_title(run))}</h2>'
        f'<p class="soft">{_escape(" · ".join(facts))}</p>{command}{body}{_curves(run, anchor)}'
        "</section>"
    )


def _alarm_cell(run: Run) -> str:
    if run.error:
        return f'<td class="bad">failed: {_escape(run.error)}</td>'
    if run.alarms:
        names = ", ".join(dict.fromkeys(a["alarm"] for a in run.alarms))
        return f'<td class="bad">{_breakable(names)}</td>'
    return '<td class="good">no alarm</td>'


def _headline(run: Run) -> str:
    """The first metric, which is the one that a recipe's `evaluate` puts first."""
    return next((f"{name} {format_number(value)}" for name, value in run.metrics.items()), "")


def render_gallery(runs: list[Run], seconds: float) -> str:
    """The page's HTML.

    Args:
        runs: in order of display.
        seconds: what they took together.
    """
    anchors = [f"run-{i}" for i in range(len(runs))]
    rows = "".join(
        f'<tr><td><a href="#{anchor}">{_escape(run.recipe)}</a></td><td>{_escape(run.config or "")}</td>'
        f"<td>{format_seconds(run.seconds) if run.seconds else ''}</td><td>{_breakable(_headline(run))}</td>"
        f"{_alarm_cell(run)}</tr>"
        for run, anchor in zip(runs, anchors, strict=True)
    )
    count = f"{len(runs)} run{'' if len(runs) == 1 else 's'}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>hfgen</title>'
        f"<style>{_STYLE}</style></head><body>"
        f'<header><h1>hfgen</h1><p class="soft">{count} in {format_seconds(seconds)}</p></header>'
        '<main><div class="card wide"><table><thead><tr><th>Recipe</th><th>Config</th><th>Time</th><th>Score</th>'
        f"<th>Alarms</th></tr></thead><tbody>{rows}</tbody></table></div>"
        f"{''.join(map(_section, runs, anchors))}</main></body></html>\n"
    )


def summarise(run: Run, output_dir: Path) -> dict[str, Any]:
    """A run's entry in summary.json."""
    entry = {
        "recipe": run.recipe,
        "config": run.config,
        "command": run.command,
        "seconds": run.seconds,
        "metrics": run.metrics,
        "alarms": run.alarms,
        "run_dir": Path(os.path.relpath(run.directory, output_dir)).as_posix(),
    }
    return entry | ({"error": run.error} if run.error else {})


def write_gallery(output_dir: Path, runs: list[Path | Run], seconds: float | None = None, **summary: Any) -> Path:
    """Writes index.html and summary.json.

    Args:
        output_dir: folder to write to.
        runs: run folders, or [`Run`]s (one that failed has no folder to read); in order of display.
        seconds: wall-clock time of all together; by default the sum of their training times.
        summary: further keys of summary.json.

    Returns:
        Path: index.html.

    Raises:
        BadInput: a folder is no run.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    read = [run if isinstance(run, Run) else read_run(run) for run in runs]
    total = sum(run.seconds for run in read) if seconds is None else seconds
    page = output_dir / "index.html"
    aside = output_dir / ".index.html.tmp"
    aside.write_text(render_gallery(read, total), encoding="utf-8")
    aside.replace(page)
    entries = [summarise(run, output_dir) for run in read]
    write_json(output_dir / "summary.json", {**summary, "seconds": round(total, 1), "runs": entries})
    return page
