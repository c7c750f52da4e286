"""Charts as inline SVG, and bars of budgets: made here, of plain numbers. Colours come from the stylesheet.

Widths are percentages and heights pixels, so a chart fits a phone without its words being squeezed. Each has a name
for screen readers; the template puts the same numbers in a table beside it.
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from markupsafe import Markup

from tollkeeper.admin.dashboard.formats import short

HEIGHT: Final = 180
TOP: Final = 16
BOTTOM: Final = 22
SERIES_MAX: Final = 6
"""Colours there are; what is smaller than the largest is put together as `other`."""
SHARES: Final = (0.0, 0.5, 1.0)
"""Of an axis, where there is a line."""
STEPS: Final = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)


class Series(msgspec.Struct, frozen=True):
    """One colour of a chart: a value for each column."""

    name: str
    values: tuple[float, ...]

    @property
    def total(self) -> float:
        """All columns together."""
        return sum(self.values)


def largest(series: Sequence[Series]) -> list[Series]:
    """The largest, and all others as one, so that there is a colour for each."""
    ranked = sorted((s for s in series if s.total), key=lambda s: -s.total)
    if len(ranked) <= SERIES_MAX:
        return ranked
    kept, rest = ranked[: SERIES_MAX - 1], ranked[SERIES_MAX - 1 :]
    columns = zip(*(s.values for s in rest), strict=True)
    return [*kept, Series("other", tuple(map(sum, columns)))]


def ceiling(highest: float) -> float:
    """The round number that an axis ends at; values are whole numbers."""
    size = 1.0
    while size * 10 <= highest:
        size *= 10
    return next(step * size for step in STEPS if step * size >= highest)


def columns(
    name: str, labels: Sequence[str], series: Sequence[Series], show: Callable[[float], str] = short
) -> Markup:
    """A stacked column for each label. `show` writes a value."""
    sums = (
        [sum(values) for values in zip(*(s.values for s in series), strict=True)] if series else [0.0] * len(labels)
    )
    top = ceiling(max(sums, default=0.0))
    scale = (HEIGHT - TOP - BOTTOM) / top
    floor = HEIGHT - BOTTOM
    width = 100 / max(1, len(labels))
    parts = [_grid(scale * top)]
    for index, label in enumerate(labels):
        said = [f"{s.name}: {show(s.values[index])}" for s in series if s.values[index]]
        parts.append(Markup("<g><title>{}</title>").format("\n".join([label, *said])))
        # the whole column can be pointed at
        parts.append(_box("hit", index * width, width, TOP, floor - TOP))
        y = float(floor)
        for number, each in enumerate(series):
            height = each.values[index] * scale
            if height > 0:
                y -= height
                parts.append(
                    _box(f"series-{number}", index * width + width * 0.14, width * 0.72, y, max(height, 1.0))
                )
        parts.append(Markup("</g>"))
    parts += [_value(share * top, scale, show) for share in SHARES if share]
    parts += [_label(labels, at) for at in sorted({0, len(labels) // 2, len(labels) - 1}) if labels]
    return Markup('<svg class="chart" role="img" aria-label="{}" width="100%" height="{}">{}</svg>').format(
        name, HEIGHT, Markup("").join(parts)
    )


def _grid(height: float) -> Markup:
    line = Markup('<line class="grid" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>')
    return Markup("").join(line.format(HEIGHT - BOTTOM - share * height) for share in SHARES)


def _value(value: float, scale: float, show: Callable[[float], str]) -> Markup:
    """What a line stands for; above the columns, so that none hides it."""
    return Markup('<text x="0" y="{:.1f}">{}</text>').format(HEIGHT - BOTTOM - value * scale - 4, show(value))


def _box(kind: str, x: float, width: float, y: float, height: float) -> Markup:
    return Markup('<rect class="{}" x="{:.3f}%" width="{:.3f}%" y="{:.1f}" height="{:.1f}"/>').format(
        kind, x, width, y, height
    )


def _label(labels: Sequence[str], at: int) -> Markup:
    last = len(labels) - 1
    anchor = "start" if at == 0 else "end" if at == last else "middle"
    x = 0.0 if at == 0 else 100.0 if at == last else 100 * (at + 0.5) / len(labels)
    return Markup('<text x="{:.2f}%" y="{}" text-anchor="{}">{}</text>').format(x, HEIGHT - 5, anchor, labels[at])


def meter(name: str, used: int, held: int, limit: int) -> Markup:
    """A bar of what a limit has left; `used` includes `held`. The words beside it say the same."""
    share = 100.0 if limit <= 0 else min(100.0, 100 * used / limit)
    sure = 100.0 if limit <= 0 else min(100.0, 100 * max(0, used - held) / limit)
    level = "full" if share >= 100 else "high" if share >= 80 else "fine"
    return Markup(
        '<svg class="meter {}" role="img" aria-label="{}: {:.0f}% used" width="100%" height="6">'
        '<rect class="rail" width="100%" height="6" rx="3"/><rect class="held" width="{:.2f}%" height="6" rx="3"/>'
        '<rect class="used" width="{:.2f}%" height="6" rx="3"/></svg>'
    ).format(level, name, share, share, sure)
