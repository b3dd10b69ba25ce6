"""A comparison of runs as tables, in Markdown or LaTeX."""

import json
from collections.abc import Sequence
from typing import Any

from metricjax.comparison.runs import (
    METRICS,
    Difference,
    Entry,
    Estimate,
    difference,
    differing_settings,
)

TITLES = {"recall@1": "Recall@1", "r_precision": "R-precision", "map@r": "MAP@R"}
_VERSIONS = ("metricjax", "jax")

Rows = list[list[str]]


def render(entries: Sequence[Entry], form: str) -> str:
    """All tables of a comparison, and what to know when reading them.

    Args:
      entries: as `comparison.read` returns them; the first is what others are compared
        with.
      form: one of `config_flags.FORMATS`.

    Raises:
      InputError: they were not tested on the same images.
    """
    differences = [difference(entry, entries[0]) for entry in entries[1:]]
    table, sentence = {
        "markdown": (markdown, lambda text: text),
        "latex": (_latex, lambda text: f"% {text}"),
    }[form]
    interval = {"markdown": plain, "latex": _bracketed}[form]
    parts = [sentence(_tested(entries)), table(_results(entries, interval))]
    if differences:
        parts.append(sentence(f"What others have more than {entries[0].name}:"))
        parts.append(table(_differences(differences, interval)))
        settings = _settings(entries)
        if len(settings) > 1:
            parts.append(sentence("Settings that differ:"))
            parts.append(table(settings))
    notes = [f"- {note}" for note in _notes(entries, differences)]
    parts.append("\n".join(map(sentence, notes)))
    return "\n\n".join(parts) + "\n"


def _tested(entries) -> str:
    run = entries[0].runs[0]
    name, queries = run.results["dataset"]["name"], len(run.queries["query"])
    classes = len(set(run.queries["label"].tolist()))
    return f"Tested on {name}: {queries:,} queries of {classes:,} classes. In percent."


def _results(entries, interval) -> Rows:
    rows = [["", "runs", "seeds", *(TITLES[metric] for metric in METRICS)]]
    for entry in entries:
        seeds = sorted({run.repetition[0] for run in entry.runs})
        folds = {run.repetition[1] for run in entry.runs}
        said = ", ".join(map(str, seeds))
        said += f"; {len(folds)} folds" if len(folds) > 1 else ""
        cells = [interval(entry.estimate(metric), "") for metric in METRICS]
        rows.append([entry.name, _addresses(entry), said, *cells])
    return rows


def _differences(differences: Sequence[Difference], interval) -> Rows:
    rows = [["", "compared", *(TITLES[metric] for metric in METRICS)]]
    for one in differences:
        cells = [interval(one.estimates[metric], "+") for metric in METRICS]
        rows.append([f"{one.entry} - {one.base}", one.how, *cells])
    return rows


def _settings(entries) -> Rows:
    rows = [["setting", *(entry.name for entry in entries)]]
    for name, values in differing_settings(entries).items():
        rows.append([name, *map(_value, values)])
    return rows


def _notes(entries, differences) -> list[str]:
    runs = [run for entry in entries for run in entry.runs]
    several = any(len(entry.runs) > 1 for entry in entries)
    notes = ["In brackets: 95% intervals."]
    if several:
        notes.append("Of several runs: the mean, with a t-interval over runs.")
    if any(len(entry.runs) == 1 for entry in entries):
        notes.append(
            "Of one run: bootstrap over test classes, which holds nothing of the noise "
            "between seeds."
        )
    if any("queries" in one.how for one in differences):
        notes.append(
            "Differences by query: bootstrap over test classes, of these runs alone; "
            "other seeds might differ otherwise."
        )
    if any(len({run.repetition[1] for run in entry.runs}) > 1 for entry in entries):
        notes.append(
            "Folds share most of their training classes, so that their runs are alike "
            "and intervals over them too narrow."
        )
    if differences:
        notes.append("A difference whose interval holds 0 has not been shown.")
    if len(differences) > 1:
        notes.append("With many differences, some intervals miss 0 by chance.")
    marked = [run.address for run in runs if run.results.get("selected_on_test")]
    if marked:
        notes.append(f"Selected on the test classes, so too good: {', '.join(marked)}.")
    for name in _VERSIONS:
        used = sorted({str(run.results["versions"].get(name)) for run in runs})
        if len(used) > 1:
            notes.append(f"Not of one version: {name} {', '.join(used)}.")
    return notes


def _addresses(entry: Entry) -> str:
    """`runs/a0, a1`: directories are named once."""
    addresses = [run.address.rstrip("/") for run in entry.runs]
    parents = {address.rpartition("/")[0] for address in addresses}
    if len(parents) > 1 or len(addresses) == 1:
        return ", ".join(addresses)
    first, *rest = addresses
    return ", ".join([first, *(address.rpartition("/")[2] for address in rest)])


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def plain(one: Estimate, sign: str) -> str:
    """`61.20 (60.10 to 62.31)`; `sign` is "+" for differences, else ""."""
    return "{0:{s}.2f} ({1:{s}.2f} to {2:{s}.2f})".format(*_percent(one), s=sign)


def _bracketed(one: Estimate, sign: str) -> str:
    return "{0:{s}.2f} [{1:{s}.2f}, {2:{s}.2f}]".format(*_percent(one), s=sign)


def _percent(one: Estimate) -> list[float]:
    """Without a negative zero, which would print a sign."""
    return [round(100 * value, 2) + 0.0 for value in one]


def markdown(rows: Rows) -> str:
    """A table of which the first row is the head."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in [rows[0], rule, *rows[1:]]
    )


def _latex(rows: Rows) -> str:
    escaped = [[_escaped(cell) for cell in row] for row in rows]
    head, *body = (" & ".join(row) + r" \\" for row in escaped)
    columns = "l" * len(rows[0])
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule"]
    return "\n".join([*lines, *body, r"\bottomrule", r"\end{tabular}"])


def _escaped(text: str) -> str:
    special: dict[str, str] = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
    special |= {"^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
    special |= {character: f"\\{character}" for character in "&%$#_{}"}
    return "".join(special.get(character, character) for character in text)
