"""How many searches a second `python -m metricjax.serve` answers, and how soon.

    python benchmarks/serve.py --run runs/quickstart [--seconds 3] [--out FILE.md]

Two servers of one run, one that embeds up to 32 pictures at a time and one that embeds
them one by one, take turns in rounds. Clients on the same machine send pictures of the
run's test images over connections that they keep, each the next one as soon as it has
the answer. A minute and a half on two cores.
"""

import argparse
import http.client
import io
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import harness
import numpy as np
from PIL import Image

from metricjax.inference.gallery_index import open_images
from metricjax.inference.trained_model import TrainedModel

CLIENTS = (1, 8, 32)
BATCHES = {"up to 32 at a time": 32, "one at a time": 1}
ROUNDS = 3
PICTURES = 200


def pictures(run):
    """Some test images of the run as PNG files."""
    split = open_images(TrainedModel.open(run), None, part="test")
    files = []
    for row in np.random.default_rng(0).integers(0, len(split), PICTURES):
        pixels, file = split.read(row), io.BytesIO()
        Image.fromarray(pixels.squeeze()).save(file, "PNG")
        files.append(file.getvalue())
    return files


class Server:
    """The server as a process of its own."""

    def __init__(self, run, batch):
        program = [sys.executable, "-m", "metricjax.serve", str(run), "--port", "0"]
        self._process = subprocess.Popen(
            [*program, "--batch", str(batch)], stdout=subprocess.PIPE, text=True
        )
        for line in self._process.stdout:
            if found := re.match(r"http://127\.0\.0\.1:(\d+)/", line):
                self._port = int(found[1])
                return
        raise SystemExit("The server has not started.")

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)

    def health(self):
        connection = self.connect()
        connection.request("GET", "/healthz")
        health = json.loads(connection.getresponse().read())
        connection.close()
        return health

    def close(self):
        self._process.terminate()
        self._process.wait()


def latencies(server, files, clients, seconds):
    """Seconds of each answer while so many clients ask for some time."""
    found, until = [[] for _ in range(clients)], time.perf_counter() + seconds

    def ask(mine, place):
        connection = server.connect()
        while (began := time.perf_counter()) < until:
            place = (place + 1) % len(files)
            connection.request("POST", "/search?top=10", files[place])
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status
            mine.append(time.perf_counter() - began)
        connection.close()

    threads = [
        threading.Thread(target=ask, args=(mine, 7 * number))
        for number, mine in enumerate(found)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [one for mine in found for one in mine]


def measured(server, files, clients, seconds):
    """One turn: requests/s, milliseconds of p50 and p99, pictures a batch."""
    before = server.health()
    began = time.perf_counter()
    found = latencies(server, files, clients, seconds)
    rate = len(found) / (time.perf_counter() - began)
    after = server.health()
    batches = after["batches"] - before["batches"]
    middle, last = 1e3 * np.percentile(found, [50, 99])
    return rate, middle, last, (after["answered"] - before["answered"]) / batches


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--out", default=Path(__file__).parent / "results/serve.md")
    options = parser.parse_args()
    about = harness.machine("python benchmarks/serve.py")
    files = pictures(options.run)
    servers = {name: Server(options.run, size) for name, size in BATCHES.items()}
    try:
        turns = {(name, count): [] for count in CLIENTS for name in servers}
        for turn in range(ROUNDS + 1):
            for (name, count), found in turns.items():
                one = measured(servers[name], files, count, options.seconds)
                if turn:  # The first warms up.
                    found.append(one)
        images = servers["one at a time"].health()["images"]
    finally:
        for server in servers.values():
            server.close()
    lines = [
        "# Searches over HTTP",
        "",
        f"`python -m metricjax.serve` with the quickstart's run: PNG files of "
        f"{statistics.mean(map(len, files)) / 1024:.1f} KiB to their 10 nearest of "
        f"{images:,} images. Each client sends the next picture as soon as it has the "
        f"answer. Medians of {ROUNDS} turns of {options.seconds:g} s; clients and "
        f"servers share {about['cpu']}, jax {about['jax']}, "
        f"Python {about['python']}, commit {about['commit']}.",
        "",
        "| clients | pictures embedded | requests/s | p50, ms | p99, ms | a batch |",
        "|---|---|---|---|---|---|",
    ]
    for (name, count), found in turns.items():
        rate, middle, last, size = np.median(found, axis=0)
        shown = f"{rate:.0f} | {middle:.1f} | {last:.1f} | {size:.1f}"
        lines.append(f"| {count} | {name} | {shown} |")
        print(lines[-1], flush=True)
    Path(options.out).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
