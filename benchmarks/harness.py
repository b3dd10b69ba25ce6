"""Fair timing: every variant a process of its own, taking turns with the others.

The parent starts one worker for each variant of a row and stops it (SIGSTOP) unless it
is its turn, so that no idle thread pool takes part of the machine and every framework
keeps its own settings. A worker answers JSON lines: do some steps, save the result, say
how much memory was needed at most. What a worker cannot do, for memory or for time, is
an answer too.
"""

import ctypes
import json
import os
import platform
import re
import resource
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

GIB = 2**30
HERE = Path(__file__).parent
OUT_OF_MEMORY = re.compile(
    r"out of memory|not enough memory|can't allocate|cannot allocate|bad_alloc"
    r"|RESOURCE_EXHAUSTED|MemoryError|Unable to allocate",
    re.IGNORECASE,
)


class Failed(Exception):
    """A worker did not do what it was asked; the reason is a short sentence."""


# --- the worker's side ----------------------------------------------------------------


def serve(build):
    """Answer the parent until it hangs up.

    Args:
      build: `(spec) -> task` with `task.step()`, which runs one step to its end,
        `task.result()`, a dict of numpy arrays, and `task.device_peak()`, bytes or
        None.
    """
    spec = json.loads(sys.argv[1])
    _end_with_parent(spec["parent"])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is not an answer

    def reply(**answer):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    if spec.get("memory_cap"):
        resource.setrlimit(resource.RLIMIT_AS, (spec["memory_cap"],) * 2)
    try:
        task = build(spec)
        reply(resident=_memory("VmRSS"))
        for line in sys.stdin:
            reply(**_do(task, json.loads(line)))
    except Exception as error:
        reply(error=_reason(f"{type(error).__name__}: {error}"))
        raise


def _end_with_parent(parent):
    """A worker that is stopped would outlive a parent that was killed."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("the parent is gone")


def _do(task, order):
    if order["do"] == "steps":
        return {"seconds": _timed_steps(task.step, **order["how"])}
    if order["do"] == "save":
        import numpy as np

        np.savez(order["path"], **task.result())
        return {}
    return {"peak": _memory("VmHWM"), "device_peak": task.device_peak()}


def _timed_steps(step, budget, least, most, warm):
    for _ in range(warm):
        step()
    times, began = [], time.perf_counter()
    while len(times) < most and (
        len(times) < least or time.perf_counter() - began < budget
    ):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def _memory(field):
    """Bytes of this process. The high water mark of getrusage survives exec."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status).group(1)) * 1024


def _reason(text):
    return "memory" if OUT_OF_MEMORY.search(text) else text.strip()[:300]


# --- the parent's side ----------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """How long and how often.

    Attributes:
      rounds: turns of every worker; 1 where the workers run one after the other.
      turn: seconds of one turn.
      least: steps of one turn, whatever they take.
      once_above: seconds of a first call above which it is the measurement, for a
        variant that compiles nothing.
      step_cap: seconds after which a step, or a first call, is given up.
      warm_below: a turn begins with a step that does not count if a step takes fewer
        seconds than this: others had the caches, and the system may have taken pages.
      together: whether the workers take turns, all of them holding what they hold;
        else one does all its steps and ends before the next begins.
      begin_at_once: whether their first calls may go at the same time, for steps that
        do not need the processors on which they are compiled.
    """

    rounds: int = 5
    turn: float = 0.12
    least: int = 1
    once_above: float = 20.0
    step_cap: float = 120.0
    warm_below: float = 0.05
    together: bool = True
    begin_at_once: bool = False


class Worker:
    """One variant in a process of its own, stopped whenever it has nothing to do."""

    def __init__(self, spec, environment=None):
        spec = {**spec, "parent": os.getpid()}
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, HERE / spec["program"], json.dumps(spec)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            bufsize=0, env={**os.environ, **(environment or {})},
            start_new_session=True,
        )  # fmt: skip
        self._received = b""

    @property
    def pid(self):
        return self._process.pid

    def wait_ready(self, timeout=180):
        ready = self._answer(timeout)
        self._signal(signal.SIGSTOP)
        return ready

    def ask(self, timeout, **order):
        self._signal(signal.SIGCONT)
        self._process.stdin.write((json.dumps(order) + "\n").encode())
        answer = self._answer(timeout)
        self._signal(signal.SIGSTOP)
        return answer

    def close(self):
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            stream.close()

    def _signal(self, number):
        if self._process.poll() is None:
            os.kill(self.pid, number)

    def _answer(self, timeout):
        until = time.monotonic() + timeout
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._received:
            ready, _, _ = select.select(
                [pipe], [], [], max(until - time.monotonic(), 0)
            )
            if not ready:
                raise Failed(f"> {timeout:.0f} s")
            chunk = os.read(pipe, 65536)
            if not chunk:
                raise Failed(self._last_words())
            self._received += chunk
        line, self._received = self._received.split(b"\n", 1)
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def _last_words(self):
        status = self._process.wait()
        self._errors.seek(0)
        text = self._errors.read()
        if OUT_OF_MEMORY.search(text):
            return "memory"
        last = text.strip().splitlines()[-1:] or ["no message"]
        return f"ended with status {status}: {last[0][:200]}"


def measure(specs, pace, *, saved=None, environment=None):
    """Time the variants of one row.

    Args:
      specs: variant -> what its worker is to do; `compiles` in it says whether the
        first call does more than later ones.
      pace: how long and how often.
      saved: a folder in which each variant leaves `VARIANT.npz` of its result.
      environment: added to that of the workers.

    Returns:
      variant -> dict with `error`, or with `first_s`, `median_ms` (median over the
      rounds of the median of a round), `min_ms`, `steps`, `rounds`, `resident_mib`
      (after imports and inputs), `peak_mib` of the whole process, `device_peak_mib`.
    """
    row = _Row(specs, pace, saved, environment)
    try:
        row.each(row.ready)
        if pace.together:
            row.each(row.first, at_once=pace.begin_at_once)
            for _ in range(pace.rounds):
                row.each(row.turn)
            row.each(row.finish)
        else:
            row.each(row.alone)
    finally:
        row.close()
    return row.results


class _Row:
    """The workers of one row and what is known of them."""

    def __init__(self, specs, pace, saved, environment):
        self._specs, self._pace, self._saved = specs, pace, saved
        self.results = {variant: {} for variant in specs}
        self._rounds = {variant: [] for variant in specs}
        self._workers = {
            variant: Worker(spec, environment) for variant, spec in specs.items()
        }

    def each(self, step, at_once=False):
        """`step(variant, worker)` for all; who fails says why and leaves."""

        def do(variant):
            try:
                step(variant, self._workers[variant])
            except Failed as failure:
                self.results[variant] = {"error": str(failure)}
                self._workers.pop(variant).close()

        with ThreadPoolExecutor(len(self._specs) if at_once else 1) as pool:
            list(pool.map(do, list(self._workers)))

    def close(self):
        for worker in self._workers.values():
            worker.close()

    def ready(self, variant, worker):
        self.results[variant]["resident_mib"] = worker.wait_ready()["resident"] / 2**20

    def first(self, variant, worker):
        how = {"budget": 0, "least": 1, "most": 1, "warm": 0}
        answer = worker.ask(self._pace.step_cap, do="steps", how=how)
        self.results[variant]["first_s"] = answer["seconds"][0]
        if self._saved:
            path = str(self._saved / f"{variant}.npz")
            worker.ask(60, do="save", path=path)

    def turn(self, variant, worker):
        spec, rounds = self._specs[variant], self._rounds[variant]
        once = spec.get("once_above", self._pace.once_above)
        if not spec["compiles"] and self.results[variant]["first_s"] > once:
            return
        how = {"budget": self._pace.turn, "least": self._pace.least, "most": 200}
        how["warm"] = int(bool(rounds) and rounds[-1][-1] < self._pace.warm_below)
        timeout = self._pace.step_cap * (self._pace.least + 1)
        rounds.append(worker.ask(timeout, do="steps", how=how)["seconds"])

    def finish(self, variant, worker):
        answer, result = worker.ask(60, do="peak"), self.results[variant]
        times = self._rounds[variant] or [[result["first_s"]]]
        middles = [statistics.median(seconds) for seconds in times]
        result |= {
            "median_ms": 1e3 * statistics.median(middles),
            "min_ms": 1e3 * min(min(seconds) for seconds in times),
            "steps": sum(map(len, times)),
            "rounds": len(self._rounds[variant]),
            "peak_mib": answer["peak"] / 2**20,
        }
        if answer["device_peak"] is not None:
            result["device_peak_mib"] = answer["device_peak"] / 2**20

    def alone(self, variant, worker):
        self.first(variant, worker)
        for _ in range(self._pace.rounds):
            self.turn(variant, worker)
        self.finish(variant, worker)
        self._workers.pop(variant).close()


# --- the machine ----------------------------------------------------------------------


def machine(command):
    """What the numbers depend on, as a dict of short strings."""
    cpu, flags = platform.processor() or "?", []
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
        if line.startswith("flags"):
            flags = line.split(":", 1)[1].split()
    notable = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    known = ", ".join(flag for flag in notable if flag in flags)
    packages = (
        "torch", "pytorch-metric-learning", "faiss-cpu", "jax", "jaxlib", "numpy",
    )  # fmt: skip
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "commit": _output("git", "-C", str(HERE), "describe", "--always"),
        "cpu": f"{os.cpu_count()} x {cpu} ({known})",
        "memory": f"{total_memory() / GIB:.0f} GiB",
        "gpu": _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
        "huge_pages": pages.read_text().strip() if pages.exists() else "?",
        "load_at_start": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
    }


def total_memory():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _output(*command):
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()
