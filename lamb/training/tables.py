"""The tables and the chart of an ablation. "mean ± standard deviation" is over seeds.

A difference is taken between runs of the same seed, with Student's 95 % interval over seeds: it tells what other seeds
would give on these very scenes. [O]
"""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import AblationConfig, TableConfig
from ..evaluation import gap
from ..inference.picture import save

COLUMNS = {  # a measure of a run: heading, factor, decimals
    "l2": ("L2", 1, 3),
    "cosine": ("cosine", 1, 3),
    "l2_unit": ("L2 (unit)", 1, 3),
    "cs_global": ("CS global", 1, 4),
    "cs_token": ("CS token", 1, 4),
    "audio_to_text_r1": ("R@1 a→t", 100, 1),
    "audio_to_text_r10": ("R@10 a→t", 100, 1),
    "text_to_audio_r1": ("R@1 t→a", 100, 1),
    "text_to_audio_r10": ("R@10 t→a", 100, 1),
    "cross_entropy": ("cross entropy", 1, 3),
    "bleu_4": ("BLEU-4", 100, 1),
    "rouge_l": ("ROUGE-L", 100, 1),
    "cider_d": ("CIDEr-D", 100, 1),
    "named": ("named %", 100, 1),
    "all_named": ("all named %", 100, 1),
    "distinct": ("distinct", 1, 0),
}
Results = Mapping[tuple[str, int], Mapping[str, float]]  # (variant, seed): the measures of that run


def difference(of: Mapping[int, float], against: Mapping[int, float]) -> dict[str, float] | None:
    """Mean of of[seed] - against[seed] over the seeds of both, and its 95 % interval; None for fewer than two seeds."""
    from scipy.stats import t

    pairs = [of[seed] - against[seed] for seed in of if seed in against]
    if len(pairs) < 2:
        return None
    mean = statistics.mean(pairs)
    half = float(t.ppf(0.975, len(pairs) - 1)) * statistics.stdev(pairs) / len(pairs) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}


def summary(config: AblationConfig, table: TableConfig, results: Results) -> dict[str, Any]:
    """What a table shows so far: for every row and column the values by seed, mean, deviation and difference."""
    base = table.against or next(iter(config.variants))
    rows = []
    for label, variant in table.rows.items():
        own, other = ({s: results[v, s] for s in config.seeds if (v, s) in results} for v in (variant, base))
        cells: dict[str, Any] = {}
        for column in table.columns if own else ():
            values = {seed: found[column] for seed, found in own.items()}
            against = {seed: found[column] for seed, found in other.items()}
            cells[column] = {
                "values": values,
                "mean": statistics.mean(values.values()),
                "deviation": statistics.stdev(values.values()) if len(values) > 1 else None,
                "difference": None if variant == base else difference(values, against),
            }
        rows.append({"row": label, "variant": variant, "runs": len(own), "columns": cells})
    return {"title": table.title, "against": base, "columns": list(table.columns), "rows": rows}


def markdown(table: Mapping[str, Any]) -> str:
    """What `summary` returned, as two Markdown tables: of means and of differences."""
    columns, rows, base = table["columns"], table["rows"], table["against"]
    headings = ["", "runs", *(COLUMNS[column][0] for column in columns)]
    head = [f"| {' | '.join(headings)} |", f"|---|{'---:|' * (len(columns) + 1)}"]

    def line(row: Mapping[str, Any], show: Any) -> str:
        cells = [show(column, row["columns"][column]) if row["columns"] else "–" for column in columns]
        return f"| {' | '.join([row['row'], str(row['runs']), *cells])} |"

    lines = [f"**{table['title']}**", "", *head, *(line(row, _mean) for row in rows)]
    if others := [row for row in rows if row["variant"] != base]:
        name = next((row["row"] for row in rows if row["variant"] == base), base)
        lines += ["", f"Difference from “{name}”, same seeds, with its 95 % interval; bold where 0 lies outside:", ""]
        lines += [*head, *(line(row, _difference) for row in others)]
    return "\n".join(lines)


def _mean(column: str, cell: Mapping[str, Any]) -> str:
    _, factor, decimals = COLUMNS[column]
    spread = "" if cell["deviation"] is None else f" ± {cell['deviation'] * factor:.{decimals}f}"
    return f"{cell['mean'] * factor:.{decimals}f}{spread}"


def _difference(column: str, cell: Mapping[str, Any]) -> str:
    if cell["difference"] is None:
        return "–"
    _, factor, decimals = COLUMNS[column]
    mean, low, high = (cell["difference"][key] * factor for key in ("mean", "low", "high"))
    text = f"{mean:+.{decimals}f} [{low:+.{decimals}f}, {high:+.{decimals}f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def chart(tables: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """A picture with a row of panels for each table and a panel for each column.

    Every run is a dot. A line marks the mean of its variant, a dashed line that of the variant compared with.
    """
    from matplotlib.figure import Figure

    widest = max(len(table["columns"]) for table in tables.values())
    heights = [len(table["rows"]) + 2.5 for table in tables.values()]
    figure = Figure(figsize=(2.0 + 2.1 * widest, 0.3 * sum(heights)), layout="constrained")
    grid = figure.subplots(len(tables), widest, squeeze=False, height_ratios=heights)
    for panels, table in zip(grid, tables.values(), strict=True):
        for axes in panels[len(table["columns"]) :]:
            axes.set_axis_off()
        for axes, column in zip(panels, table["columns"], strict=False):
            _panel(axes, table, column)
        panels[0].set_yticklabels([row["row"] for row in table["rows"]])
        panels[0].set_title(table["title"], loc="left", fontsize=10, fontweight="bold")
    save(figure, file)


def _panel(axes: Any, table: Mapping[str, Any], column: str) -> None:
    heading, factor, _ = COLUMNS[column]
    rows = table["rows"]
    for y, row in enumerate(rows):
        if row["columns"]:
            cell, reference = row["columns"][column], row["variant"] == table["against"]
            colour, mean = gap.TEXT if reference else gap.AUDIO, cell["mean"] * factor
            values = [value * factor for value in cell["values"].values()]
            axes.plot(values, [y] * len(values), "o", ms=4, color=colour, alpha=0.6)
            axes.plot([mean] * 2, [y - 0.3, y + 0.3], color=colour, lw=2)
            if reference:
                axes.axvline(mean, color=colour, lw=0.8, ls="--", zorder=0)
    axes.set(xlabel=heading, ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)), yticklabels=[])
    axes.grid(axis="y", color="0.92", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
