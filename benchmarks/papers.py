"""Does each method do what its paper says? On Omniglot and Grocery, with intervals.

    python benchmarks/papers.py TABLE --root DIR [--seeds 0,1,2] [--data grocery]
    python benchmarks/papers.py --report

TABLE is cgd, abe, hpl, ee or warm, or several by commas; warm has cases of the others,
each begun with a backbone that another loss has trained as long. DIR has omniglot.zip
and grocery.zip, each images and a labels.csv (path,label,category,split). A run trains
as `python -m metricjax.main` does, its best step chosen on held-out training classes,
and is judged on unseen ones; images are decoded once for all runs, and nothing but the
metrics is kept. `--jobs` of them go at a time. Stopped at any moment, the same command
goes on; what is done stands in results/papers/TABLE.jsonl, one line a run. `--quick`
trains 20 steps, to see that all runs; its lines are not kept. `--report` writes the
tables anew from the lines. `--pages DIR` trains as whole runs instead, with their
reports and the papers' figures in them.
"""

import argparse
import functools
import json
import multiprocessing
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import harness
import papers_cases
import papers_report

RESULTS = Path(__file__).parent / "results" / "papers"
PACKED_SIDE = 40


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", nargs="?", help=", ".join(papers_cases.TABLES))
    parser.add_argument("--root", type=Path, default=Path("."))
    parser.add_argument("--data", default=",".join(papers_cases.DATA))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--cases", help="names, by semicolons; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--packed", type=Path, default=Path("runs/papers"))
    parser.add_argument("--pages", type=Path, help="leave whole runs there instead")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args(arguments)
    options.tables = options.table.split(",") if options.table else []
    unknown = set(options.tables) - papers_cases.TABLES.keys()
    if unknown or not (options.tables or options.report):
        parser.error(f"name tables of {', '.join(papers_cases.TABLES)}, or --report")
    if options.pages and "warm" in options.tables:
        parser.error("--pages is not for warm, whose backbones are trained before")
    options.names = options.cases.split(";") if options.cases else None
    there = {c.name for name in options.tables for c in papers_cases.TABLES[name].cases}
    for name in set(options.names or ()) - there:
        parser.error(f"--cases names {name!r}; there are {'; '.join(sorted(there))}")
    return options


def planned(options):
    """(table, data, seed, case) of all runs: all of a seed before the next."""
    for seed in map(int, options.seeds.split(",")):
        for data in options.data.split(","):
            for table in options.tables:
                for case in papers_cases.TABLES[table].cases:
                    if options.names is None or case.name in options.names:
                        yield table, data, seed, case.name


def main(arguments=None):
    options = parse(arguments)
    if options.pages:
        _whole_runs(options)
        return
    if options.tables:
        _run_all(options)
    if not options.quick:
        papers_report.write(options.out)


# What the workers, forks of this process, find decoded.
_DATASETS = {}


def _run_all(options):
    from metricjax.cli.progress_bar import progress_bar

    done = set()
    for table in () if options.quick else options.tables:
        for line in papers_report.lines(options.out / f"{table}.jsonl"):
            done.add((table, line["data"], line["seed"], line["case"]))
    runs = [one for one in planned(options) if one not in done]
    for data in dict.fromkeys(data for _, data, _, _ in runs):
        _DATASETS[data] = _opened(data, options)
    print(f"{len(done)} runs are done, {len(runs)} to do, {options.jobs} at a time")
    fork = multiprocessing.get_context("fork")
    settling = fork.Value("i", 0), options.jobs
    work = functools.partial(_line, quick=options.quick, packed=options.packed)
    begin = functools.partial(_begin, quick=options.quick, packed=options.packed)
    begun = {(d, s) for t, d, s, _ in runs if papers_cases.TABLES[t].start}
    with (
        fork.Pool(options.jobs, _settle, settling) as pool,
        progress_bar("runs") as progress,
    ):
        for data, seed in pool.imap_unordered(begin, sorted(begun)):
            print(f"{data} seed {seed}: there is a backbone to begin with", flush=True)
        for number, (table, line) in enumerate(pool.imap_unordered(work, runs), 1):
            progress(number, len(runs))
            recall = line["results"]["recall@1"]
            print(f"{number}/{len(runs)} {line['data']} seed {line['seed']} "
                  f"{line['case']}: Recall@1 {recall:.3f}, {line['seconds']} s",
                  flush=True)  # fmt: skip
            if not options.quick:
                options.out.mkdir(parents=True, exist_ok=True)
                with (options.out / f"{table}.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")


def _whole_runs(options):
    """Runs with reports, checkpoints and all."""
    from metricjax.training import loop

    for table, data, seed, name in planned(options):
        config = _config(table, name, data, _source(data, options), seed=seed)
        place = f"{table}_{name}_{data}_{seed}".replace(" ", "_").replace(",", "")
        loop.train(config, options.pages / place, name)


def _opened(data, options):
    """A data set's images, decoded."""
    import papers_run

    from metricjax.training.run import open_data

    any_case = papers_cases.TABLES["cgd"].cases[0].name
    config = _config("cgd", any_case, data, _source(data, options))
    return papers_run.in_memory(open_data(config))


def _source(data, options):
    """Where a data set lies; packed first where that makes its images small."""
    from metricjax import prepare

    source = options.root / f"{data}.zip"
    if not source.exists():
        sys.exit(f"{source} is missing: name its directory with --root.")
    if data == "grocery":
        packed = options.packed / f"{data}_{PACKED_SIDE}"
        arguments = [source, "--out", packed, "--short-side", PACKED_SIDE]
        if prepare.main([str(argument) for argument in arguments]):
            sys.exit(f"{source} could not be packed.")
        source = packed
    return source


def _config(table, name, data, root=None, quick=False, **settings):
    from metricjax.config.parsing import from_config_dict

    config = from_config_dict(papers_cases.config_of(table, name, data, quick))
    config = replace(config, data=replace(config.data, root=root and str(root)))
    return replace(config, **settings)


def _settle(counter, jobs):
    """A worker begins: it gets a processor of its own where there are several."""
    with counter.get_lock():
        number, counter.value = counter.value, counter.value + 1
    processors = sorted(os.sched_getaffinity(0))
    if 1 < jobs <= len(processors):
        os.sched_setaffinity(0, processors[number::jobs])
    from metricjax.runtime import compilation_cache

    compilation_cache.enable()


def _weights(packed, data, seed, quick):
    """Where the backbone lies with which runs of a seed begin."""
    return packed / f"{'quick' if quick else 'start'}_{data}_{seed}.safetensors"


def _begin(data_seed, quick, packed):
    """Train that backbone, if it is not there."""
    import papers_run

    data, seed = data_seed
    path = _weights(packed, data, seed, quick)
    if not path.exists():
        start = papers_cases.TABLES["warm"].start
        config = _config("ee", start, data, seed=seed, quick=quick)
        papers_run.save_trained(config, _DATASETS[data], path)
    return data_seed


def _line(planned, quick, packed):
    """Train one case; the table, and the line that tells of it."""
    import papers_run

    table, data, seed, name = planned
    case, began = papers_cases.TABLES[table].case(name), time.time()
    config = _config(table, name, data, seed=seed, quick=quick)
    if papers_cases.TABLES[table].start:
        weights = str(_weights(packed, data, seed, quick))
        config = replace(config, model=replace(config.model, pretrained=weights))
    results = papers_run.trained(config, _DATASETS[data], case.networks)
    if case is papers_cases.TABLES[table].cases[0]:
        results["floor"] = papers_run.pixels(config, _DATASETS[data])
    seconds = round(time.time() - began, 1)
    return table, {
        "data": data, "seed": seed, "case": name, "results": results,
        "seconds": seconds, "steps": config.steps, **_machine(),
    }  # fmt: skip


@functools.cache
def _machine():
    found = harness.machine(" ".join(sys.argv))
    kept = ("commit", "gpu", "cpu", "jax", "date")
    return {name: found[name] for name in kept}


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    main()
