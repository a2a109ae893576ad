"""Where the marks of a chart stand: geometry alone, so that the template draws and decides nothing.

A chart is 400 units wide whatever the screen. A phone shows it at about that width, so its letters stay readable there;
a larger screen shows several side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

WIDTH: Final = 400
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 18, 34
"""Room for the letters around a chart."""
LETTER: Final = 6.2
"""Width of one at the size of a label; a generous guess, as no font is known here."""
LINE: Final = 13
"""Height of a label."""
_MARK: Final = 6
"""Half the width of a mark, with some air."""
_NEARBY: Final = tuple(sorted(range(-2 * WIDTH, 2 * WIDTH), key=abs))
"""By how much a label may be moved, the least first; far enough for more labels than a page can hold."""
KINDS: Final = ("q", "k", "v", "o", "gate", "up", "down")
"""Linear layers of a block, in the order in which they run."""


@dataclass(frozen=True)
class Tick:
    """A value that is written beside an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` along a side that runs from `start` to `end`; beyond it they lie at its ends."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value stands, in units of the chart to a tenth."""
        low, high, value = map(math.log, (self.low, self.high, max(value, self.low))) if self.log else (
            self.low, self.high, value)  # fmt: skip
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def ticks(self) -> tuple[Tick, ...]:
        """Round values on the axis: powers of ten where it is logarithmic, three to seven others where not."""
        if self.log:
            powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            return tuple(Tick(self.place(10.0**power), f"{10.0**power:g}") for power in powers)
        step = _round_step((self.high - self.low) / 4)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return tuple(Tick(self.place(step * number), f"{step * number:g}") for number in range(first, last + 1))


@dataclass(frozen=True)
class Point:
    """What a scatter shows of one thing."""

    x: float
    y: float
    name: str
    kind: str
    """Chooses colour and shape."""
    good: bool
    label: str = ""
    """Written beside the mark; none where empty."""


@dataclass(frozen=True)
class Mark:
    """A point in its place."""

    point: Point
    x: float
    y: float
    label_x: float
    label_y: float
    anchor: str
    """SVG's `text-anchor` of the label."""


@dataclass(frozen=True)
class Scatter:
    """Marks between two axes."""

    height: int
    x: Axis
    y: Axis
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Cell:
    """One place of a grid."""

    row: str
    column: int
    text: str
    """What it says when pointed at."""
    shade: float
    """0 to 1, from the smallest value of the grid to its largest."""


@dataclass(frozen=True)
class Grid:
    """A value for each kind of layer (down) and each block (across)."""

    rows: tuple[str, ...]
    columns: int
    cells: tuple[Cell, ...]
    low: str
    high: str
    """The smallest and the largest value, in words."""


def quality(
    points: Sequence[Point],  # x in bits per weight, y a KL in nats per token
) -> Scatter:
    """Quality against size; KL on a logarithmic axis, because a bit more divides it."""
    height = 300
    sizes, losses = [point.x for point in points], [point.y for point in points if point.y > 0]
    smallest, largest = min(losses, default=0.01), max(losses, default=0.1)
    # Whole powers of ten, two at least, so that there is something to read them by.
    low = math.floor(math.log10(max(smallest, 1e-6)))
    high = max(math.ceil(math.log10(max(largest, 1e-6))), low + 1)
    x = Axis(math.floor(min(sizes) - 0.5), math.ceil(max(sizes) + 0.5), LEFT, WIDTH - RIGHT)
    y = Axis(10.0**low, 10.0**high, height - BOTTOM, TOP, log=True)
    return Scatter(height, x, y, _labelled([(point, x.place(point.x), y.place(point.y)) for point in points]))


def before_after(
    points: Sequence[Point],  # x and y in nats, of the source and of the artifact
) -> Scatter:
    """The same quantity before and after on equal axes: what lies below the diagonal was lost."""
    height = WIDTH - LEFT - RIGHT + TOP + BOTTOM
    lowest = min((min(point.x, point.y) for point in points), default=-1.0)
    low = -_round_step(-min(lowest, -0.5))
    x = Axis(low, 0.0, LEFT, WIDTH - RIGHT)
    y = Axis(low, 0.0, height - BOTTOM, TOP)
    return Scatter(height, x, y, tuple(Mark(p, x.place(p.x), y.place(p.y), 0.0, 0.0, "start") for p in points))


def by_layer(values: Mapping[str, float], *, log: bool, unit: str) -> Grid:
    """Values by module name, `model.layers.0.mlp.up_proj`, as a grid of blocks and `KINDS` of layers.

    Args:
        log: shades are by the logarithm.
        unit: said behind each number.
    """
    places = {name: _place(name) for name in values}
    rows = tuple(kind for kind in KINDS if any(kind == other for _, other in places.values()))
    scale = [_scaled(value, log) for value in values.values()]
    low, high = min(scale), max(scale)
    cells = tuple(
        Cell(
            row=places[name][1],
            column=places[name][0],
            text=f"{name}: {value:.3g} {unit}",
            shade=round((_scaled(value, log) - low) / (high - low), 3) if high > low else 0.5,
        )
        for name, value in sorted(values.items(), key=lambda item: places[item[0]])
    )
    columns = 1 + max(index for index, _ in places.values())
    return Grid(rows, columns, cells, f"{min(values.values()):.3g}", f"{max(values.values()):.3g} {unit}")


def _labelled(placed: Sequence[tuple[Point, float, float]]) -> tuple[Mark, ...]:
    """Labels beside their marks, moved up or down where one would cover another or a mark."""
    taken = [(y + 4, x - _MARK, x + _MARK) for _, x, y in placed]
    marks = []
    for point, x, y in sorted(placed, key=lambda item: item[2]):
        wide = LETTER * len(point.label)
        fits = x + 9 + wide <= WIDTH
        left = x + 9 if fits else x - 9 - wide
        at = next(
            y + 4 + shift
            for shift in _NEARBY
            if not any(abs(y + 4 + shift - other) < LINE and left < end and begin < left + wide
                       for other, begin, end in taken)
        )  # fmt: skip
        taken.append((at, left, left + wide))
        marks.append(Mark(point, x, y, round(x + 9 if fits else x - 9, 1), round(at, 1), "start" if fits else "end"))
    return tuple(marks)


def _place(name: str) -> tuple[int, str]:
    """Number of the block and kind of the layer."""
    _, _, index, *rest = name.split(".")
    return int(index), rest[-1].removesuffix("_proj")


def _scaled(value: float, log: bool) -> float:
    return math.log(max(value, 1e-12)) if log else value


def _round_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is no less than `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
