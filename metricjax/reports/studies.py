"""What a trained model does, drawn: the analyses of the four papers for the report.

Each function takes plain arrays and gives a `Study`, a part of the page.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from metricjax.reports import figures
from metricjax.reports.figures import Curve, Panel
from metricjax.reports.scatter import scatter
from metricjax.reports.thumbnails import Thumbnail, thumbnail

# Side of a picture that something is laid over, in pixels.
_SIDE = 128


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A row of pictures.

    Attributes:
        title: what they have in common.
        items: (caption, picture) of each.
        large: whether there is more to see in each than in a photograph.
    """

    title: str
    items: tuple[tuple[str, Thumbnail], ...]
    large: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """Numbers in rows.

    Attributes:
        columns: headings, that of the first column too.
        rows: of each row its heading, then (number, what is said small below it or "")
            of each cell, as text.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


@dataclasses.dataclass(frozen=True)
class Study:
    """One analysis.

    Attributes:
        title: its heading.
        text: how to read it, and the paper it comes from.
        panels: drawings with axes.
        rows: rows of pictures.
        table: numbers, above the drawings.
    """

    title: str
    text: str
    panels: tuple[Panel, ...] = ()
    rows: tuple[Pictures, ...] = ()
    table: Table | None = None


def similarities(
    edges: Float[np.ndarray, " n+1"], counts: Mapping[str, Int[np.ndarray, "m n"]]
) -> Study:
    """ABE's histograms: how alike learners are, and images of one class or of two.

    Args:
        edges: of the bins of the cosine similarity.
        counts: pairs in each bin by kind: "self", "positive", "negative"; of each of
            the m learners.
    """
    middles = (edges[1:] + edges[:-1]) / 2
    learners = len(next(iter(counts.values())))
    shares = {
        kind: found / np.maximum(found.sum(axis=1, keepdims=True), 1)
        for kind, found in counts.items()
    }
    # All learners over one axis: the bins that any of them needs.
    used = np.flatnonzero(sum(found.sum(axis=0) for found in counts.values()))
    shown = slice(max(used[0] - 1, 0), used[-1] + 2)
    panels = []
    for learner in range(learners):
        curves = [
            _histogram(kind, middles[shown], share[learner][shown])
            for kind, share in shares.items()
            if share[learner].any()
        ]
        panel = figures.panel(
            f"Learner {learner + 1}", curves, percent=True, along="similarity",
            whole=False,
        )  # fmt: skip
        legend = tuple((curve.name, f"{curve.last:.2f}") for curve in curves)
        panels.append(dataclasses.replace(panel, legend=legend))
    return Study(
        "How alike the learners are",
        "Share of pairs by cosine similarity: of two learners' embeddings of one image "
        "(self), and of one learner's of two images of one class (positive) or of two "
        "(negative); the legend gives the mean. Learners that have learnt the same "
        "have self similarities near 1, and an ensemble of them is no better than one "
        "(ABE, Fig. 5).",
        tuple(panels),
    )


def _histogram(name: str, middles: np.ndarray, share: np.ndarray) -> Curve:
    mean = float(np.sum(share * middles) / share.sum())
    return Curve(name, middles, share, share, share, mean)


def recalls(each: Sequence[float], together: float) -> Study:
    """Recall@1 of every learner, and of all together.

    Args:
        each: of the m learners, in 0..1.
        together: of the ensemble.
    """
    numbers = np.arange(1, len(each) + 1, dtype=np.float64)
    curves = [
        line("each learner", numbers, np.asarray(each), float(np.mean(each))),
        line("ensemble", numbers, np.full(len(each), together), together),
    ]
    gain = 100 * (together - float(np.mean(each)))
    return Study(
        "Each learner and the ensemble",
        f"Recall@1 of the learners alone and of their embeddings side by side, which "
        f"is {abs(gain):.1f} points {'above' if gain >= 0 else 'below'} their mean "
        "(ABE, Table 1 and 2).",
        (figures.panel("Recall@1 by learner", curves, percent=True, along="learner"),),
    )


def line(name, numbers, values, last) -> Curve:
    return Curve(name, numbers, values, values, values, last)


def masks(
    images: Sequence[UInt8[np.ndarray, "h w c"]],
    mean: Float[np.ndarray, "b m p q"],
    channels: Mapping[int, Float[np.ndarray, "b m p q"]],
) -> Study:
    """ABE's attention: where each learner looks.

    Args:
        images: b of them, as the network sees them.
        mean: the masks' mean over the channels.
        channels: number of a channel -> its masks.
    """
    rows = []
    for number, image in enumerate(images):
        rows.append(_laid_over("All channels", image, mean[number]))
        rows += [
            _laid_over(f"Channel {channel}", image, values[number])
            for channel, values in channels.items()
        ]
    return Study(
        "Where the learners look",
        "The masks of the learners over the image, bright where features pass: their "
        "mean over all channels, and the channels in which the learners differ most. "
        "Each row has colours of its own, from its lowest value to its highest (ABE, "
        "Fig. 4 and 6).",
        rows=tuple(rows),
    )


def _laid_over(title, image, maps: Float[np.ndarray, "m p q"]) -> Pictures:
    low, high = float(maps.min()), float(maps.max())
    items = [("image", thumbnail(image))] + [
        (f"{number}", overlay(image, one, low, high))
        for number, one in enumerate(maps, 1)
    ]
    return Pictures(f"{title}, {low:.2f} to {high:.2f}", tuple(items))


def shares(
    images: Sequence[UInt8[np.ndarray, "h w c"]],
    maps: Mapping[str, Float[np.ndarray, "b p q"]],
) -> Study:
    """What part of a global descriptor each position of the map makes.

    Args:
        images: b of them, as the network sees them.
        maps: name of a descriptor -> share of each position, of sum 1.
    """
    rows = []
    for number, image in enumerate(images):
        found = {name: values[number] for name, values in maps.items()}
        items = [("image", thumbnail(image))] + [
            (
                f"{name}, half in {_half(one):.0%}",
                overlay(image, one, min(0.0, float(one.min())), float(one.max())),
            )
            for name, one in found.items()
        ]
        rows.append(Pictures("", tuple(items)))
    return Study(
        "What the descriptors are made of",
        "The share of each position of the feature map in the descriptor's squared "
        "length, bright where most of it comes from, and in how much of the map half "
        "of it lies. SPoC takes a little from everywhere, MAC much from a few places, "
        "GeM is between them.",
        rows=tuple(rows),
    )


def _half(share: Float[np.ndarray, "p q"]) -> float:
    """The smallest part of the map that holds half of the sum."""
    ordered = np.sort(share.ravel())[::-1]
    return (1 + int(np.argmax(np.cumsum(ordered) >= ordered.sum() / 2))) / share.size


def expansion(
    without: Float[np.ndarray, "n n"],
    expanded: Float[np.ndarray, "n n"],
    points: int,
    loss: str,
) -> Study:
    """Distances between pairs of images, without and with the points between them.

    Args:
        without: the shortest distance between images of two classes; NaN on the
            diagonal.
        expanded: the same between images and points.
        points: between the two images of a class.
        loss: the objective's name.
    """
    other = ~np.eye(len(without), dtype=bool)
    low, high = float(expanded[other].min()), float(without[other].max())
    nearer = float(np.mean(expanded[other] < without[other]))
    means = float(without[other].mean()), float(expanded[other].mean())
    items = (
        ("images", heat_map(without, low, high)),
        (f"images and {points} points", heat_map(expanded, low, high)),
    )
    return Study(
        "Harder negatives by embedding expansion",
        f"Every row and column is a class of the test set, two images of each; a cell "
        f"is the shortest distance between the two, bright where it is short "
        f"({low:.2f} to {high:.2f}). With {points} points between the two images of a "
        f"class {nearer:.0%} of the pairs of classes come nearer, in the mean from "
        f"{means[0]:.3f} to {means[1]:.3f}: negatives that {loss} has without another "
        "image (EE).",
        rows=(Pictures("", items, large=True),),
    )


def proxies(
    places: Float[np.ndarray, "c 2"] | None,
    coarse: Float[np.ndarray, "k 2"] | None,
    parent: Int[np.ndarray, " c"],
    names: Sequence[str],
    groups: Sequence[tuple[str, Sequence[tuple[str, np.ndarray]]]],
) -> Study:
    """The hierarchy over the proxies.

    Args:
        places: of the fine proxies in the plane (t-SNE); None: not drawn.
        coarse: of the coarse proxies, where there are some.
        parent: group of each of these proxies.
        names: of their classes.
        groups: (title, (class, uint8 image) of some members) of each group.
    """
    panels = ()
    if places is not None:
        panels = (scatter("Proxies, t-SNE", places, parent, names, coarse),)
    return Study(
        "Classes in groups",
        "The proxies of the classes in the plane, coloured by their group, stars for "
        "the coarse proxies; neighbours are alike, distances between far ones mean "
        "nothing. Below, the largest groups with an image of some of their classes "
        "(HPL).",
        panels,
        tuple(
            Pictures(
                title,
                tuple((name, thumbnail(image)) for name, image in members),
            )
            for title, members in groups
        ),
    )


def overlay(
    image: UInt8[np.ndarray, "h w c"],
    values: Float[np.ndarray, "p q"],
    low: float,
    high: float,
) -> Thumbnail:
    """A map of values, coloured from `low` to `high`, over an image in grey."""
    grey = Image.fromarray(np.asarray(image).mean(axis=2).astype(np.uint8))
    grey = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))
    scaled = (np.asarray(values, np.float32) - low) / max(high - low, 1e-12)
    smooth = Image.fromarray(scaled).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    colours = _colours(np.asarray(smooth))
    return thumbnail(_bytes(0.35 * grey[..., None] + 0.65 * colours))


def heat_map(values: Float[np.ndarray, "n n"], low: float, high: float) -> Thumbnail:
    """Short distances bright; what is not a number is grey."""
    scaled = (high - values) / max(high - low, 1e-12)
    colours = _colours(np.nan_to_num(scaled))
    colours[np.isnan(values)] = 128
    return thumbnail(_bytes(colours))


def _colours(scaled: np.ndarray) -> np.ndarray:
    """0..1 to RGB 0..255."""
    import matplotlib

    return 255 * matplotlib.colormaps["inferno"](np.clip(scaled, 0, 1))[..., :3]


def _bytes(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)
