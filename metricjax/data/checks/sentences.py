"""What `findings` found, in sentences: is the data set fit for training?"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from metricjax.data.checks.findings import ACROSS_CLASSES, WITHIN_CLASS, Findings
from metricjax.data.datasets import Split
from metricjax.errors import counted

# A size is unusual from so many times the median on, or a quarter of it; and so is a
# picture that is so many times as long as it is wide.
UNUSUAL = 4


@dataclass(frozen=True)
class Outlier:
    """An image of unusual size; kind is "tiny", "huge" or "long"."""

    image: int
    kind: str


def problems(findings: Findings) -> list[str]:
    """Why training or its evaluation would mean nothing; empty if they would not."""
    return list(_problems(findings))


def _problems(findings: Findings) -> Iterable[str]:
    train, test = findings.dataset.train, findings.dataset.test
    total, bad = len(findings.sizes), len(findings.unreadable)
    if 2 * bad >= total:
        yield (
            f"{bad:,} of {counted(total, 'image')} cannot be "
            f"read{_first_bad(findings)}: replace the files."
        )
    if bad == total:
        return
    usable = int((findings.class_sizes(train) >= 2).sum())
    if usable < 2:
        yield (
            f"In train {counted(usable, 'class has', 'classes have')} two readable "
            "images: an embedding is learned from at least two such classes; add "
            "images."
        )
    queries, answerable = _queries(findings)
    if not answerable:
        yield (
            f"None of the {counted(queries, 'query', 'queries')} of the test split has "
            "another image of its class to find: nothing could be measured; add images "
            "or mark the gallery."
        )
    leaked, tested = len(findings.leaked), int(findings.readable_of(test).sum())
    if 2 * leaked > tested:
        yield (
            f"{leaked:,} of {counted(tested, 'test image')} are also in train: what is "
            "measured on them says nothing about new images; split the data anew."
        )


def warnings(findings: Findings) -> list[str]:
    """What training survives, but someone should look at."""
    return list(_warnings(findings))


def _warnings(findings: Findings) -> Iterable[str]:
    bad, skipped = len(findings.unreadable), findings.dataset.skipped
    if 0 < 2 * bad < len(findings.sizes):
        yield (
            f"{counted(bad, 'image')} cannot be read{_first_bad(findings)}: training "
            "leaves such images out; replace or remove the files."
        )
    if skipped:
        name, reason = skipped[0]
        yield (
            f"{counted(len(skipped), 'file is', 'files are')} left out, the first "
            f"{name} ({reason})."
        )
    yield from _leaks(findings)
    yield from _label_noise(findings)
    yield from _lonely(findings)
    if len(findings.blank):
        yield (
            f"{counted(len(findings.blank), 'image is', 'images are')} of one shade, "
            f"the first {findings.name(findings.blank[0])}: there is nothing to see."
        )
    yield from _unusual_sizes(findings)


def _leaks(findings: Findings) -> Iterable[str]:
    tested = int(findings.readable_of(findings.dataset.test).sum())
    leaked, nearly = len(findings.leaked), len(findings.nearly_leaked)
    if 0 < 2 * leaked <= tested:
        yield (
            f"{leaked:,} of {counted(tested, 'test image')} "
            f"{'is' if leaked == 1 else 'are'} also in train, the first "
            f"{findings.name(findings.leaked[0])}: results on the test split will be "
            "too good; remove them from one side."
        )
    if nearly:
        yield (
            f"{counted(nearly, 'test image looks', 'test images look')} like a "
            "training image, the first "
            f"{findings.name(findings.nearly_leaked[0])}: if they are "
            "copies, results on the test split will be too good."
        )


def _label_noise(findings: Findings) -> Iterable[str]:
    across = findings.relations == ACROSS_CLASSES
    same = int((across & findings.identical).sum())
    alike = int(across.sum()) - same
    if same + alike:
        a, b = findings.pairs[np.flatnonzero(across)[0]]
        yield (
            f"{same:,} identical and {alike:,} nearly identical pairs of images have "
            "different classes, the first "
            f"{findings.name(a)} ({findings.class_name(a)}) and {findings.name(b)} "
            f"({findings.class_name(b)}): one label of each is probably wrong."
        )


def _lonely(findings: Findings) -> Iterable[str]:
    lone = int((findings.class_sizes(findings.dataset.train) == 1).sum())
    if lone:
        yield (
            f"{counted(lone, 'training class has', 'training classes have')} a single "
            "image: it has no partner, so the class is left out of training."
        )
    queries, answerable = _queries(findings)
    if 0 < answerable < queries:
        yield (
            f"{queries - answerable:,} of {queries:,} test queries have no other image "
            "of their class to find: they are not counted."
        )


def _unusual_sizes(findings: Findings) -> Iterable[str]:
    outliers = unusual_sizes(findings)
    if outliers:
        kinds = [outlier.kind for outlier in outliers]
        found = [f"{kinds.count(k):,} {k}" for k in ("tiny", "long", "huge")]
        found = [words for words in found if not words.startswith("0 ")]
        width, height = findings.sizes[outliers[0].image]
        yield (
            f"{counted(len(outliers), 'image has', 'images have')} an unusual size "
            f"({', '.join(found)}), the first {findings.name(outliers[0].image)} "
            f"({width} x {height} pixels)."
        )


def unusual_sizes(findings: Findings) -> list[Outlier]:
    """Images of unusual size, the most unusual of each kind first.

    Tiny: the shorter side is under a quarter of the median one. Long: more than four
    times as long as wide, and more than twice what the median image is. Huge: the
    longer side is more than four times the median one.
    """
    images = np.flatnonzero(findings.is_readable)
    if not len(images):
        return []
    shorter, longer = np.sort(findings.sizes[images], axis=1).T.astype(float)
    aspect = longer / shorter
    measures = {
        "tiny": np.median(shorter) / shorter / UNUSUAL,
        "long": aspect / max(UNUSUAL, 2 * np.median(aspect)),
        "huge": longer / np.median(longer) / UNUSUAL,
    }
    found: dict[int, Outlier] = {}
    for kind, measure in measures.items():
        for at in np.argsort(-measure, kind="stable")[: int((measure > 1).sum())]:
            found.setdefault(int(images[at]), Outlier(int(images[at]), kind))
    return list(found.values())


def facts(findings: Findings) -> list[str]:
    """What there is."""
    return list(_facts(findings))


def _facts(findings: Findings) -> Iterable[str]:
    train, test = findings.dataset.train, findings.dataset.test
    if not findings.is_readable.any():
        return
    yield f"Train: {_split(findings, train)}."
    queries, answerable = _queries(findings)
    yield f"Test: {_split(findings, test)}; {counted(queries, 'query', 'queries')}."
    shared = len(set(train.class_names) & set(test.class_names))
    if shared:
        yield f"Closed set: {counted(shared, 'class', 'classes')} in both splits."
    yield _batches(findings.class_sizes(train))
    yield _sizes(findings)
    if findings.formats:
        turned = findings.turned
        yield (
            f"Files: {_counted(findings.formats)}; {_counted(findings.modes)}"
            + (
                f"; {turned:,} turned upright as their EXIF data say."
                if turned
                else "."
            )
        )
    within = findings.relations == WITHIN_CLASS
    if within.any():
        same = int((within & findings.identical).sum())
        yield (
            f"Within a class there are {same:,} identical and "
            f"{int(within.sum()) - same:,} nearly identical pairs: harmless, but such "
            "a pair teaches nothing."
        )
    if findings.not_compared:
        yield (
            f"{findings.not_compared:,} comparisons were left out because very many "
            "images look alike: there may be more near-duplicates."
        )


def _split(findings: Findings, split: Split) -> str:
    sizes = findings.class_sizes(split)
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


def _sizes(findings: Findings) -> str:
    sizes = findings.sizes[findings.is_readable]
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


def _counted(kinds) -> str:
    return ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common())


def _queries(findings: Findings) -> tuple[int, int]:
    """How many readable queries there are, and how many have something to find."""
    test = findings.dataset.test
    readable = findings.readable_of(test)
    gallery = test.is_gallery & readable
    found = np.bincount(test.labels[gallery], minlength=test.num_classes)
    others = found[test.labels] - gallery
    query = test.is_query & readable
    return int(query.sum()), int((query & (others > 0)).sum())


def _first_bad(findings: Findings) -> str:
    image, reason = next(iter(findings.unreadable.items()))
    return f", the first {findings.name(image)} ({reason})"
