"""Does each method do what its paper says? On Omniglot and Grocery, with intervals.

    python benchmarks/papers.py TABLE --root DIR [--seeds 0,1,2] [--data grocery]
    python benchmarks/papers.py --report

TABLE is cgd, abe, hpl or ee. DIR has omniglot.zip and grocery.zip, each images and a
labels.csv (path,label,category,split); Grocery is packed at 72 pixels first. Every run
is one of `python -m metricjax.main`, its best step chosen on held-out training classes.
Stopped at any moment, the same command goes on; what is done stays in
results/papers/TABLE.jsonl, one line a run. `--quick` trains 20 steps, to see that all
runs; its lines are not kept. `--report` writes the tables anew from the lines.
"""

import argparse
import functools
import json
import os
import sys
import time
from pathlib import Path

import harness
import papers_cases
import papers_report

RESULTS = Path(__file__).parent / "results" / "papers"
PACKED_SIDE = 72


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", nargs="?", choices=papers_cases.TABLES)
    parser.add_argument("--root", type=Path, default=Path("."))
    parser.add_argument("--data", default=",".join(papers_cases.DATA))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--cases", help="names, by semicolons; default: all")
    parser.add_argument("--runs", type=Path, default=Path("runs/papers"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args(arguments)
    if not options.table and not options.report:
        parser.error("name a table, or --report")
    return options


def planned(options):
    """(data, seed, case) of all runs: all cases of a seed before the next."""
    names = options.cases.split(";") if options.cases else None
    for data in options.data.split(","):
        for seed in map(int, options.seeds.split(",")):
            for case in papers_cases.TABLES[options.table].cases:
                if names is None or case.name in names:
                    yield data, seed, case.name


def source(data, options):
    """Where a data set is, packed first where that pays."""
    archive = options.root / f"{data}.zip"
    if not archive.exists():
        sys.exit(f"{archive} is missing: name its directory with --root.")
    if data != "grocery":
        return archive
    packed = options.runs / f"{data}_{PACKED_SIDE}"
    _child(
        [str(archive), "--out", str(packed), "--short-side", str(PACKED_SIDE)],
        options.runs / "prepare.log",
        "prepare",
    )
    return packed


def run(table, data, seed, name, root, options):
    """Train one case; the line that tells of it."""
    workdir = options.runs / table / data / name.replace(" ", "_") / f"seed{seed}"
    config = Path(__file__).with_name("papers_config.py")
    overrides = {"seed": seed, "data.root": root, "data.threads": 2}
    if options.quick:
        overrides |= {"steps": 20, "eval_every": 10, "optimizer.warmup_steps": 2}
    flags = ["--config", f"{config}:{table}/{name}/{data}", "--workdir", str(workdir)]
    flags += [f"--config.{key}={value}" for key, value in overrides.items()]
    began = time.time()
    _child(flags, options.runs / "run.log", "main")
    results = json.loads((workdir / "results.json").read_text())
    history = (workdir / "metrics.jsonl").read_text().splitlines()
    return {
        "data": data,
        "seed": seed,
        "case": name,
        "results": _kept(results),
        "images_per_second": _speed(map(json.loads, history)),
        "seconds": round(time.time() - began, 1),
        "steps": results["steps"],
        **_machine(),
    }


@functools.cache
def _machine():
    found = harness.machine(" ".join(sys.argv))
    return {"commit": found["commit"], "machine": found["cpu"]}


def _kept(results):
    """What the tables need."""
    names = ("map@r", "r_precision", "recall@1", "recall@2", "recall@4", "recall@8")
    kept = {name: results[name] for name in names}
    kept |= {"intervals": {n: results["intervals"][n] for n in names}}
    for name in ("learners", "floor", "selected_step"):
        if name in results:
            kept[name] = results[name]
    kept["validation"] = results["validation"].get("map@r")
    kept["untrained"] = results["untrained"]["recall@1"]
    return kept


def _speed(lines):
    found = sorted(
        line["images_per_second"] for line in lines if "images_per_second" in line
    )
    return found[len(found) // 2] if found else None


def _child(arguments, log, command):
    """A command of metricjax in a fork, which has imported all that it needs."""
    log.parent.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        from metricjax import main, prepare

        code = {"main": main, "prepare": prepare}[command].main(arguments)
        sys.stdout.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        sys.exit(f"{' '.join(arguments)} ended with {code}:\n{log.read_text()[-2000:]}")


def main(arguments=None):
    options = parse(arguments)
    if options.table:
        _run_all(options)
    if not options.quick:
        papers_report.write(RESULTS)


def _run_all(options):
    from metricjax import train  # noqa: F401, imported once for all forks
    from metricjax.progress import progress_bar

    path = RESULTS / f"{options.table}.jsonl"
    kept = [] if options.quick or not path.exists() else papers_report.lines(path)
    done = {(line["data"], line["seed"], line["case"]) for line in kept}
    runs = [one for one in planned(options) if one not in done]
    roots = {data: source(data, options) for data, _, _ in runs}
    with progress_bar(options.table) as progress:
        for number, (data, seed, name) in enumerate(runs):
            progress(number, len(runs))
            line = run(options.table, data, seed, name, roots[data], options)
            recall = line["results"]["recall@1"]
            print(f"{data} seed {seed} {name}: Recall@1 {recall:.3f}, "
                  f"{line['seconds']} s", flush=True)  # fmt: skip
            if not options.quick:
                RESULTS.mkdir(parents=True, exist_ok=True)
                with path.open("a") as file:
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
