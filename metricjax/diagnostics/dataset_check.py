"""Is a data set fit for training? The sentences, the page and the exit code."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metricjax.data.checks import messages
from metricjax.data.checks.dataset_report import (
    ACROSS_CLASSES,
    ACROSS_SPLITS,
    WITHIN_CLASS,
    DatasetReport,
    check,
)
from metricjax.data.datasets import Dataset, UnreadableImage
from metricjax.errors import InputError, counted
from metricjax.reports import dataset_check
from metricjax.reports.dataset_check import Section
from metricjax.reports.studies import Pictures
from metricjax.reports.thumbnails import thumbnail
from metricjax.storage.atomic import write_atomically

MAX_PAIRS = 12
MAX_PICTURES = 12
MAX_LINES = 100


def run(
    dataset: Dataset,
    page: Path,
    *,
    threads: int | None = None,
    say: Callable[[str], None] = print,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Check a data set, say what was found and write the page.

    The notes of opening the data set stand on the page; who opened it says them.

    Args:
      dataset: an opened data set.
      page: the HTML file to write; one that exists is replaced.
      threads: that decode; None: as many as suit the machine.
      say: called with each sentence.
      progress: called with how many images are done and how many there are.

    Returns:
      The exit code: 0 fit for training, even if there is something to look at; 2 not.

    Raises:
      InputError: the page cannot be written.
    """
    page = Path(page)
    if not page.parent.is_dir() or page.is_dir():
        raise InputError(
            f"The page {str(page)!r} cannot be written there: name a file in a "
            "directory that exists."
        )
    report = check(dataset, threads=threads, progress=progress)
    found = _Messages.of(report)
    found.print(say)
    text = _page(report, found)
    try:
        write_atomically(page, _printable(text))
    except OSError as error:
        raise InputError(
            f"The page {str(page)!r} cannot be written ({error}): name another file."
        ) from error
    say(f"Pictures of what was found are in {page}.")
    return 2 if found.problems else 0


class _Messages(NamedTuple):
    """What is known of a data set, in sentences: facts, warnings, problems."""

    facts: list[str]
    warnings: list[str]
    problems: list[str]

    @classmethod
    def of(cls, report: DatasetReport) -> "_Messages":
        return cls(
            messages.facts(report), messages.warnings(report), messages.problems(report)
        )

    def print(self, say: Callable[[str], None]) -> None:
        """Say all of them, the worst last."""
        for sentence in self.facts:
            say(_printable(sentence))
        for sentence in self.warnings:
            say(_printable(f"Look at this: {sentence}"))
        for sentence in self.problems:
            say(_printable(f"Not fit for training: {sentence}"))
        if not self.problems:
            say("Fit for training.")


def _page(report: DatasetReport, found: _Messages) -> str:
    """The page of a check, as HTML."""
    splits = _splits(report.dataset)
    return dataset_check.render(
        name=report.dataset.name,
        problems=found.problems,
        warnings=found.warnings,
        facts=found.facts,
        tiles=[
            (title, split.num_classes, len(split)) for title, split in splits.items()
        ],
        class_sizes={
            title: report.class_sizes(split) for title, split in splits.items()
        },
        sections=_sections(report),
        notes=report.dataset.notes,
    )


def _splits(dataset: Dataset) -> dict:
    splits = {"Train": dataset.train, "Test": dataset.test}
    return {title: split for title, split in splits.items() if len(split)}


def _printable(text: str) -> str:
    """Without what a file name may hold that is not Unicode."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _sections(report: DatasetReport) -> list[Section]:
    sections = [
        _pairs(
            report,
            ACROSS_SPLITS,
            "In train and in test",
            "Images of the test split and their copies in train.",
        ),
        _pairs(
            report,
            ACROSS_CLASSES,
            "The same under two classes",
            "Copies in one split whose classes differ: one label is probably wrong.",
        ),
        _lines(
            "Unreadable images",
            [
                (report.name(image), reason)
                for image, reason in report.unreadable.items()
            ],
        ),
        _lines("Files left out", report.dataset.skipped),
        _unusual(report),
        _smallest_classes(report),
        _pairs(
            report,
            WITHIN_CLASS,
            "Copies within a class",
            "Harmless, but such a pair teaches nothing.",
        ),
    ]
    return [section for section in sections if section is not None]


def _pairs(
    report: DatasetReport, relation: int, title: str, text: str
) -> Section | None:
    """The pairs of a kind: identical ones first, then the most alike."""
    found = np.flatnonzero(report.relations == relation)
    if not len(found):
        return None
    found = found[np.lexsort((-report.alike[found], ~report.identical[found]))]
    rows = []
    for at in found[:MAX_PAIRS]:
        same = report.identical[at]
        title_of_pair = "identical" if same else f"{report.alike[at]:.1%} alike"
        rows.append(_pictures(report, title_of_pair, report.pairs[at]))
    shown = f" {_shown(len(found), MAX_PAIRS, 'pair')}"
    return Section(title, text + shown, tuple(rows))


def _unusual(report: DatasetReport) -> Section | None:
    outliers = messages.unusual_sizes(report)
    images = {int(image): "one shade" for image in report.blank}
    images |= {outlier.image: outlier.kind for outlier in outliers}
    if not images:
        return None
    width, height = report.sizes.T
    captions = [
        f"{kind}, {width[image]} x {height[image]}" for image, kind in images.items()
    ]
    row = _pictures(report, "", list(images)[:MAX_PICTURES], captions)
    text = (
        "Tiny or huge: a quarter or four times of the median side; long: four times as "
        f"long as wide. {_shown(len(images), MAX_PICTURES, 'image')}"
    )
    return Section("Unusual images", text, (row,))


def _smallest_classes(report: DatasetReport) -> Section | None:
    """One image of each of the smallest classes, if classes differ in size."""
    smallest = []
    for title, split in _splits(report.dataset).items():
        sizes = report.class_sizes(split)
        few = np.flatnonzero((sizes > 0) & (sizes < np.median(sizes) / 2))
        smallest += [(int(sizes[c]), title, int(c)) for c in few]
    if not smallest:
        return None
    smallest.sort(key=lambda one: one[0])
    images, captions = [], []
    for size, title, c in smallest[:MAX_PICTURES]:
        split = _splits(report.dataset)[title]
        index = np.flatnonzero(report.readable_of(split) & (split.labels == c))[0]
        images.append(report.number(split, index))
        captions.append(f"{title.lower()}: {counted(size, 'image')}")
    text = (
        "Classes of fewer than half the median number of images, one of each. "
        f"{_shown(len(smallest), MAX_PICTURES, 'class', 'classes')}"
    )
    row = _pictures(report, "", images, captions)
    return Section("The smallest classes", text, (row,))


def _lines(title: str, lines: Sequence[tuple[str, str]]) -> Section | None:
    if not lines:
        return None
    return Section(
        title, _shown(len(lines), MAX_LINES, "file"), lines=tuple(lines[:MAX_LINES])
    )


def _shown(total: int, most: int, noun: str, plural: str | None = None) -> str:
    found = counted(total, noun, plural)
    return f"{found}." if total <= most else f"{found}; the first {most} are shown."


def _pictures(report: DatasetReport, title: str, images, captions=None) -> Pictures:
    """Images side by side, each with its name and class."""
    items = []
    for at, image in enumerate(images):
        split, index = report.place(image)
        try:
            picture = thumbnail(split.read(index))
        except UnreadableImage as error:  # It was readable a moment ago.
            title = str(error)
            continue
        side = "test" if report.is_test(image) else "train"
        remark = captions[at] if captions else side
        caption = f"{remark}, {report.class_name(image)}: {report.name(image)}"
        items.append((caption, picture))
    return Pictures(title, tuple(items))
