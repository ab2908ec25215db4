"""The same pictures for a terminal: rich renderables; printing them is the caller's business."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from monosemy.evaluation import SuiteResult
from monosemy.evaluation import Table as Figures
from monosemy.index.view import Exemplar, FeatureView
from monosemy.interpret import ConceptTable, Features
from monosemy.intervene import Steered, SteeringPair
from monosemy.report.numbers import MISSING, count, figure, metric_cells, percent
from monosemy.report.page import split_pair
from monosemy.report.tokens import one_line, peak_tokens, seen_tokens, visible

_BARS = "▁▂▃▄▅▆▇█"
_ABREAST = 3
"""Continuations beside each other."""
# Both a black and a white terminal must show them: weak activations colour the letters, strong
# ones the ground.
_HEAT = ("#c07a2c", "bold #c07a2c", "#1a1a1a on #e2a55c", "bold #1a1a1a on #f2922a")
_ARROWS = {"lower": "↓", "higher": "↑", "": ""}


def feature_table(views: Sequence[FeatureView]) -> Table:
    """One line a feature: how often it fires, how strongly, on what, and what it promotes."""
    table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
    for heading in ("feature", "fires on", "max"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("activations", no_wrap=True)
    table.add_column("peaks on", no_wrap=True, overflow="ellipsis", max_width=14)
    # Rich narrows only columns that may wrap; their cells are cut instead of wrapped.
    table.add_column("promotes", max_width=22)
    table.add_column("strongest context")
    for view in views:
        table.add_row(
            Text(str(view.id), "bold"),
            percent(view.density),
            figure(view.max),
            Text(sparkline(view.histogram[1], 10), "#c07a2c"),
            Text("  ".join(token for token, _ in peak_tokens(view, 2))),
            _cut(Text("  ".join(visible(token) for token, _ in view.promoted[:3]), "dim")),
            context_line(view.exemplars[0], view.max)
            if view.exemplars
            else Text("never fires", "dim"),
        )
    return table


def named_table(features: Features, found: ConceptTable, most: int = 10) -> Table:
    """One line for each of the features that stand best for a concept, no concept twice."""
    table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
    table.add_column("feature", justify="right", no_wrap=True)
    table.add_column("stands for", no_wrap=True)
    for heading in ("F1", "precision", "recall", "lift"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("strongest context")
    rows = sorted(found.rows(), key=lambda row: -(row["f1"] or 0))
    best = {row["label"]: row for row in reversed(rows) if row["label"] == row["concept"]}
    for row in sorted(best.values(), key=lambda row: -row["f1"])[:most]:
        view = features[row["feature"]]
        table.add_row(
            Text(str(view.id), "bold"),
            row["label"],
            *(f"{row[name]:.2f}" for name in ("f1", "precision", "recall")),
            f"{row['lift']:,.0f}",
            context_line(view.exemplars[0], view.max),
        )
    return table


def feature_panel(view: FeatureView, *, contexts: int = 6) -> Panel:
    """Everything about one feature; tokens coloured by activation, the peak underlined."""
    facts = Text.assemble(
        ("fires on ", "dim"),
        (percent(view.density), "bold"),
        (f" of {count(view.n_tokens)} tokens, strongest ", "dim"),
        (figure(view.max), "bold"),
        (", mean ", "dim"),
        (figure(view.mean_active), "bold"),
        (" where it fires", "dim"),
    )
    parts: list[RenderableType] = [facts]
    if view.names:
        parts.insert(0, Text("; ".join(view.names), "bold"))
    if sum(view.histogram[1]):
        edges, counts = view.histogram
        parts += [
            Text.assemble(
                (f"{figure(edges[0])} ", "dim"),
                (sparkline(counts, 40), "#c07a2c"),
                (f" {figure(edges[-1])}", "dim"),
            )
        ]
    parts += [
        Text(""),
        _logits("promotes  ", view.promoted),
        _logits("suppresses", view.suppressed),
    ]
    if view.exemplars:
        grid = Table.grid(padding=(0, 2), expand=True)
        grid.add_column(justify="right", no_wrap=True, style="bold #c07a2c")
        grid.add_column(ratio=1)
        grid.add_column(justify="right", style="dim", max_width=26, no_wrap=True)
        for exemplar in view.exemplars[:contexts]:
            grid.add_row(
                figure(exemplar.activations[exemplar.peak]),
                _context(exemplar, view.max),
                Text(exemplar.document),
            )
            grid.add_row("", "", "")
        parts += [Text(""), grid]
    else:
        parts += [Text(""), Text("It fired on none of the tokens looked at.", "dim")]
    return Panel(Group(*parts), title=f"Feature {view.id}", title_align="left", border_style="dim")


def suite_tables(result: SuiteResult) -> RenderableType:
    """What a suite found: its tables, and its verdict, or why there is no figure, beneath."""
    parts: list[RenderableType] = [Text(result.title, "bold #c07a2c"), Text("")]
    for table in result.tables:
        parts += [figures_table(table), Text("")]
    return Group(*parts, Text(result.skipped or result.verdict, "dim" if result.skipped else ""))


def figures_table(figures: Figures) -> Table:
    """Metrics beside those of the baselines, with 95% intervals."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    table.add_column(figures.title, no_wrap=True)
    for index, column in enumerate(figures.columns):
        table.add_column(Text(column), style="" if index else "#c07a2c")
    judged = any(row.judgement for row in figures.rows)
    if judged:
        table.add_column("judgement, remedy", min_width=24)
    for row in figures.rows:
        unit = f" {row.unit}" if row.unit not in ("", "share", "%") else ""
        name = Text.assemble((row.name, "bold"), (f"{unit} {_ARROWS[row.better]}", "dim"))
        cells: list[RenderableType] = []
        for cell in metric_cells(row):
            if cell is None:
                cells.append(Text(MISSING, "dim"))
                continue
            style = "bold" if cell.best else ""
            interval = f"\n{cell.interval}" if cell.interval else ""
            cells.append(Text.assemble((cell.value, style), (interval, "dim not bold")))
        if judged:
            remedy = f"\n{row.remedy}" if row.remedy else ""
            cells.append(Text.assemble((row.judgement, "dim"), remedy))
        table.add_row(name, *cells)
    return table


def steering_panel(pair: SteeringPair) -> Panel:
    """A continuation as it is and steered, side by side; what both share is dimmed."""
    shared, original, steered = split_pair(pair)
    grid = Table.grid(padding=(0, 3), expand=True)
    grid.add_column(ratio=1, overflow="fold")
    grid.add_column(ratio=1, overflow="fold")
    grid.add_row(Text("as it is", "dim"), Text("steered", "bold #c07a2c"))
    beginning = pair.prompt + shared
    grid.add_row(
        Text.assemble((beginning, "dim"), original),
        Text.assemble((beginning, "dim"), (steered, "#c07a2c")),
    )
    title = f"Feature {pair.feature}, scale {pair.scale:g}"
    return Panel(grid, title=title, title_align="left", border_style="dim")


def steered_table(found: Mapping[str, Steered]) -> Table:
    """Continuations side by side, each under its title, what an edit acted on in colour."""
    grid = Table.grid(padding=(0, 1), expand=True)
    for _ in range(_ABREAST):
        grid.add_column(ratio=1)
    panels = [_steered(title, steered) for title, steered in found.items()]
    for first in range(0, len(panels), _ABREAST):
        grid.add_row(*panels[first : first + _ABREAST])
    return grid


def _steered(title: str, steered: Steered) -> Panel:
    text = Text(overflow="fold")
    pairs = zip(steered.tokens, steered.touched, strict=True)
    for number, (token, touched) in enumerate(pairs):
        colour = "#c07a2c" if touched else ""
        text.append(token, f"dim {colour}" if number < steered.prompt else colour)
    acted = f"acts on {sum(steered.touched)} of {len(steered.tokens)} tokens"
    return Panel(
        text,
        title=title,
        title_align="left",
        subtitle=acted if any(steered.touched) else None,
        subtitle_align="left",
        border_style="dim",
    )


def sparkline(counts: Sequence[int], width: int) -> str:
    """A histogram as block characters, at most `width` of them."""
    if not counts:
        return ""
    size = -(-len(counts) // width)
    sums = [sum(counts[start : start + size]) for start in range(0, len(counts), size)]
    top = max(sums) or 1
    # The square root keeps the long tail of rare strong activations in sight.
    return "".join(_BARS[round((n / top) ** 0.5 * (len(_BARS) - 1))] if n else " " for n in sums)


def _logits(title: str, pairs: Sequence[tuple[str, float]], most: int = 8) -> Text:
    text = Text(f"{title}  ", "dim")
    for token, logit in pairs[:most]:
        text.append(visible(token), "not dim")
        text.append(f" {logit:+.2f}   ")
    return text


def _context(exemplar: Exemplar, maximum: float) -> Text:
    text = Text()
    for token in seen_tokens(exemplar, maximum):
        style = _heat(token.share, token.is_peak)
        for piece in token.pieces:
            if piece.kind == "newline":
                text.append("↵", style or "dim")
                text.append("\n")
            elif piece.kind == "fold":
                text.append("↵", style or "dim")
            elif piece.kind == "tab":
                text.append("→ ", style or "dim")
            elif piece.kind == "control":
                text.append(piece.text, style or "dim")
            else:
                text.append(piece.text, style)
    text.rstrip()
    return text


def concept_line(c: Mapping[str, float]) -> str:
    """Say how many features have a name, and how many concepts a feature (`coverage`)."""
    return (
        f"{c['labelled']:.0%} of {c['live']:,.0f} live features have a name; {c['covered']:.0%} of "
        f"{c['concepts']:.0f} concepts neither rare nor everywhere have a feature (held out)"
    )


def context_line(exemplar: Exemplar, maximum: float, before: int = 24) -> Text:
    """The context on one line, from a little before the peak, so that the peak is in sight."""
    pairs = one_line(exemplar)
    text = "".join(token for token, _ in pairs[: exemplar.peak])[-before:].lstrip(" ↵")
    line = _cut(Text(text, "dim"))
    for index, (token, activation) in enumerate(pairs[exemplar.peak :]):
        share = activation / maximum if maximum > 0 else 0.0
        line.append(token, _heat(share, index == 0) or "dim")
    return line


def _cut(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _heat(share: float, is_peak: bool) -> str:
    if share <= 0:
        return "underline" if is_peak else ""
    style = _HEAT[min(len(_HEAT) - 1, int(share * len(_HEAT)))]
    return f"not dim underline {style}" if is_peak else f"not dim {style}"
