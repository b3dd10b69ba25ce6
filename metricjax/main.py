"""`python -m metricjax.main`: flags to config to training; nothing else."""

import os
import sys

USAGE = """\
metricjax: deep metric learning for image retrieval in JAX/Flax.

  python -m metricjax.main --config FILE[:VARIANT] [--workdir DIR] [--config.KEY=VALUE]
  python -m metricjax.main --config FILE[:VARIANT] --mode plan
  python -m metricjax.main --mode compare RUN RUN ...

Trains an embedding, judges it on classes it has never seen and writes a report.
Running the same command again resumes at the very next batch.

  --config FILE[:VARIANT]  what to run; among the files in configs/ are
                             configs/quickstart.py           letters drawn from
                               typefaces; needs no data, takes about two minutes
                             configs/omniglot.py             handwritten characters
                             configs/cgd_resnet50.py:folder  your own images
  --workdir DIR            where the run is kept (default: runs/FILE[-VARIANT]):
                             report.html, explorer.html, results.json,
                             metrics.jsonl, checkpoints/; also gs://bucket/run
  --config.KEY=VALUE       change a setting, as often as you like, for example
                             --config.data.root=photos.zip
                             --config.steps=2000
                             --config.objective.terms.triplet.margin=0.2
  --mode plan              train nothing and write nothing, but say what a run needs:
                             memory, time, the largest batch that fits; here, or on TPU
                             chips elsewhere (--config.plan.topology=v5e:16x16)
  --mode folds             a run for each part of the training classes, held out in turn
                             (--config.data.folds=4), in DIR/fold0 ...; then the mean,
                             and the embeddings joined. Run again to resume
  --mode compare RUN ...   workdirs of finished runs side by side: seeds of the same
                             settings together, differences paired, 95% intervals;
                             --format latex instead of markdown
  --print_config           print every setting with its value and exit
  --help                   this text

Exit code: 0 done, or stopped by SIGTERM or Ctrl-C and saved; 2 something to mend, told
in one sentence; 1 a fault of metricjax, with a traceback, or of several hosts one that
was lost, told in one sentence (run the same command again). All hosts end together.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"--help", "-h", "-help"} & set(arguments):
        print(USAGE, end="")
        return 0 if arguments else 2
    if {"JAX_COORDINATOR_ADDRESS", "TPU_WORKER_HOSTNAMES"} & set(os.environ):
        # Of a lost host one sentence tells, not what C++ has to say besides.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from metricjax.errors import InputError

    try:
        return _run(arguments)
    except InputError as error:
        print(f"metricjax: {error}", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    from metricjax.cli import config_flags

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

    compilation_cache.use()
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
