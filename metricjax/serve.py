"""`metricjax serve`: a web page and an API for image search."""

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from metricjax.cli import gallery_flags
from metricjax.cli.parser import Parser, answer
from metricjax.errors import InputError

USAGE = """\
metricjax serve: a web page and an API that search a gallery by picture.

  metricjax serve RUN [--gallery SOURCE] [--port 8000]

Open the address that it prints and drop a picture. The gallery is embedded at the first
start and cached.

  RUN                the workdir of a finished run
  --gallery SOURCE   what is searched, as of `metricjax search`: a directory, .zip or
                       .tar, a packed data set, a text list of paths, a file of
                       embeddings (default: the test images of the run)
  --host HOST        the address to listen on (default: 127.0.0.1, this machine alone)
  --port PORT        (default: 8000; 0: any free one)
  --batch N          pictures embedded at a time, at most (default: 32)
  --images SOURCE    where the images of a file of embeddings are
  --name, --part, --cropped, --index, --threads
                     as of `metricjax search`
  --help, --version  this text; the version

Examples:

  metricjax serve runs/quickstart --gallery photos.zip
  curl -H 'Content-Type: image/jpeg' --data-binary @PICTURE.jpg \\
    'http://127.0.0.1:8000/search?top=10&category=NAME&class=NAME'
  curl -F image=@PICTURE.jpg -F top=10 http://127.0.0.1:8000/search

A picture may have 16 MiB and 16 million pixels, a JPEG 50 million. There is no
password: whoever reaches the address can search.

Exit code: 0 ended by SIGTERM or Ctrl-C; 2 an input error, reported in one sentence; 130
stopped before it served; 1 a bug in metricjax, with a traceback.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    stopped = "stopped; the embeddings computed so far are saved."
    return answer(arguments, USAGE, lambda given: _run(_parse(given)), stopped=stopped)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser()
    parser.add_argument("run")
    gallery_flags.add(parser)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args(arguments)
    if not 0 <= options.port < 2**16:
        raise InputError(f"--port is {options.port}: it must be 0 to 65535.")
    if options.batch < 1:
        raise InputError(f"--batch is {options.batch}: it must be 1 or more.")
    gallery_flags.check(options)
    return options


def _run(options: argparse.Namespace) -> int:
    try:
        from metricjax.serving import server
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed, which the server needs: "
            "pip install 'metricjax[serve]'."
        ) from error
    bound = server.bind(options.host, options.port)
    say = partial(print, flush=True)
    app = _application(options, server.is_loopback(bound), say)

    def ready() -> None:
        if not server.is_loopback(bound):
            say(
                f"Anyone who reaches {options.host} can search the gallery and see its "
                "pictures: there is no password."
            )
        say(f"{server.address_of(bound)} is ready; Ctrl-C ends it.")

    server.run(app, bound, ready)
    return 0


def _application(options: argparse.Namespace, is_local: bool, say):
    """Build the web application; slow steps are reported through `say`."""
    from metricjax.inference.trained_model import TrainedModel
    from metricjax.runtime import compilation_cache
    from metricjax.serving import application, guard, searching, uploads
    from metricjax.serving.batches import RequestBatcher
    from metricjax.serving.catalog import Catalog, Threshold

    compilation_cache.enable()
    trained = TrainedModel.open(options.run)
    index = gallery_flags.open_index(options, trained, say)
    pages = {name: Path(options.run) / name for name in application.PAGES}
    pages = {name: path for name, path in pages.items() if path.is_file()}
    is_own = options.gallery is None and options.name is None
    explored = "explorer.html" in pages and is_own and options.part == "test"
    catalog = Catalog(index, Threshold.of(trained.results), explored)
    searcher = searching.Searcher(catalog, trained.embed_prepared)
    size = min(options.batch, trained.embedder.batch_size)
    say(f"compiling for batches of up to {size} pictures")
    searching.warm(searcher, trained.transform.config.shape, size)
    transform = trained.transform
    service = application.Service(
        title=_title(options, trained.config.data),
        catalog=catalog,
        batches=RequestBatcher(searcher, size=size),
        decoder=uploads.Decoder(
            transform.prepare_test, transform.config.channels, transform.enough
        ),
        receiver=uploads.Receiver(uploads.Limits()),
        pages=pages,
        threads=ThreadPoolExecutor(max(2, os.cpu_count() or 1), "decode"),
    )
    return application.application(service, guard.LOOPBACK if is_local else None)


def _title(options: argparse.Namespace, data) -> str:
    """What the page calls the gallery: its file, or else its data set."""
    source, name = options.gallery, options.name
    if source is None and name is None:
        source, name = data.root, data.name
    title = os.path.basename(os.path.normpath(source)) if source else name
    return f"{title}, {options.part} images" if options.part else title


if __name__ == "__main__":
    sys.exit(main())
