"""A gallery of colours behind the server: no network, an answer that is known.

As a program, `python served.py DIRECTORY [PORT]`, it serves as `metricjax.serve` does.
"""

import csv
import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from metricjax.data.collections import open_collection
from metricjax.inference.gallery_index import Index
from metricjax.serving import application, guard, searching, server, uploads
from metricjax.serving.batches import RequestBatcher
from metricjax.serving.catalog import Catalog, Threshold

SIDE = 16
# Class, category and colour; the names are such as files and tables may hold.
KINDS = (
    ("red", "warm", (220, 30, 30)),
    ("<script>document.title='owned'</script>", "warm", (250, 200, 40)),
    ('Grün & "blau" 日本 ‮', "cold <b>", (30, 170, 60)),
    ("blue", "cold <b>", (30, 60, 220)),
)
IMAGES = 5
BROKEN = 2  # The number of an image that cannot be decoded.


def draw(colour, number=0, size=(40, 32)) -> Image.Image:
    """A picture of a colour, a little different for each number."""
    pixels = np.random.default_rng(number).integers(-12, 13, (*size[::-1], 3))
    pixels += np.array(colour) + 3 * number
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encode(image, format="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def make_gallery(directory):
    """Images and their labels.csv; one of them is damaged."""
    lines = [("path", "label", "category")]
    for kind, (name, category, colour) in enumerate(KINDS):
        for number in range(IMAGES):
            path = f"{kind}-{number} é.png"
            content = encode(draw(colour, number))
            if len(lines) - 1 == BROKEN:
                content = content[:60]
            (directory / path).write_bytes(content)
            lines.append((path, name, category))
    with (directory / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    return directory


def prepare(image):
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE)))


def embed(pictures):
    """Mean colours, less grey, as directions."""
    means = np.stack(pictures).reshape(len(pictures), -1, 3).mean(axis=1) - 127.5
    return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


def make_index(directory) -> Index:
    split = open_collection(directory, channels=3)
    embeddings = np.zeros((len(split), 3), np.float32)
    valid = np.arange(len(split)) != BROKEN
    for row in np.flatnonzero(valid):
        embeddings[row] = embed([prepare(split.read(row))])[0]
    return Index(split, embeddings, valid)


def make_service(directory, *, pages=None, limits=None, **batching):
    """What routes use; `batching` as of `RequestBatcher`, `around` wraps answers."""
    explored = "explorer.html" in (pages or {})
    catalog = Catalog(make_index(directory), Threshold(0.98, 0.001), explored)
    answer = searching.Searcher(catalog, embed)
    around = batching.pop("around", None)
    if around is not None:
        answer = around(answer)
    return application.Service(
        title="colours",
        catalog=catalog,
        batches=RequestBatcher(answer, **batching),
        decoder=uploads.Decoder(prepare, 3),
        receiver=uploads.Receiver(limits or uploads.Limits()),
        pages=pages or {},
        threads=ThreadPoolExecutor(2),
    )


def serve(directory, port=0) -> None:
    limits = uploads.Limits(picture=2**20, held=2**22, seconds=1.5)
    pages = {"explorer.html": Path(directory) / "explorer.html"}
    pages["explorer.html"].write_text("<title>explored</title>", encoding="utf-8")
    service = make_service(directory, limits=limits, pages=pages)
    app = application.application(service, guard.LOOPBACK)
    bound = server.bind("127.0.0.1", port)
    server.run(app, bound, lambda: print(server.address_of(bound), flush=True))


class Process:
    """A server as a process, and what may be asked of it.

    Args:
      program: arguments of Python.
    """

    def __init__(self, *program, **options):
        self.process = subprocess.Popen(
            [sys.executable, *program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        said = []
        for line in self.process.stdout:
            said.append(line)
            if found := re.match(r"http://127\.0\.0\.1:(\d+)/", line):
                break
        else:
            raise AssertionError("".join(said) + self.process.communicate()[1])
        self.said = "".join(said)
        self.port = int(found[1])

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def peak(self) -> int:
        """Bytes of memory that it has needed at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


def start(gallery) -> Process:
    """This file as a program."""
    return Process(__file__, str(gallery))


if __name__ == "__main__":
    serve(*sys.argv[1:2], *map(int, sys.argv[2:3]))
