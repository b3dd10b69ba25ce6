"""`metricjax train`, `plan`, `folds` and `compare`; also `main --mode NAME`.

Come here for their usage texts and for what each of them calls.
"""

import sys
from functools import partial

from metricjax.cli.parser import answer
from metricjax.errors import InputError

_EXIT = """
Exit code: 0 done, or stopped by SIGTERM or Ctrl-C and saved; 2 an input error, reported
in one sentence; 1 a bug in metricjax, with a traceback, or a lost host, reported in one
sentence (run the same command again). All hosts end together.
"""
_SETTINGS = """\
  --config FILE[:VARIANT]  the run to train; configs/ has, among others,
                             configs/quickstart.py           letters drawn from
                               typefaces; needs no data, takes about two minutes
                             configs/omniglot.py             handwritten characters
                             configs/cgd_resnet50.py:folder  your own images
  --config.KEY=VALUE       change a setting, as often as you like, for example
                             --config.data.root=photos.zip
                             --config.steps=2000
                             --config.objective.terms.triplet.margin=0.2
"""
_WORKDIR = """\
  --workdir DIR            where the run is saved (default: runs/FILE[-VARIANT]):
                             report.html, explorer.html, results.json,
                             metrics.jsonl, checkpoints/; also gs://bucket/run
"""
_MODE = """\
  --mode MODE              train (default); --mode plan, folds or compare do what the
                             commands of these names do
"""
_COMMON = """\
  --print_config           print every setting with its value and exit
  --help, --version        this text; the version
"""
USAGES = {
    "train": f"""\
metricjax train: train an embedding and evaluate it on classes it has never seen.

  metricjax train --config FILE[:VARIANT] [--workdir DIR] [--config.KEY=VALUE ...]

Writes a report. Running the same command again resumes at the very next batch, also
after a kill. The same command on every host is one run over all of their devices.

{_SETTINGS}{_WORKDIR}{_MODE}{_COMMON}
Examples:

  metricjax train --config configs/quickstart.py
  metricjax train --config configs/cgd_resnet50.py:folder --config.data.root=photos.zip
  python -m metricjax.main --config configs/cgd_resnet50.py --workdir gs://bucket/run
{_EXIT}""",
    "plan": f"""\
metricjax plan: what a run will need, before it starts.

  metricjax plan --config FILE[:VARIANT] [--config.KEY=VALUE ...]

Trains nothing and writes nothing. Prints memory, the time of a step and of the run, and
the largest batch that fits: on this machine's devices, where a few steps are timed, or
on TPU chips elsewhere, for which programs are compiled and times estimated (needs
metricjax[plan]).

{_SETTINGS}{_COMMON}
Examples:

  metricjax plan --config configs/cgd_resnet50.py:folder --config.data.root=photos.zip
  metricjax plan --config configs/cgd_resnet50.py --config.plan.topology=v5e:16x16
{_EXIT}""",
    "folds": f"""\
metricjax folds: class-disjoint cross-validation.

  metricjax folds --config FILE[:VARIANT] [--workdir DIR] [--config.KEY=VALUE ...]

One run for each part of the training classes, held out in turn, in DIR/fold0, fold1 and
so on; then the mean over folds with its interval, and the embeddings of all folds
joined. Running the same command again resumes.

{_SETTINGS}{_WORKDIR}{_COMMON}
Examples:

  metricjax folds --config configs/quickstart.py --workdir runs/folds
  metricjax folds --config configs/omniglot.py --config.data.folds=5
{_EXIT}""",
    "compare": """\
metricjax compare: finished runs side by side.

  metricjax compare RUN RUN ... [--format markdown|latex]

Runs of the same settings over several seeds count as one entry. Differences are paired,
over seeds or over queries, with 95% intervals.

  RUN                workdirs of finished runs, here or in a bucket
  --format NAME      markdown (default) or latex
  --help, --version  this text; the version

Examples:

  metricjax compare runs/cgd-seed0 runs/cgd-seed1 runs/abe-seed0 runs/abe-seed1
  metricjax compare runs/before runs/after --format latex

Exit code: 0 done; 2 an input error, reported in one sentence; 1 a bug in metricjax.
""",
}
USAGE = USAGES["train"]


def main(arguments: list[str] | None = None, command: str = "train") -> int:
    """Run the command line; returns the exit code.

    Args:
      arguments: None: those of this process.
      command: one of `USAGES`: the mode where --mode names no other.
    """
    # A Ctrl-C during training is handled by the training loop, which saves and ends.
    # Any other one is raised: the traceback shows what was interrupted.
    run = partial(_run, command=command)
    return answer(arguments, USAGES[command], run, stopped=None)


def _run(arguments: list[str], command: str) -> int:
    from metricjax.cli import config_flags

    if command != "train":
        if any(argument.split("=")[0] == "--mode" for argument in arguments):
            raise InputError(f"metricjax {command} takes no --mode: leave it out.")
        arguments = ["--mode", command, *arguments]
    options = config_flags.parse(arguments)
    if isinstance(options, config_flags.Comparison):
        from metricjax.comparison import runs, tables

        entries = runs.read(options.runs)
        print(tables.render(entries, options.form), end="")
        return 0
    if options.print_config:
        print(options.config_dict)
        return 0

    from metricjax.runtime import compilation_cache

    compilation_cache.enable()
    if options.mode == "plan":
        from metricjax.planning import plan

        plan.plan(options.config, options.name)
        return 0

    from metricjax.runtime import connection, watchdog
    from metricjax.training import cross_validation, loop

    run = cross_validation.train_folds if options.mode == "folds" else loop.train
    connection.connect()
    with watchdog.watched(options.config.host_timeout):
        run(options.config, options.workdir, options.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
