"""Curves as inline SVG: panels of a run's history, axes, ticks (points: `scatter`).

The SVG is written by hand rather than by a plotting library: its colours are the
page's CSS variables, so one file serves the light and the dark scheme, its text stays
text, and the same numbers always give the same bytes.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 10, 26
MAX_POINTS = 180
MAX_MARKERS = 24
COLORS = 6


@dataclasses.dataclass(frozen=True)
class Curve:
    """One line of a panel: the mean of each bucket of steps, with its extremes.

    Attributes:
        name: what the legend calls it.
        steps: [n] steps, or what else the values stand over, increasing.
        values: [n] finite means.
        low: [n] smallest value in each bucket.
        high: [n] largest value in each bucket.
        last: what the legend shows: the last value that was recorded.
    """

    name: str
    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    last: float


@dataclasses.dataclass(frozen=True)
class Panel:
    """Curves that share one pair of axes.

    Attributes:
        title: heading of the panel.
        svg: the drawing, safe markup.
        legend: (name, last value as text) of each curve, in drawing order.
    """

    title: str
    svg: Markup
    legend: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class _Group:
    title: str
    kind: str
    pattern: str
    percent: bool = False


_GROUPS = (
    _Group(
        "Retrieval on held-out training classes",
        "validation",
        r"recall@|precision|map@",
        percent=True,
    ),
    _Group("Loss", "train", r"^(?!.*(distance|active)).*loss"),
    _Group("Distance of pairs", "train", r"distance"),
    _Group("Active share", "train", r"active", percent=True),
    _Group("Learning rate", "train", r"learning_rate|^lr$"),
    _Group("Images per second", "train", r"^images_?(/|per_)s"),
)


def panels(
    history: Iterable[dict], selected_step: int | None = None
) -> tuple[list[Panel], list[Panel]]:
    """Draws what a run recorded.

    Args:
        history: lines of metrics.jsonl: `step`, `kind` ("train" or "validation") and
            numbers by name. Where a step occurs twice (a resumed run) the later line
            counts; what is not a finite number is left out.
        selected_step: step to mark in the validation panel.

    Returns:
        The panels of well-known quantities (loss, distances, active share, learning
        rate, speed, validation metrics) and those of all other names, one each.
    """
    series = _series(history)
    main = []
    for group in _GROUPS:
        names = [
            name
            for kind, name in series
            if kind == group.kind and re.search(group.pattern, name)
        ]
        if names:
            curves = [_curve(name, series.pop((group.kind, name))) for name in names]
            mark = selected_step if group.kind == "validation" else None
            main.append(panel(group.title, curves, percent=group.percent, mark=mark))
    others = []
    for (kind, name), points in series.items():
        title = name if kind == "train" else f"{name} ({kind})"
        others.append(panel(title, [_curve(name, points)]))
    return main, others


def recorded(history: Iterable[dict], pattern: str) -> list[float]:
    """Finite training values of the first name that matches `pattern`, by step."""
    for (kind, name), points in _series(history).items():
        if kind == "train" and re.search(pattern, name):
            return [points[step] for step in sorted(points)]
    return []


def _series(history: Iterable[dict]) -> dict[tuple[str, str], dict[int, float]]:
    """Values by step, by (kind, name), in the order the names first occurred."""
    series: dict[tuple[str, str], dict[int, float]] = {}
    for line in history:
        step, kind = line.get("step"), str(line.get("kind", "train"))
        if not _finite(step):
            continue
        for name, value in line.items():
            if name not in ("step", "kind") and _finite(value):
                series.setdefault((kind, str(name)), {})[int(step)] = float(value)
    return series


def _finite(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _curve(name: str, points: dict[int, float]) -> Curve:
    steps = np.array(sorted(points))
    values = np.array([points[step] for step in steps])
    buckets = np.array_split(np.arange(len(steps)), min(len(steps), MAX_POINTS))
    return Curve(
        name=name,
        steps=np.array([steps[bucket].mean() for bucket in buckets]),
        values=np.array([values[bucket].mean() for bucket in buckets]),
        low=np.array([values[bucket].min() for bucket in buckets]),
        high=np.array([values[bucket].max() for bucket in buckets]),
        last=float(values[-1]),
    )


def panel(
    title: str,
    curves: Sequence[Curve],
    *,
    percent: bool = False,
    mark: int | None = None,
    along: str = "step",
    whole: bool = True,
    tell: Callable[[float], str] | None = None,
) -> Panel:
    """Curves over common axes.

    Args:
        title: heading of the panel.
        curves: at least one.
        percent: show values of 0..1 as percentages.
        mark: step at which an upright line is drawn.
        along: what the curves stand over.
        whole: whether only whole numbers of it are worth a tick.
        tell: how to write it; None: as `number` does.
    """
    tell = tell or number
    percent = percent and max(curve.high.max() for curve in curves) <= 1
    show = _percent if percent else number
    parts = [*_axes(curves, show, whole, tell)]
    x, y = _scales(curves)
    first = min(curve.steps[0] for curve in curves)
    last = max(curve.steps[-1] for curve in curves)
    if mark is not None and first <= mark <= last:
        parts.append(
            f'<line class="mark" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{TOP}" '
            f'y2="{HEIGHT - BOTTOM}"><title>step {mark} was selected</title></line>'
        )
    for index, curve in enumerate(curves):
        parts.extend(_line(curve, index, x, y, show, along, tell))
    said = "; ".join(
        f"{curve.name} from {show(curve.values[0])} to {show(curve.last)}"
        for curve in curves
    )
    label = f"{title}, {along}s {tell(first)} to {tell(last)}: {said}."
    svg = Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )
    legend = tuple((curve.name, show(curve.last)) for curve in curves)
    return Panel(title, svg, legend)


def _limits(curves: Sequence[Curve]) -> tuple[float, float, float, float]:
    """First and last step, lowest and highest value shown; never an empty range."""
    first = min(curve.steps[0] for curve in curves)
    last = max(curve.steps[-1] for curve in curves)
    low = min(curve.low.min() for curve in curves)
    high = max(curve.high.max() for curve in curves)
    if 0 <= low < 0.6 * high:
        low = 0.0
    if high <= low:
        margin = abs(high) / 2 or 1.0
        low, high = min(low, max(0.0, low - margin)), high + margin
    ticks = _ticks(low, high)
    last = last if last > first else first + 1
    return first, last, min(low, ticks[0]), max(high, ticks[-1])


def _scales(curves: Sequence[Curve]):
    first, last, low, high = _limits(curves)
    inner_width = WIDTH - LEFT - RIGHT
    inner_height = HEIGHT - TOP - BOTTOM

    def x(step):
        return LEFT + inner_width * (step - first) / (last - first)

    def y(value):
        return TOP + inner_height * (high - value) / (high - low)

    return x, y


def _axes(curves: Sequence[Curve], show, whole: bool, tell) -> Iterable[str]:
    first, last, low, high = _limits(curves)
    x, y = _scales(curves)
    ticks = _ticks(low, high)
    for value, said in zip(ticks, _labels(ticks, show), strict=True):
        yield (
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
            f'y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">'
            f"{said}</text>"
        )
    ticks = _ticks(first, last)
    for step, said in zip(ticks, _labels(ticks, tell), strict=True):
        if first <= step <= last and not (whole and step != int(step)):
            anchor = "end" if x(step) > WIDTH - 24 else "middle"
            yield (
                f'<text x="{x(step):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">'
                f"{said}</text>"
            )


def _line(curve: Curve, index: int, x, y, show, along, tell) -> Iterable[str]:
    style = f"s{index % COLORS}"
    points = [
        f"{x(step):.1f},{y(value):.1f}"
        for step, value in zip(curve.steps, curve.values, strict=True)
    ]
    if (curve.high > curve.low).any():
        upper = [
            f"{x(step):.1f},{y(value):.1f}"
            for step, value in zip(curve.steps, curve.high, strict=True)
        ]
        lower = [
            f"{x(step):.1f},{y(value):.1f}"
            for step, value in zip(curve.steps, curve.low, strict=True)
        ]
        outline = " ".join(upper + lower[::-1])
        yield f'<polygon class="band {style}" points="{outline}"/>'
    yield f'<polyline class="line {style}" points="{" ".join(points)}"/>'
    if len(points) <= MAX_MARKERS:
        for step, value in zip(curve.steps, curve.values, strict=True):
            said = escape(f"{curve.name}, {along} {tell(step)}: {show(value)}")
            yield (
                f'<circle class="dot {style}" cx="{x(step):.1f}" cy="{y(value):.1f}" '
                f'r="2.5"><title>{said}</title></circle>'
            )


def _ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten) that span [low, high]."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((1, 2, 5, 10), key=lambda factor: abs(factor * power - rough)) * power
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(start, stop + 1)]


def _labels(ticks: Sequence[float], say: Callable[[float], str]) -> list[str]:
    """What stands at the ticks: with more decimals where `number` makes two alike."""
    said = [say(tick) for tick in ticks]
    if say is number and len(set(said)) < len(said):
        decimals = -math.floor(math.log10(ticks[1] - ticks[0]))
        said = [f"{tick:.{max(decimals, 0)}f}" for tick in ticks]
    return said


def _percent(value: float) -> str:
    return f"{100 * value:.1f}".removesuffix(".0") + "%"


def number(value: float) -> str:
    """A number for people: 1,500, 12k, 0.0123, 3e-05."""
    if value == int(value) and abs(value) >= 1000:
        short = abs(value) >= 10_000 and value % 1000 == 0
        return f"{value / 1000:,.0f}k" if short else f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
