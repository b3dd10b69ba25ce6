"""The report of a run: one HTML file that needs no network.

Everything is inside the file (style, curves, pictures); it runs no script, and its
content security policy forbids it to load anything.
"""

import functools
import math
import os
import pathlib
import re
import statistics
from collections.abc import Callable, Mapping, Sequence

import jinja2
import numpy as np
from markupsafe import Markup, escape

from metricjax.reports import figures
from metricjax.reports.galleries import QueryNeighbors
from metricjax.reports.galleries import rows as gallery_rows
from metricjax.reports.studies import Study

OPEN_QUERIES = 4


def write(
    path: str | os.PathLike,
    *,
    results: Mapping,
    history: Sequence[Mapping],
    config: Mapping,
    galleries: Mapping[str, QueryNeighbors],
    image: Callable[[int], np.ndarray],
    name: Callable[[int], str],
    studies: Sequence[Study] = (),
    explorer: str | None = None,
) -> None:
    """Writes the report, whole or not at all (a temporary file, then a rename).

    Args:
        path: the HTML file; one that exists is replaced.
        results: as in results.json: metrics by name in 0..1 (`recall@1`, `map@r`, ...)
            with `intervals`, `floor`, `untrained`, `validation`, `queries`,
            `selected_on_test`, `dataset` (`train`, `validation` and `test`, each with
            `classes` and `images`, or the same flat: `train_classes`; `skipped`,
            `notes`),
            `warnings` (sentences), and whatever else is to stand under the run's
            details. All may be missing.
        history: the lines of metrics.jsonl, see `figures.panels`.
        config: the run's settings; `data.name` names the data set.
        galleries: queries and neighbours by moment, "before" and "after"; rows of the
            same query stand side by side.
        image: index to uint8 [h, w, c], c = 1 or 3.
        name: index to what the image is called.
        studies: analyses of the model.
        explorer: address of the explorer's page, relative to this one; None without.

    Raises:
        OSError: if the file cannot be written.
    """
    path = pathlib.Path(path)
    text = render(
        results=results,
        history=history,
        config=config,
        galleries=galleries,
        image=image,
        name=name,
        studies=studies,
        explorer=explorer,
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="replace")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def render(
    *, results, history, config, galleries, image, name, studies=(), explorer=None
) -> str:
    """The report as a string; arguments as for `write`."""
    settings = _flatten(config)
    dataset = results.get("dataset") or {}
    counts = _flatten(dataset, "_")
    main, others = figures.panels(history, results.get("selected_step"))
    rows = gallery_rows(galleries, image, name)
    return template("template.html").render(
        dataset=counts.get("name") or settings.get("data.name") or "",
        tiles=_tiles(counts, bool(results.get("selected_on_test"))),
        closed_set=bool(counts.get("closed_set", settings.get("data.closed_set"))),
        headline=_headline(results),
        metrics=_metrics(results),
        results=results,
        panels=main,
        other_panels=others,
        open_rows=rows[:OPEN_QUERIES],
        more_rows=rows[OPEN_QUERIES:],
        studies=studies,
        explorer=explorer,
        settings={key: _text(value) for key, value in settings.items()},
        details=_details(results, history),
        skipped=[_skipped(one) for one in dataset.get("skipped") or ()],
        notes=[str(note) for note in dataset.get("notes") or ()],
        warnings=[str(warning) for warning in results.get("warnings") or ()],
    )


@functools.cache
def template(name: str) -> jinja2.Template:
    """A page of this package: `name` is that of its file."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    environment.filters["count"] = _count
    environment.filters["breakable"] = _breakable
    return environment.get_template(name)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _breakable(text: str) -> Markup:
    """Escaped text that may break after the separators of paths and names."""
    return Markup(re.sub(r"([/._])", r"\1<wbr>", str(escape(text))))


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else _text(value)


def _share(values: Mapping | None, key: str) -> float | None:
    """A finite number of a dict that may lack it."""
    value = (values or {}).get(key)
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if real and math.isfinite(value) else None


def _interval(values: Mapping | None, key: str) -> tuple[float, float] | None:
    pair = ((values or {}).get("intervals") or {}).get(key)
    if pair is None or any(bound is None or math.isnan(bound) for bound in pair):
        return None
    return float(pair[0]), float(pair[1])


def _tiles(counts: Mapping, selected_on_test: bool) -> list[dict]:
    """The three sets of classes: trained on, choosing, tested on."""
    titles = {
        "train": ("Trained on", "seen"),
        "validation": ("Chose the step", "held out of training"),
        "test": ("Tested on", "never seen in training"),
    }
    if selected_on_test:
        titles["validation"] = ("Chose the step", "the same as tested on")
    tiles = []
    for key, (title, remark) in titles.items():
        classes, images = counts.get(f"{key}_classes"), counts.get(f"{key}_images")
        if classes is not None:
            tiles.append(
                {"title": title, "classes": classes, "images": images, "remark": remark}
            )
    return tiles


def _headline(results: Mapping) -> dict:
    """Recall@1 beside its two baselines, and a sentence on what that shows."""
    after, interval = _share(results, "recall@1"), _interval(results, "recall@1")
    untrained, floor = results.get("untrained"), _share(results, "floor")
    before = _share(untrained, "recall@1")
    bars = [
        ("after", "After training", after, interval),
        ("before", "Before training", before, _interval(untrained, "recall@1")),
        ("floor", "Raw pixels, no network", floor, None),
    ]
    baselines = [value for value in (before, floor) if value is not None]
    verdict, good = None, True
    if after is not None and baselines:
        gain = 100 * (after - max(baselines))
        best = "raw pixels" if max(baselines) == floor else "the untrained network"
        if gain <= 0:
            verdict, good = f"Training did not beat {best}.", False
        elif interval and interval[0] <= max(baselines):
            verdict = f"{gain:.1f} points above {best}, but the interval reaches there."
            good = False
        else:
            verdict = f"{gain:.1f} points above {best}."
    return {
        "value": after,
        "interval": interval,
        "bars": [bar for bar in bars if bar[2] is not None],
        "verdict": verdict,
        "good": good,
    }


def _order(key: str) -> tuple:
    macro = key.startswith("macro_")
    recall = re.fullmatch(r"(?:macro_)?recall@(\d+)", key)
    return (macro, 0, int(recall[1]), key) if recall else (macro, 1, 0, key)


def _is_metric(key: str, results: Mapping) -> bool:
    known = re.fullmatch(r"(macro_)?(recall@\d+|r_precision|map@r)|nmi|ami|f1", key)
    return bool(known) or key in (results.get("intervals") or {})


def _title(key: str) -> str:
    """What a metric is called: `macro_recall@1` is Recall@1, by class."""
    titles = {"r_precision": "R-precision", "map@r": "MAP@R"}
    titles |= {"nmi": "NMI", "ami": "AMI", "f1": "F1"}
    name = key.removeprefix("macro_")
    title = titles.get(name, name.capitalize())
    return title if name == key else f"{title}, by class"


def _metrics(results: Mapping) -> list[dict]:
    keys = [key for key in results if _is_metric(key, results)]
    return [
        {
            "title": _title(key),
            "value": _share(results, key),
            "interval": _interval(results, key),
            "before": _share(results.get("untrained"), key),
            "validation": _share(results.get("validation"), key),
        }
        for key in sorted(keys, key=_order)
    ]


def _details(results: Mapping, history: Sequence[Mapping]) -> dict[str, str]:
    """What is known of the run and is not a metric, as text by name."""
    shown_elsewhere = ("untrained", "validation", "intervals", "floor", "warnings")
    shown_elsewhere += ("thresholds", "verification")
    facts = {
        key: value
        for key, value in results.items()
        if key not in shown_elsewhere and not _is_metric(key, results)
    }
    if isinstance(facts.get("dataset"), Mapping):
        hidden = ("skipped", "notes")
        facts["dataset"] = {
            key: value for key, value in facts["dataset"].items() if key not in hidden
        }
    speed = figures.recorded(history, r"^images_?(/|per_)s")
    if speed:
        facts["images per second (median)"] = round(statistics.median(speed))
    return {key: _text(value) for key, value in _flatten(facts).items()}


def _flatten(values: Mapping, separator: str = ".", prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, separator, f"{prefix}{key}{separator}"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    return str(value)


def _skipped(one: object) -> tuple[str, str]:
    """(file, reason) of an entry of `skipped`, which may be the file alone."""
    if isinstance(one, str):
        return one, ""
    file, reason = one
    return str(file), str(reason)
