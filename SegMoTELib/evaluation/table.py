"""The summary as text."""

from __future__ import annotations

from SegMoTELib.evaluation.results import BOX_METRIC, MODES, NOC_CAP, Estimate, Evaluation, Row

MASK_MODES = tuple(mode for mode in MODES if mode != "clicks")
METRIC_TITLES = {"dice": "Dice", "iou": "IoU", "surface_dice": "surface Dice"}


def format_evaluation(result: Evaluation) -> str:
    """Return the tables that ``segmote evaluate`` prints: overall with intervals, per modality, per data set.

    Data sets show the first method only; ``write_json`` has all of them.
    """
    rows = result.summary()
    if not rows:
        return "No target was large enough to evaluate.\n" + _left_out(result)
    first = rows[0].method
    blocks = []
    for metric, title in METRIC_TITLES.items():
        blocks.append(_block(f"{title}, mean over data sets [95 % interval]",
                             _lines(rows, "overall", metric, intervals=True)))
    blocks.append(_boxes_drawn(rows))
    blocks.append(_block(f"Clicks needed, at most {NOC_CAP}, mean over data sets [95 % interval]", _click_lines(rows)))
    blocks.append(_block("Dice per modality", _lines(rows, "modality", "dice", intervals=False)))
    blocks.append(_block(f"Dice per data set, {first}",
                         _lines([row for row in rows if row.method == first], "dataset", "dice", intervals=False)))
    return "\n".join(blocks) + _left_out(result)


def _block(title: str, lines: list[list[str]]) -> str:
    """Align columns: the first two to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [title]
    for line in lines:
        cells = [cell.ljust(width) if index < 2 else cell.rjust(width)
                 for index, (cell, width) in enumerate(zip(line, widths, strict=True))]
        text.append("  " + "  ".join(cells).rstrip())
    return "\n".join(text) + "\n"


def _lines(rows: list[Row], level: str, metric: str, intervals: bool) -> list[list[str]]:
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        if row.level == level:
            found.setdefault((row.name, row.method), {})[row.mode] = row
    lines = [["", "method", "images", "targets", *(MODES[mode] for mode in MASK_MODES)]]
    for (name, method), modes in found.items():
        largest = max(modes.values(), key=lambda row: row.targets)
        cells = [_cell(modes[mode].metrics[metric], intervals) if mode in modes else "-" for mode in MASK_MODES]
        lines.append([name, method, str(largest.images), str(largest.targets), *cells])
    return lines


def _boxes_drawn(rows: list[Row]) -> str:
    drawn = [row.metrics[BOX_METRIC].mean for row in rows if (row.level, row.mode) == ("overall", "boxes")]
    return f"A box per piece: {drawn[0]:.2f} boxes a target, mean over data sets\n" if drawn else ""


def _click_lines(rows: list[Row]) -> list[list[str]]:
    lines = [["", "method", "to Dice 0.85", "reached", "to Dice 0.90", "reached"]]
    for row in rows:
        if row.level == "overall" and row.mode == "clicks":
            cells = []
            for goal in (85, 90):
                cells += [_cell(row.metrics[f"noc{goal}"], intervals=True, digits=1),
                          f"{row.metrics[f'reached{goal}'].mean:.0%}"]
            lines.append([row.name, row.method, *cells])
    return lines


def _cell(estimate: Estimate, intervals: bool, digits: int = 3) -> str:
    text = f"{estimate.mean:.{digits}f}"
    return f"{text} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]" if intervals else text


def _left_out(result: Evaluation) -> str:
    notes = []
    for counts, what in ((result.skipped, f"targets below {result.settings['min_target_pixels']} pixels skipped"),
                         (result.untargeted, "images without a target")):
        if counts:
            listed = ", ".join(f"{name} {number}" for name, number in counts.items())
            notes.append(f"{sum(counts.values())} {what} ({listed})")
    if result.absent:
        notes.append(f"{len(result.absent)} data sets without images in the split {result.settings['split']!r} "
                     f"left out ({', '.join(result.absent)})")
    if result.failures:
        notes.append(f"{len(result.failures)} images could not be evaluated:")
        notes += [f"  {failure.dataset}/{failure.image}: {failure.reason}" for failure in result.failures]
    return "".join(f"\n{note}" for note in notes) + "\n"
