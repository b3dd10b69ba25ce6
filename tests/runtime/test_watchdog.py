"""Several hosts: lost ones, failing ones, those that differ, those asked to stop."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from paths import ROOT
from safetensors.numpy import load_file

from metricjax.errors import InputError
from metricjax.runtime import _jax_internals, connection, watchdog

CONNECT = "from metricjax.runtime import connection; connection.connect(1)"
COORDINATOR = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, []),
        ({"TPU_WORKER_HOSTNAMES": "one"}, []),
        ({"TPU_WORKER_HOSTNAMES": "one,two"}, [{}]),
        (
            dict(zip(COORDINATOR, ("host:1234", "4", "2"), strict=True)),
            [
                {
                    "coordinator_address": "host:1234",
                    "num_processes": 4,
                    "process_id": 2,
                }
            ],
        ),
    ],
)
def test_hosts_are_joined_where_the_environment_says_so(
    environment, expected, monkeypatch
):
    calls = []
    for name in (*COORDINATOR, "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **kw: calls.append(kw))
    monkeypatch.setattr(_jax_internals, "call_on_cpp_terminate", lambda function: None)
    before = signal.getsignal(signal.SIGTERM)
    connection.connect()
    signal.signal(signal.SIGTERM, before)
    assert len(calls) == len(expected)
    for call, arguments in zip(calls, expected, strict=True):
        assert arguments.items() <= call.items()


@pytest.mark.parametrize("number", [0, 1])
def test_hosts_that_do_not_come(number):
    """Neither the first host without the others nor the reverse waits for ever."""
    values = (f"127.0.0.1:{free_port()}", "2", str(number))
    environment = dict(zip(COORDINATOR, values, strict=True))
    alone = subprocess.run(
        [sys.executable, "-c", CONNECT],
        env=os.environ | environment | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert alone.returncode == 2, alone.stderr
    assert alone.stderr.count("\n") == 1
    assert "not all hosts came together within 1 s" in alone.stderr


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Store:
    """A key-value store as `jax.distributed` has it, seen by one host.

    `gone`: every call fails. `hanging`: none returns.
    """

    def __init__(self, content):
        self.content, self.gone = content, False
        self.hanging = threading.Event()

    def _reach(self):
        if self.hanging.is_set():
            threading.Event().wait()
        if self.gone:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE")

    def key_value_set(self, key, value, allow_overwrite=False):
        self._reach()
        if not allow_overwrite and key in self.content:
            raise jax.errors.JaxRuntimeError("ALREADY_EXISTS")
        self.content[key] = value

    def key_value_dir_get(self, directory):
        self._reach()
        assert directory.endswith("/")  # to the real one another is no directory
        items = sorted(self.content.items())
        return [(key, value) for key, value in items if key.startswith(directory)]


class Trio:
    """Three watches in one process, each with its view of one store."""

    LIMIT = 0.6

    def __init__(self):
        content = {}
        self.stores = [Store(content) for _ in range(3)]
        self.ended, self.order = {}, []
        self.watches = [
            watchdog.Watch(store, index, 3, self.LIMIT, self._end(index))
            for index, store in enumerate(self.stores)
        ]
        for watch in self.watches:
            watch.start()
        time.sleep(self.LIMIT / 2)

    def _end(self, index):
        def end(text, code):
            self.ended[index] = (text, code)
            self.order.append(index)

        return end

    def wait(self, *indices):
        until = time.monotonic() + 20
        while not set(indices) <= set(self.ended):
            assert time.monotonic() < until, self.ended
            time.sleep(0.01)


@pytest.fixture
def trio(monkeypatch):
    monkeypatch.setattr(_jax_internals, "on_broken_connection", [])
    trio = Trio()
    yield trio
    for watch in trio.watches:
        watch._closed.set()


def test_hosts_that_live_are_left_alone(trio):
    time.sleep(3 * trio.LIMIT)
    assert trio.ended == {}


@pytest.mark.parametrize("lost", [1, 2])
def test_a_host_that_falls_silent_ends_the_others(trio, lost):
    trio.stores[lost].gone = True
    other = 3 - lost
    trio.wait(0, other)
    assert trio.ended[0] == trio.ended[other]
    text, code = trio.ended[0]
    assert code == 1 and text.startswith(f"metricjax: host {lost} (")
    assert socket.gethostname() in text
    assert "no sign of life" in text and "run the same command again" in text
    # The store is gone with host 0, which therefore waits for the other.
    assert trio.order.index(other) < trio.order.index(0)


def test_a_store_that_does_not_answer_is_a_lost_host_0(trio):
    for store in trio.stores[1:]:
        store.hanging.set()
    trio.wait(1, 2)
    for index in (1, 2):
        assert trio.ended[index][0].startswith("metricjax: host 0 (")
        assert trio.ended[index][1] == 1


def test_a_broken_connection_is_a_lost_host_0(trio):
    trio.watches[2]._on_broken_connection()
    trio.wait(2)
    assert "host 0 (" in trio.ended[2][0] and trio.ended[2][1] == 1


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("code", [1, 2])
def test_a_host_that_stops_tells_the_others_why(trio, index, code):
    trio.watches[index].stop("metricjax: the disk is full.", "the disk is full.", code)
    trio.wait(0, 1, 2)
    name = socket.gethostname()
    told = f"metricjax: host {index} ({name}) stopped: the disk is full."
    for other, ended in trio.ended.items():
        own = other == index
        assert ended == ("metricjax: the disk is full." if own else told, code)
    assert trio.order[-1] == 0


def test_all_hosts_print_the_first_shutdown(trio):
    trio.watches[1].stop("first", "first.", 2)
    trio.watches[2].stop("second", "second.", 1)
    trio.wait(0, 1, 2)
    assert trio.ended[1] == ("first", 2) and trio.ended[2] == ("second", 1)
    assert "stopped: first." in trio.ended[0][0] and trio.ended[0][1] == 2


def test_a_host_that_is_done_waits_for_the_others(trio):
    early = [threading.Thread(target=w.finish) for w in trio.watches[1:]]
    for thread in early:
        thread.start()
    time.sleep(3 * trio.LIMIT)
    assert all(thread.is_alive() for thread in early) and trio.ended == {}
    trio.watches[0].finish()
    for thread in early:
        thread.join(20)
    assert not any(thread.is_alive() for thread in early)
    time.sleep(2 * trio.LIMIT)
    assert trio.ended == {}


def test_a_host_that_was_halted_itself_blames_nobody(trio, monkeypatch):
    """Its clock has gone on without it, as after SIGSTOP and SIGCONT."""
    real, gap = time.monotonic, [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: real() + gap[0])
    gap[0] = 100 * trio.LIMIT
    time.sleep(3 * trio.LIMIT)
    assert trio.ended == {}


def test_one_host_is_not_watched():
    """An error leaves as it is, and the process lives."""
    with pytest.raises(InputError, match="as it is"), watchdog.watched(60):
        raise InputError("as it is")


# From here on with processes: two hosts of two devices each.


def only_line(text):
    assert text.count("\n") == 1, text
    return text


FAULT = """
from metricjax.training.checkpoints import Checkpoints
def fail(*_): raise TypeError("no such thing")
Checkpoints.save = fail
"""
OTHER_CODE = "import sys; sys.path.insert(0, {!r})"


def other_data(tiny, directory):
    shutil.copytree(tiny.shapes, directory / "shapes")
    (directory / "shapes" / "class00" / "0.png").rename(
        directory / "shapes" / "class00" / "another.png"
    )
    return {"overrides": [f"data.root={directory / 'shapes'}"]}


def other_code(tiny, directory):
    package = str(ROOT / "metricjax")
    shutil.copytree(package, directory / "metricjax")
    with open(directory / "metricjax" / "errors.py", "a") as file:
        file.write("\n# another\n")
    return {"before": OTHER_CODE.format(str(directory))}


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("different", "words"),
    [
        (lambda *_: {"overrides": ["seed=1"]}, "settings than host 0"),
        pytest.param(other_data, "data than host 0", marks=slow),
        pytest.param(other_code, "code than host 0", marks=slow),
        pytest.param(
            lambda tiny, directory: {"workdir": directory / "unshared"},
            "does not see what host 0",
            marks=slow,
        ),
        pytest.param(
            lambda *_: {"overrides": ["data.root=nowhere"]}, "nowhere", marks=slow
        ),
    ],
    ids=["settings", "data", "code", "workdir", "no data"],
)
def test_hosts_that_differ_all_say_how(tiny, tmp_path, different, words):
    workdir, other = tmp_path / "run", different(tiny, tmp_path)
    with tiny.start_hosts(workdir, of_host={1: other}) as running:
        assert running.wait() == [2, 2], running.err(0) + running.err(1)
        for host in range(2):
            assert words in only_line(running.err(host))
        assert "host 1 (" in running.err(0)
    assert not (workdir / "checkpoints").exists()
    assert not workdir.exists() or not list(workdir.glob(".*"))


@slow
def test_a_fault_of_one_host_ends_all(tiny, tmp_path):
    with tiny.start_hosts(tmp_path / "run", of_host={1: {"before": FAULT}}) as running:
        assert running.wait() == [1, 1]
        assert "stopped: TypeError: no such thing" in only_line(running.err(0))
        assert "Traceback" in running.err(1)


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    """A run of two hosts that is left alone."""
    workdir = tmp_path_factory.mktemp("hosts") / "run"
    with tiny.start_hosts(workdir, "log_every=1") as running:
        assert running.wait() == [0, 0], running.err(0) + running.err(1)
        assert running.err(0) == running.err(1) == ""
    return workdir


def results_of(workdir):
    return json.loads((workdir / "results.json").read_text())


def losses_of(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {x["step"]: x["loss"] for x in lines if x["kind"] == "train"}


@slow
def test_one_host_is_lost_halted_or_asked_to_stop(tiny, tmp_path, undisturbed):
    """Time after time in one run, which ends as if nothing had been."""
    workdir, limit = tmp_path / "run", 10
    for number, host, step, says in [
        (signal.SIGKILL, 1, 6, "has given no sign of life"),
        (signal.SIGKILL, 0, 11, "can no longer be reached"),
        (signal.SIGSTOP, 1, 16, "has given no sign of life"),
        (signal.SIGSTOP, 0, 18, "has given no sign of life"),
    ]:
        settings = ("log_every=1", f"host_timeout={limit}")
        with tiny.start_hosts(workdir, *settings) as running:
            running.wait_for(f"step {step}/")
            running.processes[host].send_signal(number)
            began = time.monotonic()
            assert running.processes[1 - host].wait(120) == 1
            took = time.monotonic() - began
        assert took < 4 * limit  # the machine may be busy
        sentence = only_line(running.err(1 - host))
        assert sentence.startswith(f"metricjax: host {host} (") and says in sentence
        assert "run the same command again to resume" in sentence

    with tiny.start_hosts(workdir, "log_every=1") as running:
        running.wait_for("step 21/")
        running.processes[1].send_signal(signal.SIGTERM)
        assert running.wait() == [0, 0], running.err(0) + running.err(1)
        stopped = re.search(r"stopped after step (\d+); run the", running.out(0))
        assert running.err(0) == running.err(1) == ""
    assert (workdir / "checkpoints" / stopped[1]).exists()
    assert not (workdir / "results.json").exists()

    with tiny.start_hosts(workdir, "log_every=1") as running:
        assert running.wait() == [0, 0], running.err(0) + running.err(1)
        assert f"resuming after step {stopped[1]} of 30" in running.out(0)
    for name in ("parameters_sha256", "selected_step", "recall@1", "validation"):
        assert results_of(workdir)[name] == results_of(undisturbed)[name]
    assert losses_of(workdir) == losses_of(undisturbed)


STOP = """
import os, signal
from metricjax.training import metric_writer
real = metric_writer.MetricWriter.record
def record(self, step, kind, values):
    real(self, step, kind, values)
    if (step, kind) == ({}, "train"): os.kill(os.getpid(), signal.SIGTERM)
metric_writer.MetricWriter.record = record
"""


@slow
@pytest.mark.parametrize(
    "places", [((1, 8), (1, 1), (1, 4)), ((2, 2), (1, 1), (2, 2))], ids=str
)
def test_a_run_goes_on_elsewhere_with_the_very_next_batch(tiny, tmp_path, places):
    """Moved to other (hosts, devices of each) soon after step 2 and step 8."""
    # Adam would make as much of a gradient of nothing but rounding as of any other.
    settings = ("steps=12", "eval_every=12", "log_every=1", "optimizer.method=sgd")

    def run(workdir, place, before=""):
        count, devices = place
        options = {"devices": devices, "before": before}
        if count == 1:
            result = tiny.run(workdir, *settings, **options)
            assert result.returncode == 0, result.stderr
            return result.stdout
        with tiny.start_hosts(workdir, *settings, count=count, **options) as running:
            assert running.wait() == [0] * count, running.err(0)
        return running.out(0)

    run(tmp_path / "left", places[0])
    left, moved = losses_of(tmp_path / "left"), []
    for place, stop in zip(places, (2, 8, None), strict=True):
        said = run(tmp_path / "moved", place, STOP.format(stop) if stop else "")
        if stop:
            moved.append(int(re.search(r"stopped after step (\d+)", said)[1]))
    went = losses_of(tmp_path / "moved")
    assert list(went) == list(left) == list(range(1, 13))
    assert moved[0] < moved[1] < 12
    for step, loss in went.items():
        assert loss == pytest.approx(left[step], rel=1e-5), step
    ours, theirs = (
        load_file(tmp_path / name / "model.safetensors") for name in ("moved", "left")
    )
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=1e-4, atol=1e-6)
