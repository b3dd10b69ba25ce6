"""The page of a data check: one HTML file that needs no network and runs no script."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int
from markupsafe import Markup, escape

from metricjax.reports import figures, page
from metricjax.reports.studies import Pictures

MAX_BARS = 16
_WIDTH, _HEIGHT, _TOP, _BOTTOM = 360, 150, 18, 22


@dataclasses.dataclass(frozen=True)
class Section:
    """Some images that someone should look at.

    Attributes:
        title: its heading.
        text: what they are, and how many of them are shown.
        rows: pictures, those side by side that belong together.
        lines: (name, reason) of what cannot be shown.
    """

    title: str
    text: str
    rows: tuple[Pictures, ...] = ()
    lines: tuple[tuple[str, str], ...] = ()


def render(
    *,
    name: str,
    problems: Sequence[str],
    warnings: Sequence[str],
    facts: Sequence[str],
    tiles: Sequence[tuple[str, int, int]] = (),
    class_sizes: Mapping[str, Int[np.ndarray, " c"]] | None = None,
    sections: Sequence[Section] = (),
    notes: Sequence[str] = (),
) -> str:
    """The page as a string.

    Args:
        name: what the data set is called.
        problems: sentences on why it is not fit for training; empty if it is.
        warnings: sentences on what someone should look at.
        facts: sentences on what there is.
        tiles: (title, classes, images) of each split.
        class_sizes: images of each class, [c], by the title of the split.
        sections: what to look at.
        notes: what was said when the data set was opened.
    """
    return page.template("checkup.html").render(
        name=name,
        problems=problems,
        warnings=warnings,
        facts=facts,
        tiles=tiles,
        histograms={
            title: histogram(sizes) for title, sizes in (class_sizes or {}).items()
        },
        sections=sections,
        notes=notes,
    )


def histogram(sizes: Int[np.ndarray, " c"]) -> Markup:
    """How many classes have how many images, as inline SVG.

    Args:
        sizes: [c] images of each class, at least one class.
    """
    edges = _edges(int(sizes.min()), int(sizes.max()))
    counts = np.histogram(sizes, edges)[0].tolist()
    slot = _WIDTH / max(len(counts), 4)
    left = (_WIDTH - slot * len(counts)) / 2
    parts, said = [], []
    for bar, number in enumerate(counts):
        first, last = edges[bar], edges[bar + 1] - 1
        label = str(first) if first == last else f"{first}–{last}"
        said.append(f"{number} with {label}")
        height = (_HEIGHT - _TOP - _BOTTOM) * number / max(counts)
        x, y = left + slot * bar, _HEIGHT - _BOTTOM - height
        title = escape(f"{label} images: {number} of {len(sizes)} classes")
        parts.append(
            f'<rect class="bar" x="{x + 1:.1f}" y="{y:.1f}" width="{slot - 2:.1f}" '
            f'height="{height:.1f}"><title>{title}</title></rect>'
        )
        middle = f'x="{x + slot / 2:.1f}" text-anchor="middle"'
        if number:
            parts.append(
                f'<text {middle} y="{y - 5:.1f}">{figures.number(number)}</text>'
            )
        if len(label) * 6.6 < slot or bar % 2 == 0:
            parts.append(f'<text {middle} y="{_HEIGHT - 6}">{label}</text>')
    label = escape(f"Classes by their number of images: {', '.join(said)}.")
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        + "".join(parts)
        + "</svg>"
    )


def _edges(low: int, high: int) -> list[int]:
    """Where bars begin, and the end of the last: one for each number, or doubling."""
    if high - low < MAX_BARS:
        return list(range(low, high + 2))
    if high < 8 * max(low, 1):
        width = -(-(high + 1 - low) // 8)
        return list(range(low, high + width + 1, width))
    edges = [0] if low == 0 else []
    edge = 1
    while edge <= high:
        edges.append(edge)
        edge *= 2
    return [*edges, edge]
