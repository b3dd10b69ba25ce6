"""A workdir in a bucket: what is pushed, what counts there, and going on elsewhere."""

import contextlib
import dataclasses
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metricjax.cli import config_flags
from metricjax.config.schema import RunConfig
from metricjax.errors import InputError
from metricjax.objectives.objective import ObjectiveConfig, Term
from metricjax.runtime import mesh
from metricjax.training import remote_workdir, workdir
from metricjax.training.checkpoints import Checkpoints

fsspec = pytest.importorskip("fsspec")
slow = pytest.mark.slow
CONFIG = RunConfig(ObjectiveConfig({"triplet": Term(1.0, {"margin": 0.2})}))
ADDRESS = "memory://tests/run"


@pytest.fixture
def memory(monkeypatch, tmp_path):
    """The bucket; `move` goes to another machine, which has no copy."""
    monkeypatch.setattr("metricjax.storage.bucket._WAITS", (0.0,))
    files = fsspec.filesystem("memory")

    def move(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

    files.move = move
    move("here")
    yield files
    if files.exists("/tests"):
        files.rm("/tests", recursive=True)


def names(memory, directory=""):
    root = f"/tests/run{directory}/"
    return sorted(path.removeprefix(root) for path in memory.find(root))


def steps(memory):
    """(steps that have files, steps that count) in the bucket."""
    found = names(memory, "/checkpoints")
    parts = {name.partition("/")[0] for name in found}
    counting = {n.removesuffix(".complete") for n in parts if n.endswith(".complete")}
    return sorted(int(n) for n in parts if n.isdigit()), sorted(map(int, counting))


def make_state(step):
    values = np.random.default_rng(step).normal(size=1000)
    state = {"step": jnp.int32(step), "kernel": jnp.asarray(values, jnp.float32)}
    return jax.device_put(state, mesh.replicated(mesh.make_mesh()))


def abstract_state():
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        make_state(0),
    )


def opened(said=None):
    return remote_workdir.opened(
        ADDRESS, CONFIG, pytest.fail if said is None else said.append
    )


def save(scores, first=1):
    """Save a checkpoint a score, of one step after the other."""
    with opened() as place, place.checkpoints("map@r") as checkpoints:
        for step, score in enumerate(scores, first):
            metrics = None if score is None else {"map@r": score}
            checkpoints.save(step, make_state(step), metrics)


def restore(said=None):
    """(latest, best) steps, after a look into their states."""
    found, say = [], pytest.fail if said is None else said.append
    with opened(said) as place, place.checkpoints("map@r") as checkpoints:
        for one in (checkpoints.restore_latest, checkpoints.restore_best):
            restored = one(abstract_state(), say)
            found.append(restored and restored[0])
            if restored:
                wanted = make_state(restored[0])
                jax.tree.map(np.testing.assert_array_equal, restored[1], wanted)
    return tuple(found)


def test_a_local_workdir_is_left_as_it_is(tmp_path):
    for address in (tmp_path / "run", f"file://{tmp_path}/run"):
        with remote_workdir.opened(address, CONFIG, pytest.fail) as place:
            assert place.path == place.address == tmp_path / "run"
            place.push(), place.finish()
            assert place.shown(f"{place.path}/x") == f"{tmp_path}/run/x"
            assert type(place.checkpoints("map@r")) is Checkpoints
        assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_files_are_pushed_when_they_changed(memory, monkeypatch):
    with opened() as place:
        workdir.claim(place.path, CONFIG)
        (place.path / "tensorboard").mkdir()
        for name in ("report.html", "z.json", "tensorboard/events", ".z.1.tmp"):
            (place.path / name).write_text(name)
        pushed = []
        put = place._bucket.put

        def listing(directory, names):
            pushed.extend(names)
            put(directory, names)

        monkeypatch.setattr(place._bucket, "put", listing)
        place.push()
        wanted = ["config.json", "tensorboard/events", "z.json"]
        assert pushed == [*wanted, "report.html"]  # which says that all is there
        assert names(memory) == sorted(pushed)
        (place.path / "z.json").write_text("new")
        place.push()
        assert pushed[4:] == ["z.json"]
        assert memory.cat_file("/tests/run/z.json") == b"new"
        assert place.shown(f"see {place.path}/z.json") == f"see {ADDRESS}/z.json"
        place.finish()
        assert not place.path.exists()


def test_the_copy_is_as_the_bucket_is(memory):
    with opened() as place:
        workdir.claim(place.path, CONFIG)
        (place.path / "metrics.jsonl").write_text("1\n")
        place.push()
        (place.path / "metrics.jsonl").write_text("1\n2\n")
        (place.path / "report.html").write_text("of a run that was not pushed")
    for machine in ("here", "there"):
        memory.move(machine)
        with opened() as place:
            found = sorted(p.name for p in place.path.iterdir() if p.is_file())
            assert found == ["config.json", "metrics.jsonl"]
            assert (place.path / "metrics.jsonl").read_text() == "1\n"


def test_checkpoints_are_kept_as_they_are_here(memory):
    save([0.1, 0.9, None, 0.3, 0.2, None])
    assert steps(memory) == ([2, 5, 6], [2, 5, 6])
    for machine in ("here", "there"):
        memory.move(machine)
        assert restore() == (6, 2)
    save([None], first=7)
    assert steps(memory) == ([2, 6, 7], [2, 6, 7])


def test_a_directory_of_the_bucket_is_one_of_a_run_here(memory, tmp_path):
    save([0.1, 0.2])
    memory.get("/tests/run/checkpoints", str(tmp_path / "run"), recursive=True)
    with Checkpoints(tmp_path / "run", "map@r") as checkpoints:
        assert checkpoints.restore_latest(abstract_state(), pytest.fail)[0] == 2


def test_what_was_cut_short_does_not_count_and_is_cleared_away(memory):
    save([0.1, 0.2, 0.3])
    memory.rm_file("/tests/run/checkpoints/3.complete")
    memory.move("there")
    assert restore() == (2, 2)
    assert steps(memory) == ([2, 3], [2])
    save([None], first=3)
    assert steps(memory) == ([2, 3], [2, 3])
    memory.move("elsewhere")
    assert restore() == (3, 2)


# What a marker could hold instead of its list of files.
LISTS = ["nonsense", "[1]", "{}", '{"../../config.json": [2, "0"]}']


@pytest.mark.parametrize("damage", ["missing", "changed", *LISTS])
def test_what_was_damaged_is_passed_over_and_saved_anew(memory, damage):
    save([0.1, 0.2])
    size = lambda name: memory.size(f"/tests/run/checkpoints/{name}")  # noqa: E731
    files = [n for n in names(memory, "/checkpoints") if n.startswith("2/")]
    largest = f"/tests/run/checkpoints/{max(files, key=size)}"
    marker = "/tests/run/checkpoints/2.complete"
    if damage == "missing":
        memory.rm_file(largest)
    elif damage == "changed":
        memory.pipe_file(largest, memory.cat_file(largest)[:-1] + b"?")
    else:
        memory.pipe_file(marker, damage.encode())
    memory.move("there")
    said = []
    assert restore(said) == (1, 1)
    assert said == [
        f"{ADDRESS}/checkpoints/2 is not what it was when it was saved: it is passed "
        "over."
    ]
    with opened(said) as place, place.checkpoints("map@r") as checkpoints:
        checkpoints.save(2, make_state(2), None)
    memory.move("elsewhere")
    assert restore() == (2, 1)


def test_a_copy_that_was_damaged_is_fetched_anew(memory):
    save([0.1, 0.2])
    with opened() as place:
        kept = place.path / "checkpoints" / "1"
        time = (kept / "_CHECKPOINT_METADATA").stat().st_mtime_ns
        shutil.rmtree(place.path / "checkpoints" / "2" / "state")
    assert restore() == (2, 2)
    assert (kept / "_CHECKPOINT_METADATA").stat().st_mtime_ns == time


def test_the_run_ends_when_nothing_can_be_pushed(memory, monkeypatch):
    def lost(*_, **__):
        raise ConnectionError("network is unreachable")

    with pytest.raises(InputError, match="unreachable.*resume from its last"):
        with opened() as place, place.checkpoints("map@r") as checkpoints:
            checkpoints.save(1, make_state(1), {"map@r": 0.1})
            checkpoints.wait()
            monkeypatch.setattr(memory, "put_file", lost)
            checkpoints.save(2, make_state(2), None)
            checkpoints.save(3, make_state(3), None)
    monkeypatch.undo()
    memory.move("there")
    assert restore() == (1, 1)


def test_another_error_is_not_hidden_by_one_of_the_bucket(memory, monkeypatch):
    def lost(*_, **__):
        raise ConnectionError("network is unreachable")

    monkeypatch.setattr(memory, "put_file", lost)
    with pytest.raises(ZeroDivisionError):
        with opened() as place, place.checkpoints("map@r") as checkpoints:
            checkpoints.save(1, make_state(1), None)
            raise ZeroDivisionError


def test_a_workdir_of_another_config(memory):
    with opened() as place:
        workdir.claim(place.path, dataclasses.replace(CONFIG, seed=7))
        place.push()
    before = names(memory)
    with pytest.raises(InputError, match="seed: 7 -> 0") as caught, opened():
        pass
    assert str(caught.value).startswith(f"{ADDRESS} belongs to a run with another")
    assert names(memory) == before


def test_a_local_workdir_of_another_config(tmp_path):
    workdir.claim(tmp_path, dataclasses.replace(CONFIG, seed=7))
    with pytest.raises(InputError, match="seed: 7 -> 0") as caught:
        with remote_workdir.opened(tmp_path, CONFIG, pytest.fail):
            pass
    assert str(caught.value).startswith(f"{tmp_path} belongs to a run with another")


def test_one_process_at_a_time_uses_a_copy(memory):
    with opened() as place:
        (place.path / "metrics.jsonl").write_text("1\n")
        with pytest.raises(InputError, match=f"{ADDRESS} is in use"), opened():
            pass
        assert (place.path / "metrics.jsonl").exists()


def test_no_place_for_a_copy(memory, tmp_path):
    (tmp_path / "file").write_text("")
    memory.move("file")
    with pytest.raises(InputError, match="XDG_CACHE_HOME"), opened():
        pass


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("gs://bucket/run", "gs://bucket/run"),
        ("s3://bucket/a b", "s3://bucket/a b"),
        ("runs/a", "runs/a"),
        ("file:///data/run", "/data/run"),
    ],
)
def test_what_the_command_line_takes_for_a_bucket(tiny, text, wanted):
    arguments = ["--config", str(tiny.config), "--workdir", text]
    found = config_flags.parse(arguments).workdir
    assert str(found) == wanted and isinstance(found, str) == ("://" in wanted)


def test_an_address_with_a_stroke_too_few(tiny):
    arguments = ["--config", str(tiny.config), "--workdir", "gs:/bucket/run"]
    with pytest.raises(InputError, match="--workdir gs:/bucket/run .* write gs:// "):
        config_flags.parse(arguments)


# From here on runs as processes; a directory plays the bucket.

KILL = """
import os, signal
from metricjax.training import remote_workdir
from metricjax.storage import bucket
def at(module, name, wanted):
    real = getattr(module, name)
    def killing(*arguments):
        if wanted(arguments): os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    setattr(module, name, killing)
"""
# The step after which a run goes on, and where it was killed before.
MOMENTS = {
    "before a checkpoint counts": (
        5,
        'at(bucket.BucketFiles, "write", lambda a: a[1] == "checkpoints/10.complete")',
    ),
    "before the report is pushed": (
        30,
        'at(bucket.BucketFiles, "put", lambda a: a[2] == ["report.html"])',
    ),
}


def on_machine(tmp_path, name):
    return {"FSSPEC_LOCAL_AUTO_MKDIR": "1", "XDG_CACHE_HOME": str(tmp_path / name)}


def results_of(directory):
    return json.loads((directory / "results.json").read_text())


def lines_of(directory):
    """(step, kind, loss) of each line."""
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    kept = ((x["step"], x["kind"], x.get("loss")) for x in lines)
    return [x for x in kept if x[1] != "compiled"]


def assert_like(directory, undisturbed):
    for name in ("parameters_sha256", "recall@1", "validation", "selected_step"):
        assert results_of(directory)[name] == results_of(undisturbed)[name]
    assert lines_of(directory) == lines_of(undisturbed)
    assert (directory / "report.html").exists()
    assert (directory / "model.safetensors").exists()
    marked = {p.stem for p in (directory / "checkpoints").glob("*.complete")}
    kept = (undisturbed / "checkpoints").iterdir()
    assert marked == {path.name for path in kept}


@slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_on_another_machine(tiny, tmp_path, moment):
    start, code = MOMENTS[moment]
    address = f"local://{tmp_path}/bucket/run"
    killed = tiny.run(
        address, before=KILL + code, variables=on_machine(tmp_path, "here")
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    result = tiny.run(address, variables=on_machine(tmp_path, "there"))
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert f"resuming after step {start} of 30" in result.stdout
    assert f"report: {address}/report.html" in result.stdout
    assert_like(tmp_path / "bucket" / "run", tiny.finished)
    assert not list((tmp_path / "there").glob("metricjax/runs/*/*"))


LOST = """
from metricjax.storage import bucket
bucket._WAITS = (0.1,)
real = bucket.BucketFiles.put
def put(self, directory, names):
    def lost(*_): raise ConnectionError("network is unreachable")
    if any(name.startswith("checkpoints/10/") for name in names):
        self._files.put = lost
    return real(self, directory, names)
bucket.BucketFiles.put = put
"""


@slow
def test_the_network_goes_and_comes_back(tiny, tmp_path):
    address = f"local://{tmp_path}/bucket/run"
    here = on_machine(tmp_path, "here")
    lost = tiny.run(address, before=LOST, variables=here)
    assert lost.returncode == 2, lost.stderr
    assert lost.stderr.startswith(f"metricjax: --workdir {address} cannot be used (")
    assert lost.stderr.count("\n") == 1 and "resume from its last" in lost.stderr
    result = tiny.run(address, variables=here)
    assert "resuming after step 5 of 30" in result.stdout, result.stderr
    assert_like(tmp_path / "bucket" / "run", tiny.finished)
    again = tiny.run(address, variables=here)
    assert again.returncode == 0, again.stderr
    assert again.stdout.endswith(
        f"this run is complete\nreport: {address}/report.html\n"
    )


@slow
def test_hosts_that_share_nothing_but_the_bucket(tiny, tmp_path):
    """One is killed; both go on on other machines, as two that share a disk would."""
    address = f"local://{tmp_path}/bucket/run"

    def run(place, machines, before=""):
        own = {
            host: {"variables": on_machine(tmp_path, f"{machines}{host}")}
            for host in (0, 1)
        }
        own[0]["before"] = before
        with tiny.start_hosts(place, "host_timeout=20", of_host=own) as running:
            codes = running.wait()
            return codes, running.out(0), running.err(0)

    codes, _, _ = run(address, "here", KILL + MOMENTS["before a checkpoint counts"][1])
    assert codes == [-signal.SIGKILL, 1]
    codes, out, err = run(address, "there")
    assert codes == [0, 0], err
    assert "resuming after step 5 of 30" in out
    codes, _, err = run(tmp_path / "shared", "there")
    assert codes == [0, 0], err
    assert_like(tmp_path / "bucket" / "run", tmp_path / "shared")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(tmp_path / "bucket")
