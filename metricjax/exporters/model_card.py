"""The card beside an exported network: what it is, what it reaches, how to load it.

Every number in it comes from the run's results and settings; what the run did not
record is left out or said to be unknown.
"""

import importlib.metadata
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from metricjax.config.parsing import to_dict
from metricjax.errors import counted
from metricjax.exporters import loading_snippets
from metricjax.inference.trained_model import TrainedModel
from metricjax.models.cost import count_parameters

_NORMALIZATIONS = {
    "imagenet": "ImageNet's mean and deviation of each channel",
    "half": "x / 127.5 - 1",
    "caffe": "blue, green, red, each less its mean, in 0 to 255",
    "none": "x / 255",
}


def render(
    trained: TrainedModel,
    file: str,
    kind: str,
    platforms: Sequence[str],
    difference: float,
) -> str:
    """The card in Markdown.

    Args:
      trained: the run.
      file: name of the exported file.
      kind: its format, "stablehlo" or "onnx".
      platforms: of StableHLO.
      difference: the largest one between its embeddings and the run's.
    """
    results = trained.results
    sections = {
        "Input and output": _specification(trained),
        "How to load it": loading_snippets.snippet(
            trained.transform.config, file, kind
        ),
        "Data": _data(results),
        "What it reaches": _metrics(results, trained),
        "Same or different": _thresholds(results),
        "Training": _training(trained),
        "Limits": _limits(trained),
        "Licence": "The weights' licence is yours to state: it depends on the images "
        "and on the weights that training began with. None is stated here.",
        "Versions": _versions(trained, kind, platforms, difference),
    }
    name = f"{results.get('config', 'run')} on {_dataset(results)}"
    parts = [f"# {name}: image embeddings", _summary(trained, file, kind)]
    parts += [f"## {title}\n\n{text}" for title, text in sections.items() if text]
    return "\n\n".join(parts) + "\n"


def _summary(trained: TrainedModel, file: str, kind: str) -> str:
    model = trained.config.model
    count = count_parameters(trained.variables["params"])
    return (
        f"`{file}` turns an image into {trained.width} numbers of unit length. The dot "
        "product of two such embeddings, their cosine similarity, is high where the "
        "images show the same thing. It is the network "
        f"`{model.backbone}` under the head `{model.head}` ({count / 1e6:.2f} M "
        f"parameters), trained with metricjax and exported as "
        f"{'ONNX' if kind == 'onnx' else 'StableHLO'}."
    )


def _specification(trained: TrainedModel) -> str:
    config = trained.transform.config
    side, colours = config.image_size, "grey" if config.channels == 1 else "RGB"
    return (
        f"- Input: `uint8 [b, {side}, {side}, {config.channels}]`, b images of any "
        f"number, {colours}, 0 to 255.\n"
        f"- Sized by: {loading_snippets.rule(config)} Other ways of sizing give other "
        "embeddings.\n"
        f"- Normalisation is inside: {_NORMALIZATIONS[config.normalizes_as]}.\n"
        f"- Output: `float32 [b, {trained.width}]`, each row of unit length."
    )


def _data(results: Mapping) -> str:
    found = results.get("dataset") or {}
    uses = {
        "train": "trained on",
        "validation": "held out of training; chose the parameters and the thresholds",
        "test": "tested on",
    }
    if results.get("selected_on_test"):
        del uses["validation"]
        uses["test"] += "; chose the parameters"
    rows = [
        (use, f"{found[part]['classes']:,}", f"{found[part]['images']:,}")
        for part, use in uses.items()
        if part in found
    ]
    closed = found.get("closed_set")
    said = {
        True: "Closed set: test classes were also trained on, so that nothing here "
        "tells how unseen classes are found.",
        False: "No class stands in two of the rows: what is tested on was never seen "
        "in training.",
    }.get(closed, "")
    lines = [f"Data set: {_dataset(results)}. {said}".rstrip()]
    if found.get("fingerprint"):
        lines[0] += (
            f" Digest of the list of images and labels: `{found['fingerprint']}`."
        )
    if found.get("skipped"):
        lines.append(f"{counted(len(found['skipped']), 'file')} could not be read.")
    lines += [str(note) for note in found.get("notes") or ()]
    return "\n\n".join([" ".join(lines), _table(("", "classes", "images"), rows)])


def _dataset(results: Mapping) -> str:
    return str((results.get("dataset") or {}).get("name", "a data set without a name"))


def _metrics(results: Mapping, trained: TrainedModel) -> str:
    titles = {f"recall@{k}": f"Recall@{k}" for k in trained.config.evaluation.recall_at}
    titles |= {"r_precision": "R-precision", "map@r": "MAP@R"}
    columns = ("test classes", "95% interval", "before training", "validation")
    rows = []
    for key, title in titles.items():
        if key in results:
            interval = (results.get("intervals") or {}).get(key)
            others = [results.get(name) or {} for name in ("untrained", "validation")]
            rows.append(
                (
                    title,
                    f"{results[key]:.4f}",
                    f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "",
                    *(f"{o[key]:.4f}" if key in o else "" for o in others),
                )
            )
    said = (
        f"Of {results['queries']:,} queries. A query never finds itself; ties count at "
        f"their expected value ({results['ties']:,} queries have some); "
        f"{results['lone_queries']:,} queries without another image of their class are "
        "left out. Intervals are by bootstrap over classes and hold no variation "
        "between training seeds."
        if {"queries", "ties", "lone_queries"} <= results.keys()
        else ""
    )
    floor = results.get("floor")
    if floor is not None:
        said += f" Raw pixels, without any network, reach Recall@1 {floor:.4f}."
    if results.get("selected_on_test"):
        warning = "The parameters were chosen on the test classes: this is too good."
        said = f"**{warning}** {said}"
    return "\n\n".join(filter(None, [_table(("", *columns), rows), said]))


def _thresholds(results: Mapping) -> str:
    found, notes = results.get("thresholds") or [], []
    summary = results.get("verification") or {}
    notes += summary.get("notes") or []
    if not found:
        return " ".join(["No thresholds are recorded for this run.", *notes])
    rows = []
    for one in found:
        test = one.get("test") or {}
        rows.append(
            (
                f"{100 * one['false_match_rate']:g}%",
                f"{one['similarity']:.4f}",
                _rate(one, "true_match_rate", "interval"),
                _rate(test, "false_match_rate", "false_match_interval"),
                _rate(test, "true_match_rate", "interval"),
            )
        )
    columns = ("false matches allowed", "similarity at least", "same found, held-out")
    columns += ("false matches, test", "same found, test")
    errors = [
        f"{100 * summary[part]['equal_error_rate']:.3g}% on {name} classes "
        f"({summary[part]['pairs']['same']:,} pairs of one class, "
        f"{summary[part]['pairs']['different']:,} of different ones)"
        for part, name in (("held_out", "held-out"), ("test", "test"))
        if part in summary
    ]
    said = (
        "Two images are taken for the same where the similarity is at least the "
        "threshold. Thresholds were set on classes held out of training and then tried "
        "on the test classes. False matches are a share of the pairs of different "
        "classes, same found of the pairs of one class; in brackets 95% intervals over "
        f"classes. Equal error rate: {'; '.join(errors)}."
    )
    return "\n\n".join([said, _table(columns, rows), *notes])


def _rate(values: Mapping, rate: str, interval: str) -> str:
    if rate not in values:
        return "not tried"
    bounds = [f"{100 * bound:.3g}" for bound in values.get(interval) or ()]
    said = f" ({bounds[0]} to {bounds[1]})" if bounds else ""
    return f"{100 * values[rate]:.3g}%{said}"


def _training(trained: TrainedModel) -> str:
    config, results = trained.config, trained.results
    pretrained = config.model.pretrained or "none, random values"
    rows = [
        ("losses", ", ".join(config.objective.terms)),
        ("weights begun with", pretrained),
        ("steps of batches", f"{config.steps:,} of {config.batch_size:,} images"),
        ("optimizer", f"{config.optimizer.method}, {config.optimizer.learning_rate:g}"),
        ("seed", config.seed),
        ("parameters of step", results.get("selected_step", "unknown")),
        ("chosen by", results.get("selected_by", "unknown")),
    ]
    settings = to_dict(config)
    for name in ("plan", "host_timeout"):
        del settings[name]
    for name in ("root", "source", "threads"):  # of the machine, not of the model
        del settings["data"][name]
    return (
        f"{_table(('', ''), rows)}\n\n<details><summary>All settings</summary>\n\n"
        f"```json\n{json.dumps(settings, indent=1)}\n```\n\n</details>"
    )


def _limits(trained: TrainedModel) -> str:
    results = trained.results
    test = (results.get("dataset") or {}).get("test") or {}
    classes = f"{test['classes']:,} classes" if "classes" in test else "classes"
    lines = [
        f"The numbers are of {classes} of {_dataset(results)}. Of pictures of another "
        "kind, from other cameras or of other things they say nothing.",
        "They are of one training seed.",
        "A threshold holds for pairs as they were compared: where classes are more "
        "alike there are more false matches. Set it on your own labelled images with "
        "`python -m metricjax.calibrate`.",
        "Nothing was measured of how errors differ between groups of people, places or "
        "products other than the classes.",
    ]
    lines += [f"Warning of the run: {line}" for line in results.get("warnings") or ()]
    return "\n".join(f"- {line}" for line in lines)


def _versions(trained, kind, platforms, difference) -> str:
    made = trained.results.get("versions") or {}
    if kind == "onnx":
        from metricjax.exporters.onnx.convert import OPSET

        form = f"ONNX, opset {OPSET}, float32"
    else:
        form = f"StableHLO, serialised by jax.export, for {', '.join(platforms)}"
    rows = [
        ("format", form),
        ("largest difference to the run's embeddings", f"{difference:.1e}"),
        ("identity of network and settings, SHA-256", f"`{trained.identity}`"),
        ("trained with", ", ".join(f"{k} {v}" for k, v in made.items()) or "unknown"),
        (
            "exported with",
            ", ".join(f"{n} {importlib.metadata.version(n)}" for n in _exporters(kind)),
        ),
    ]
    return _table(("", ""), rows)


def _exporters(kind: str) -> list[str]:
    return ["metricjax", "jax", *(["onnx", "onnxruntime"] if kind == "onnx" else [])]


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
