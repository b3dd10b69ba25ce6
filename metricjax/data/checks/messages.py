"""Messages about a `DatasetReport`: problems, warnings and facts, one sentence each.

Come here to add a check of a data set: `problems` make it unfit for training (the exit
code), `warnings` do not, `facts` describe it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from metricjax.data.checks.dataset_report import (
    ACROSS_CLASSES,
    WITHIN_CLASS,
    DatasetReport,
)
from metricjax.data.datasets import Split
from metricjax.errors import counted

# An image is of unusual size if it is this many times larger or smaller than the
# median, or this many times as long as wide.
UNUSUAL = 4


@dataclass(frozen=True)
class Outlier:
    """An image of unusual size; kind is "tiny", "huge" or "long"."""

    image: int
    kind: str


def problems(report: DatasetReport) -> list[str]:
    """Why training or evaluation would be meaningless; empty if they are not."""
    return list(_problems(report))


def _problems(report: DatasetReport) -> Iterable[str]:
    train, test = report.dataset.train, report.dataset.test
    total, bad = len(report.sizes), len(report.unreadable)
    if 2 * bad >= total:
        yield (
            f"{bad:,} of {counted(total, 'image')} cannot be "
            f"read{_first_unreadable(report)}: replace the files."
        )
    if bad == total:
        return
    usable = int((report.class_sizes(train) >= 2).sum())
    if usable < 2:
        yield (
            f"In train {counted(usable, 'class has', 'classes have')} two readable "
            "images: an embedding is learned from at least two such classes; add "
            "images."
        )
    queries, answerable = _queries(report)
    if not answerable:
        yield (
            f"None of the {counted(queries, 'query', 'queries')} of the test split has "
            "another image of its class to find: nothing could be measured; add images "
            "or mark the gallery."
        )
    leaked, tested = len(report.leaked), int(report.readable_of(test).sum())
    if 2 * leaked > tested:
        yield (
            f"{leaked:,} of {counted(tested, 'test image')} are also in train: what is "
            "measured on them says nothing about new images; split the data anew."
        )


def warnings(report: DatasetReport) -> list[str]:
    """What does not prevent training, but someone should look at."""
    return list(_warnings(report))


def _warnings(report: DatasetReport) -> Iterable[str]:
    bad, skipped = len(report.unreadable), report.dataset.skipped
    if 0 < 2 * bad < len(report.sizes):
        yield (
            f"{counted(bad, 'image')} cannot be read{_first_unreadable(report)}: "
            "training leaves such images out; replace or remove the files."
        )
    if skipped:
        name, reason = skipped[0]
        yield (
            f"{counted(len(skipped), 'file is', 'files are')} left out, the first "
            f"{name} ({reason})."
        )
    yield from _leaks(report)
    yield from _label_noise(report)
    yield from _single_images(report)
    if len(report.blank):
        yield (
            f"{counted(len(report.blank), 'image is', 'images are')} of one shade, "
            f"the first {report.name(report.blank[0])}: there is nothing to see."
        )
    yield from _unusual_sizes(report)


def _leaks(report: DatasetReport) -> Iterable[str]:
    tested = int(report.readable_of(report.dataset.test).sum())
    leaked, nearly = len(report.leaked), len(report.nearly_leaked)
    if 0 < 2 * leaked <= tested:
        yield (
            f"{leaked:,} of {counted(tested, 'test image')} "
            f"{'is' if leaked == 1 else 'are'} also in train, the first "
            f"{report.name(report.leaked[0])}: results on the test split will be "
            "too good; remove them from one side."
        )
    if nearly:
        yield (
            f"{counted(nearly, 'test image looks', 'test images look')} like a "
            "training image, the first "
            f"{report.name(report.nearly_leaked[0])}: if they are "
            "copies, results on the test split will be too good."
        )


def _label_noise(report: DatasetReport) -> Iterable[str]:
    across = report.relations == ACROSS_CLASSES
    same = int((across & report.identical).sum())
    alike = int(across.sum()) - same
    if same + alike:
        a, b = report.pairs[np.flatnonzero(across)[0]]
        yield (
            f"{same:,} identical and {alike:,} nearly identical pairs of images have "
            "different classes, the first "
            f"{report.name(a)} ({report.class_name(a)}) and {report.name(b)} "
            f"({report.class_name(b)}): one label of each is probably wrong."
        )


def _single_images(report: DatasetReport) -> Iterable[str]:
    lone = int((report.class_sizes(report.dataset.train) == 1).sum())
    if lone:
        yield (
            f"{counted(lone, 'training class has', 'training classes have')} a single "
            "image: it has no partner, so the class is left out of training."
        )
    queries, answerable = _queries(report)
    if 0 < answerable < queries:
        yield (
            f"{queries - answerable:,} of {queries:,} test queries have no other image "
            "of their class to find: they are not counted."
        )


def _unusual_sizes(report: DatasetReport) -> Iterable[str]:
    outliers = unusual_sizes(report)
    if outliers:
        kinds = [outlier.kind for outlier in outliers]
        counts = [f"{kinds.count(k):,} {k}" for k in ("tiny", "long", "huge")]
        counts = [count for count in counts if not count.startswith("0 ")]
        width, height = report.sizes[outliers[0].image]
        yield (
            f"{counted(len(outliers), 'image has', 'images have')} an unusual size "
            f"({', '.join(counts)}), the first {report.name(outliers[0].image)} "
            f"({width} x {height} pixels)."
        )


def unusual_sizes(report: DatasetReport) -> list[Outlier]:
    """Images of unusual size, the most unusual of each kind first.

    Tiny: the shorter side is under a quarter of the median one. Long: more than four
    times as long as wide, and more than twice what the median image is. Huge: the
    longer side is more than four times the median one.
    """
    images = np.flatnonzero(report.is_readable)
    if not len(images):
        return []
    shorter, longer = np.sort(report.sizes[images], axis=1).T.astype(float)
    aspect = longer / shorter
    measures = {
        "tiny": np.median(shorter) / shorter / UNUSUAL,
        "long": aspect / max(UNUSUAL, 2 * np.median(aspect)),
        "huge": longer / np.median(longer) / UNUSUAL,
    }
    outliers: dict[int, Outlier] = {}
    for kind, measure in measures.items():
        for at in np.argsort(-measure, kind="stable")[: int((measure > 1).sum())]:
            outliers.setdefault(int(images[at]), Outlier(int(images[at]), kind))
    return list(outliers.values())


def facts(report: DatasetReport) -> list[str]:
    """Sizes of classes and images, file formats, harmless duplicates."""
    return list(_facts(report))


def _facts(report: DatasetReport) -> Iterable[str]:
    train, test = report.dataset.train, report.dataset.test
    if not report.is_readable.any():
        return
    yield f"Train: {_split(report, train)}."
    queries, answerable = _queries(report)
    yield f"Test: {_split(report, test)}; {counted(queries, 'query', 'queries')}."
    shared = len(set(train.class_names) & set(test.class_names))
    if shared:
        yield f"Closed set: {counted(shared, 'class', 'classes')} in both splits."
    yield _batches(report.class_sizes(train))
    yield _sizes(report)
    if report.formats:
        turned = report.turned
        yield (
            f"Files: {_count_list(report.formats)}; {_count_list(report.modes)}"
            + (
                f"; {turned:,} turned upright as their EXIF data say."
                if turned
                else "."
            )
        )
    within = report.relations == WITHIN_CLASS
    if within.any():
        same = int((within & report.identical).sum())
        yield (
            f"Within a class there are {same:,} identical and "
            f"{int(within.sum()) - same:,} nearly identical pairs: harmless, but such "
            "a pair teaches nothing."
        )
    if report.not_compared:
        yield (
            f"{report.not_compared:,} comparisons were left out because very many "
            "images look alike: there may be more near-duplicates."
        )


def _split(report: DatasetReport, split: Split) -> str:
    sizes = report.class_sizes(split)
    low, high = sizes.min(), sizes.max()
    spread = f"{low} to {high} of each (median {np.median(sizes):g})"
    return (
        f"{counted(int(sizes.sum()), 'readable image')} of "
        f"{counted(int((sizes > 0).sum()), 'class', 'classes')}, "
        + (spread if low < high else f"{low} of each")
    )


def _batches(sizes: np.ndarray) -> str:
    two, four = int((sizes >= 2).sum()), int((sizes >= 4).sum())
    repeats = f" ({two:,} if the others repeat theirs)" if four < two else ""
    return (
        f"A batch holds at most {counted(two, 'class', 'classes')} of 2 images, or "
        f"{four:,} of 4{repeats}."
    )


def _sizes(report: DatasetReport) -> str:
    sizes = report.sizes[report.is_readable]
    low, high = sizes.min(axis=0), sizes.max(axis=0)
    if (low == high).all():
        return f"All images have {low[0]} x {low[1]} pixels."
    shorter = sizes.min(axis=1)
    spread = f"to {shorter.max():,} pixels (median {np.median(shorter):,.0f})"
    return (
        f"The shorter side has {shorter.min():,} "
        + (spread if shorter.min() < shorter.max() else "pixels")
        + f", the longer up to {sizes.max():,}."
    )


def _count_list(kinds) -> str:
    return ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common())


def _queries(report: DatasetReport) -> tuple[int, int]:
    """The number of readable queries, and of those with an image to find."""
    test = report.dataset.test
    readable = report.readable_of(test)
    gallery = test.is_gallery & readable
    sizes = np.bincount(test.labels[gallery], minlength=test.num_classes)
    others = sizes[test.labels] - gallery
    query = test.is_query & readable
    return int(query.sum()), int((query & (others > 0)).sum())


def _first_unreadable(report: DatasetReport) -> str:
    image, reason = next(iter(report.unreadable.items()))
    return f", the first {report.name(image)} ({reason})"
