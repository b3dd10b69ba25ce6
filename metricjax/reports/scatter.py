"""Scatter plots as inline SVG, such as a t-SNE of proxies."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup, escape

from metricjax.reports.figures import HEIGHT, WIDTH, Panel


def scatter(
    title: str,
    points: Float[np.ndarray, "n 2"],
    groups: Int[np.ndarray, " n"],
    names: Sequence[str],
    marked: Float[np.ndarray, "k 2"] | None = None,
) -> Panel:
    """Points of a projection, whose axes have no meaning: only distances count.

    Args:
        title: heading of the panel.
        points: [n, 2].
        groups: [n] group of each point, 0 or more, which determines its colour.
        names: tooltip of each point.
        marked: [k, 2] points drawn as stars, number i in the colour of group i.
    """
    everything = points if marked is None else np.concatenate([points, marked])
    low, high = everything.min(axis=0), everything.max(axis=0)
    span = np.maximum(high - low, 1e-12)
    border = 8.0
    size = np.array([WIDTH, 1.4 * HEIGHT]) - 2 * border
    places = border + (points - low) / span * size
    count = 1 + max(int(groups.max()), 0 if marked is None else len(marked) - 1)

    def colour(group):
        """Evenly spaced hues, of a lightness visible on light and dark pages."""
        return f"hsl({360 * group / count:.0f} 65% 48%)"

    parts = [
        f'<circle fill="{colour(group)}" cx="{x:.1f}" cy="{y:.1f}" r="2.6">'
        f"<title>{escape(name)}</title></circle>"
        for (x, y), group, name in zip(places, groups.tolist(), names, strict=True)
    ]
    stars = 0 if marked is None else len(marked)
    for group in range(stars):
        x, y = border + (marked[group] - low) / span * size
        corners = " ".join(
            f"{x + r * math.sin(turn):.1f},{y - r * math.cos(turn):.1f}"
            for turn, r in zip(np.arange(10) * math.pi / 5, [9.0, 4.0] * 5, strict=True)
        )
        parts.append(
            f'<polygon class="star" fill="{colour(group)}" points="{corners}">'
            f"<title>group {group + 1}</title></polygon>"
        )
    label = f"{title}: {len(points)} points of {len(np.unique(groups))} groups."
    svg = Markup(
        f'<svg viewBox="0 0 {WIDTH} {1.4 * HEIGHT:.0f}" role="img" '
        f'aria-label="{escape(label)}">' + "".join(parts) + "</svg>"
    )
    return Panel(title, svg, ())
