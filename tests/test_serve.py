"""`python -m metricjax.serve`: a real run served, and the wrong ways to start it."""

import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from served import Process

from metricjax import serve, serving


@pytest.fixture(scope="module")
def running(tiny, tmp_path_factory):
    """The tiny run, with its shapes as the gallery."""
    variables = {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(tiny.directory / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
        "XLA_FLAGS": "",
    }
    arguments = [str(tiny.finished), "--gallery", "shapes", "--port", "0"]
    running = Process(
        *["-m", "metricjax.serve", *arguments, "--batch", "8"],
        cwd=tiny.directory,
        env=os.environ | variables,
    )
    yield running
    code, _, err = running.end(signal.SIGTERM)
    assert code == 0 and "Traceback" not in err


def test_many_at_once_get_what_each_alone_gets(running, tiny):
    files = sorted(tiny.shapes.glob("*/*.png"))[:64]

    def search(file, top=12):
        status, answer = running.ask("POST", f"/search?top={top}", file.read_bytes())
        assert status == 200, answer
        return answer["neighbours"]

    alone = [{one["image"]: one for one in search(file, 84)} for file in files]
    before = running.ask("GET", "/healthz")[1]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(search, files))
    after = running.ask("GET", "/healthz")[1]
    for file, known, found in zip(files, alone, together, strict=True):
        assert len(known) == 84 and len(found) == 12
        # The picture is in the gallery, and finds itself first, or its double.
        assert found[0]["similarity"] == pytest.approx(1, abs=1e-4)
        assert known[found[0]["image"]]["class"] == file.parent.name
        similarities = [one["similarity"] for one in found]
        nearest = sorted((one["similarity"] for one in known.values()), reverse=True)
        np.testing.assert_allclose(similarities, nearest[:12], atol=1e-4)
        for one in found:
            other = known[one["image"]]
            assert one["path"] == other["path"] and one["class"] == other["class"]
            assert one["similarity"] == pytest.approx(other["similarity"], abs=1e-4)
    assert after["answered"] - before["answered"] == 64
    assert after["batches"] - before["batches"] < 64
    assert 1 < after["largest_batch"] <= 8


def test_what_it_says(running):
    said = running.said.splitlines()
    assert said[-1] == f"http://127.0.0.1:{running.port}/ is ready; Ctrl-C ends it."
    assert "Embedding 84 images." in said


def test_the_pages_of_the_run(running):
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
    connection.request("GET", "/report.html")
    answer = connection.getresponse()
    assert answer.status == 200 and b"metricjax" in answer.read()
    connection.close()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--port", "0"], "run; see --help"),
        (["RUN", "--port", "65536"], "--port is 65536: it must be 0 to 65535"),
        (["RUN", "--port", "http"], "--port"),
        (["RUN", "--batch", "0"], "--batch is 0: it must be 1 or more"),
        (["RUN", "--host", "203.0.113.7", "--port", "0"], "--host 203.0.113.7"),
        (["RUN", "--colour", "red"], "--colour"),
        (["nowhere", "--port", "0"], "nowhere"),
        (["RUN", "--gallery", "nowhere.zip", "--port", "0"], "nowhere.zip"),
    ],
)
def test_the_wrong_ways_to_start_it(arguments, sentence, tiny, capsys, monkeypatch):
    monkeypatch.chdir(tiny.directory)
    arguments = [str(tiny.finished) if one == "RUN" else one for one in arguments]
    assert serve.main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("metricjax: ") and sentence in err
    assert "ready" not in out


def test_a_port_in_use(tiny, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve.main([str(tiny.finished), "--port", str(port)]) == 2
    assert f"--port {port} cannot be used" in capsys.readouterr().err


def test_without_the_extra(monkeypatch, capsys):
    monkeypatch.delattr(serving, "server", raising=False)
    monkeypatch.delitem(sys.modules, "metricjax.serving.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert serve.main(["run"]) == 2
    assert "uvicorn is not installed" in (err := capsys.readouterr().err)
    assert "pip install 'metricjax[serve]'" in err


def test_help(capsys):
    assert serve.main(["--help"]) == 0
    assert "--gallery" in capsys.readouterr().out
    assert serve.main([]) == 2
