"""The report of a run: one HTML file with curves, tables, pictures, videos and what the run was made of.

It needs no other file and no script, reads light and dark, and trusts nothing that it shows: all text is
escaped, and a content policy lets a browser load embedded pictures and nothing else.
"""

import base64
import math
import mimetypes
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from slotzoo.files import write_text
from slotzoo.viz import curves
from slotzoo.viz.records import VIDEOS, Evaluation, RunRecords, flatten, read_run, readable
from slotzoo.viz.tables import Table, format_value


MEGABYTE = 2**20
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
DOUBLE = "embedded double"
# Shown first, in this order; other measures follow by name.
FIRST = ("loss", "token_ce", "psnr", "ssim", "lpips", "fvd")
LAST = ("learning_rate", "grad_norm", "gradient_norm", "steps_per_second", "data_wait")
# Lines of a chart; more cannot be told apart.
MOST_SERIES = 6


def write_report(
    run_folder: str | Path, *, embed_limit: int = 6 * MEGABYTE, total_limit: int = 48 * MEGABYTE
) -> Path:
    """Write `report.html` in a run folder from what lies there; returns its path.

    Pictures and videos are part of the file, up to `embed_limit` bytes each and `total_limit` together; larger
    ones are linked. What is missing or cannot be read is said in a sentence and never stops the report.
    Raises DataError where there is no such folder.
    """
    folder = Path(run_folder)
    records = read_run(folder)
    media = _Media(folder, embed_limit, total_limit)
    latest = records.evaluations[-1] if records.evaluations else None
    title = _title(folder)
    body = [
        f"<header><h1>{escape(title)}</h1>{_facts(records)}</header>",
        _provenance(records),
        _problems(records.problems),
        *_tables(latest),
        *_gallery(latest, media),
        *_measured(records.measured, media),
        *_predictions(records.predictions, media),
        *_curves(records),
        *_history(records.evaluations[:-1], media),
        *_about(records),
    ]
    return write_text(folder / "report.html", _page(title, "".join(body)))


def write_tables(path: str | Path, title: str, tables: Sequence[Table]) -> Path:
    """Write tables and their curves as one HTML file that needs no other; returns its path."""
    body = f"<header><h1>{escape(title)}</h1></header>{''.join(_table(table) for table in tables)}"
    return write_text(path, _page(title, body))


def _page(title: str, body: str) -> str:
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{CSS}{curves.CSS}</style></head>\n"
        f"<body><main>{body}</main></body></html>\n"
    )


def _title(folder: Path) -> str:
    """runs/convs5_dmlab/seed0 -> "convs5_dmlab, seed 0"."""
    path = folder.resolve()
    seed = path.name.removeprefix("seed")
    return f"{path.parent.name}, seed {seed}" if seed.isdigit() else path.name


def _facts(records: RunRecords) -> str:
    """A few numbers that say where the run stands."""
    facts: list[tuple[str, str]] = []
    if records.step is not None:
        facts.append(("last logged step", f"{records.step:,}"))
    charts = records.series()
    for measure in ("loss", "steps_per_second"):
        values = charts.get(measure, {}).get("train", ([], []))[1]
        if values:
            facts.append((f"training {readable(measure)}", format_value(values[-1])))
    steps = [evaluation.step for evaluation in (*records.evaluations, *records.measured)]
    if steps:
        facts.append(("last evaluation", f"step {max(steps):,}"))
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts)
    return f'<dl class="facts">{items}</dl>' if facts else ""


def _provenance(records: RunRecords) -> str:
    found = records.provenance()
    if any(DOUBLE in text for text in found):
        return (
            '<p class="banner loud" role="note"><strong>Not the real data set.</strong> This run used an '
            f"<strong>{DOUBLE}</strong>: videos that slotzoo generates itself. Its numbers cannot be compared "
            "with published ones. Give <code>data.root=...</code> to use the real data.</p>"
        )
    if found:
        return f'<p class="banner">Data: {escape("; ".join(found))}.</p>'
    return '<p class="banner loud">The run card does not say where the data came from.</p>'


def _problems(problems: Sequence[str]) -> str:
    if not problems:
        return ""
    return f'<ul class="problems">{"".join(f"<li>{escape(problem)}</li>" for problem in problems)}</ul>'


def _tables(latest: Evaluation | None) -> Iterator[str]:
    if latest is None or not latest.tables:
        return
    yield f"<section><h2>Evaluation at {escape(latest.title)}</h2>"
    for table in latest.tables:
        yield _table(table)
    yield "</section>"


def _table(table: Table) -> str:
    arrow = {
        "higher": ' <abbr title="higher is better">↑</abbr>',
        "lower": ' <abbr title="lower is better">↓</abbr>',
    }
    head = "".join(
        f"<th scope=col>{escape(column)}{arrow.get(str(table.better.get(column)), '')}</th>"
        for column in table.columns
    )
    best = {column: table.best(column) for column in table.columns}
    body = []
    for row in table.rows:
        cells = []
        for column in table.columns:
            value = row.get(column)
            wins = best[column] is not None and value == best[column]
            cells.append(f"<td{' class=best' if wins else ''}>{escape(format_value(value))}</td>")
        body.append(f"<tr><th scope=row>{escape(str(row.get('name', '')))}</th>{''.join(cells)}</tr>")
    notes = "".join(f"<p class=note>{escape(note)}</p>" for note in table.notes)
    charts = "".join(_table_curve(curve) for curve in table.curves)
    grid = f'<div class="charts">{charts}</div>' if charts else ""
    return (
        f'<div class="card"><h3>{escape(table.title)}</h3><div class="scroll"><table><thead><tr><td></td>{head}'
        f"</tr></thead><tbody>{''.join(body)}</tbody></table></div>{notes}</div>{grid}"
    )


def _table_curve(curve) -> str:
    x, series = curve.get("x"), curve.get("series")
    if not isinstance(x, list) or not isinstance(series, dict):
        return ""
    lines = {
        str(name): (x, values)
        for name, values in series.items()
        if isinstance(values, list) and len(values) == len(x)
    }
    return curves.line_chart(
        lines,
        title=str(curve.get("title", "")),
        x_label=str(curve.get("x_label", "")),
        y_label=str(curve.get("y_label", "")),
    )


def _gallery(latest: Evaluation | None, media: "_Media") -> Iterator[str]:
    if latest is None or not latest.media:
        return
    yield f"<section><h2>Pictures and videos of {escape(latest.title)}</h2>"
    if any(path.name.startswith("rollout_") for path in latest.media):  # borders of tracks are colours of slots
        yield "<p class=note>Blue borders: frames that were given. Orange borders: predicted frames.</p>"
    yield '<div class="media">'
    # Moving pictures are small and come first, several in a row; strips take a row each.
    ordered = sorted(latest.media, key=lambda path: path.suffix.lower() == ".png")
    yield from (media.figure(path, readable(path.stem)) for path in ordered)
    yield "</div></section>"


def _measured(measured: Sequence[Evaluation], media: "_Media") -> Iterator[str]:
    """What experiments.evaluate measured after training, the newest step first."""
    for evaluation in reversed(measured):
        yield from _tables(evaluation)
        yield from _gallery(evaluation, media)


def _predictions(overviews: Sequence[Path], media: "_Media") -> Iterator[str]:
    """What the run made of pictures that a user brought, the newest first."""
    if overviews:
        yield '<section><h2>Pictures of your own</h2><div class="media">'
        yield from (media.figure(path, readable(path.parent.name)) for path in reversed(overviews))
        yield "</div></section>"


def _curves(records: RunRecords) -> Iterator[str]:
    charts = records.series()
    if not charts:
        return
    names = [n for n in FIRST if n in charts]
    names += sorted(n for n in charts if n not in FIRST and n not in LAST)
    names += [n for n in LAST if n in charts]
    yield '<section><h2>Curves</h2><div class="charts">'
    for name in names:
        lines = charts[name]
        shown = dict(list(lines.items())[:MOST_SERIES])
        values = [v for _, series in shown.values() for v in series if math.isfinite(v)]
        steep = name not in LAST and bool(values) and min(values) > 0 and max(values) / min(values) > 100
        title = readable(name)
        if len(lines) > len(shown):
            title += f" ({len(lines) - len(shown)} more series in metrics.jsonl)"
        yield curves.line_chart(shown, title=title, logarithmic=steep, smooth=name not in LAST)
    yield "</div></section>"


def _history(earlier: Sequence[Evaluation], media: "_Media") -> Iterator[str]:
    """The first picture of a few earlier evaluations: how the run got where it is."""
    chosen = [e for e in earlier if any(p.suffix.lower() == ".png" for p in e.media)]
    if not chosen:
        return
    if len(chosen) > 4:
        chosen = [chosen[round(i * (len(chosen) - 1) / 3)] for i in range(4)]
    yield '<section><h2>Earlier evaluations</h2><div class="media">'
    for evaluation in chosen:
        first = next(p for p in evaluation.media if p.suffix.lower() == ".png")
        yield media.figure(first, f"step {evaluation.step:,}: {readable(first.stem)}")
    yield "</div></section>"


def _about(records: RunRecords) -> Iterator[str]:
    yield "<section><h2>What the run was made of</h2>"
    if records.card:
        card, starts = dict(records.card), records.card.get("starts")
        if isinstance(starts, list) and starts:
            card |= {"starts": len(starts), "last start": starts[-1]}
        rows = "".join(
            f"<tr><th scope=row>{escape(key)}</th><td>{escape(str(value))}</td></tr>"
            for key, value in flatten(card)
        )
        table = f'<div class="scroll"><table class="plain">{rows}</table></div>'
        yield f"<details open><summary>Run card</summary>{table}</details>"
    if records.config:
        yield f"<details><summary>Configuration</summary><pre>{escape(records.config)}</pre></details>"
    if records.log:
        text = escape("\n".join(records.log))
        yield f"<details><summary>End of the log</summary><pre>{text}</pre></details>"
    yield "</section>"


class _Media:
    """Embeds files while there is room, and links them afterwards."""

    def __init__(self, folder: Path, each: int, total: int):
        self.folder, self.each, self.left = folder, each, total

    def figure(self, path: Path, caption: str) -> str:
        """An HTML figure with the picture or video, or a link to it."""
        text = escape(caption)
        video = path.suffix.lower() in VIDEOS
        try:
            size = path.stat().st_size
            content = path.read_bytes() if size <= min(self.each, self.left) else None
        except OSError as error:
            reason = escape(str(error.strerror))
            return (
                f'<figure class="card"><figcaption>{text}</figcaption><p class="missing">{reason}</p></figure>'
            )
        if content is None:
            link = quote(path.relative_to(self.folder).as_posix())
            inner = f'<a href="{link}">{escape(path.name)}</a> ({size / MEGABYTE:.1f} MB)'
            return (
                f'<figure class="card"><figcaption>{text}</figcaption>'
                f"<p>{inner} is too large to be part of this file.</p></figure>"
            )
        self.left -= size
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        alt = escape(caption, quote=True)
        if video:
            inner = (
                f'<video src="{source}" controls loop muted autoplay playsinline aria-label="{alt}"></video>'
            )
        else:
            inner = f'<div class="scroll"><img src="{source}" alt="{alt}"></div>'
        wide = ' class="card wide"' if path.suffix.lower() == ".png" else ' class="card"'
        return f"<figure{wide}><figcaption>{text}</figcaption>{inner}</figure>"


CSS = """
:root {
  color-scheme: light dark;
  --font: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  --page: #f5f6f8; --card: #ffffff; --ink: #1b1f27; --muted: #5a6270; --line: #e1e4ea; --accent: #0072b2;
  --loud: #fff1e0; --loud-line: #d55e00; --best: #e4f3ea;
  --series-0: #0072b2; --series-1: #d55e00; --series-2: #007a5a;
  --series-3: #a8477f; --series-4: #7a6400; --series-5: #555c66;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14161a; --card: #1d2026; --ink: #e8eaee; --muted: #a2a9b5; --line: #343943; --accent: #6cb9ea;
    --loud: #3a2610; --loud-line: #f08a3c; --best: #1d3a2b;
    --series-0: #6cb9ea; --series-1: #f08a3c; --series-2: #35c79c;
    --series-3: #e39cc5; --series-4: #e2cf5a; --series-5: #b9bfc9;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 var(--font); }
main { max-width: 1240px; margin: 0 auto; padding: 1.6rem 1.2rem 3rem; }
h1 { font-size: 1.6rem; margin: 0 0 .6rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
a { color: var(--accent); }
.facts { display: flex; flex-wrap: wrap; gap: .5rem 2.2rem; margin: 0; }
.facts dt { color: var(--muted); font-size: .8rem; }
.facts dd { margin: 0; font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.banner { border-left: 4px solid var(--accent); background: var(--card); padding: .6rem .9rem; }
.banner { border-radius: 4px; }
.banner.loud { border-color: var(--loud-line); background: var(--loud); }
.problems { color: var(--muted); padding-left: 1.2rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; }
.card { margin: 0 0 1rem; }
.charts, .media { display: grid; gap: 1rem; }
.charts, .media { grid-template-columns: repeat(auto-fill, minmax(min(380px, 100%), 1fr)); }
.charts .card, .media .card { margin: 0; min-width: 0; }
.charts { margin-bottom: 1rem; }
.media .wide { grid-column: 1 / -1; }
figcaption { font-weight: 600; font-size: .9rem; margin-bottom: .3rem; }
img, video { max-width: 100%; height: auto; display: block; background: #fff; border-radius: 3px; }
.media video, .media img[src^="data:image/gif"] { width: 100%; }
.scroll { overflow-x: auto; }
.wide img { max-width: max(100%, 760px); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th[scope=row], .plain th, .plain td { text-align: left; font-weight: 500; }
thead th { color: var(--muted); font-size: .85rem; }
td.best { background: var(--best); font-weight: 700; }
.plain { font-size: .85rem; }
.plain th { color: var(--muted); }
.plain td { white-space: normal; overflow-wrap: anywhere; }
abbr { text-decoration: none; }
.note, .missing { color: var(--muted); font-size: .87rem; margin: .3rem 0; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .5rem .9rem; }
details { margin-bottom: .7rem; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font-size: .82rem; line-height: 1.4; }
@media print { body { background: #fff; } .card { break-inside: avoid; } }
"""
