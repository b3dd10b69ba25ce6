"""`metricjax export`: a trained network as an ONNX or StableHLO file."""

import argparse
import sys
from pathlib import Path

from metricjax.cli.parser import Parser, answer
from metricjax.errors import InputError

USAGE = """\
metricjax export: a trained network as one file, with a model card.

  metricjax export RUN --format stablehlo [--out FILE] [--platforms cpu,tpu]
  metricjax export RUN --format onnx [--out FILE]

The file takes uint8 images [b, s, s, c], any number b of them, sized as the card says,
and gives float32 embeddings [b, d] of unit length; normalisation is inside. It is read
back and compared with the run. FILE.md, the card, holds the run's data, results with
intervals, thresholds and settings, and how to load the file.

  RUN               the workdir of a finished run, here or in a bucket
  --format NAME     stablehlo: for jax alone (jax.export), on any of the platforms;
                      needs metricjax[export]. onnx: for ONNX runtimes, float32; needs
                      metricjax[onnx]
  --out FILE        default: RUN/model.stablehlo or RUN/model.onnx
  --platforms LIST  of stablehlo: some of cpu, cuda, rocm, tpu (default: cpu,cuda,tpu)
  --help, --version
                    this text; the version

Examples:

  metricjax export runs/quickstart --format onnx
  metricjax export runs/quickstart --format stablehlo --platforms cpu

Exit code: 0 done; 2 an input error, reported in one sentence; 130 stopped by Ctrl-C;
1 a bug in metricjax, with a traceback.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return answer(arguments, USAGE, lambda given: _run(_parse(given)))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser()
    parser.add_argument("run")
    parser.add_argument("--format")
    parser.add_argument("--out")
    parser.add_argument("--platforms")
    options = parser.parse_args(arguments)
    if options.format not in ("stablehlo", "onnx"):
        found = f"is {options.format!r}" if options.format else "is missing"
        raise InputError(f"--format {found}: it must be stablehlo or onnx.")
    if options.format == "onnx" and options.platforms:
        raise InputError("--platforms is for --format stablehlo: leave it out.")
    if not options.out and "://" in options.run:
        raise InputError("--out is missing: name a file here, as the run is elsewhere.")
    return options


def _platforms(listed: str | None) -> list[str]:
    from metricjax.exporters.formats import PLATFORMS

    names = ["cpu", "cuda", "tpu"] if listed is None else listed.split(",")
    for name in names:
        if name not in PLATFORMS:
            raise InputError(
                f"--platforms has {name!r}: choose among {', '.join(PLATFORMS)}."
            )
    return names


def _run(options: argparse.Namespace) -> int:
    from metricjax.exporters import formats, model_card
    from metricjax.inference.trained_model import TrainedModel
    from metricjax.runtime import compilation_cache
    from metricjax.storage.atomic import atomic_file, write_atomically

    platforms = _platforms(options.platforms)
    out = Path(options.out or Path(options.run) / f"model.{options.format}")
    out = out.expanduser()
    if out.is_dir() or (options.out and not out.parent.is_dir()):
        raise InputError(f"--out {out}: name a file in a directory that exists.")
    compilation_cache.enable()
    trained = TrainedModel.open(options.run)
    if options.format == "onnx":
        content, run = formats.onnx(trained), formats.run_onnx
    else:
        content = formats.stablehlo(trained, platforms)
        run = formats.run_stablehlo
    found = formats.difference(trained, run(content))
    if not found <= formats.TOLERANCE[trained.config.model.dtype]:
        raise RuntimeError(
            f"the exported network's embeddings differ from the run's by {found:.1e}"
        )
    card = out.with_name(f"{out.name}.md")
    text = model_card.render(trained, out.name, options.format, platforms, found)
    try:
        with atomic_file(out) as unfinished:
            unfinished.write_bytes(content)
        write_atomically(card, text)
    except OSError as error:
        raise InputError(
            f"--out {out} cannot be written ({error.strerror}): name another file."
        ) from error
    print(
        f"{out}: {len(content) / 2**20:.1f} MiB; read back, its embeddings are the "
        f"run's within {found:.1e}\n{card}: what it is and how to load it"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
