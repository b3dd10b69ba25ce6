"""Checkpoints: what is kept, read back exactly, passed over when damaged."""

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from metricjax.runtime import mesh
from metricjax.training.checkpoints import Checkpoints, digest
from metricjax.training.step import TrainState


def make_state(step, devices=8, size=64):
    """A state of several types on a number of devices, different at every step."""
    rng = np.random.default_rng(step)
    kernel = jnp.asarray(rng.normal(size=(size, 128)), jnp.float32)
    state = TrainState(
        step=jnp.int32(step),
        params={"head": {"kernel": kernel, "bias": jnp.arange(3.0) / (step + 1)}},
        batch_stats={"bn": {"mean": jnp.full(5, jnp.float32(step))}},
        opt_state=(jnp.int32(step), {"moment": kernel.astype(jnp.bfloat16)}),
    )
    sharding = mesh.replicated(mesh.make_mesh(jax.devices()[:devices]))
    return jax.device_put(state, sharding)


def abstract_state(devices=8, size=64):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        make_state(0, devices, size),
    )


def save_all(directory, scores):
    """Steps 1, 2, ... with the metric given, or with none."""
    with Checkpoints(directory, "map@r") as checkpoints:
        for step, score in enumerate(scores, 1):
            metrics = None if score is None else {"map@r": score, "recall@1": -score}
            checkpoints.save(step, make_state(step), metrics)
    return directory


def restore(directory, devices=8):
    """(latest, best, sentences): each of the two a state checked for its step."""
    said, steps = [], []
    with Checkpoints(directory, "map@r") as checkpoints:
        abstract = abstract_state(devices)
        for restore_one in (checkpoints.restore_latest, checkpoints.restore_best):
            found = restore_one(abstract, said.append)
            steps.append(None if found is None else found[0])
            if found is not None:
                assert_same(found[1], make_state(found[0], devices))
    assert all("\n" not in s and s.endswith(".") for s in said)
    return *steps, said


def assert_same(state, wanted):
    """Bit-equal, of the same types, on the same devices."""
    assert jax.tree.structure(state) == jax.tree.structure(wanted)
    for ours, theirs in zip(
        jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True
    ):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert ours.sharding.is_equivalent_to(theirs.sharding, ours.ndim)
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def kept(directory):
    return sorted(p.name for p in directory.iterdir())


def largest_file(directory):
    return max(
        (p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Six steps of which the second is the best and the last has no metrics."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    return save_all(directory, [0.1, 0.9, None, 0.3, 0.2, None])


@pytest.fixture
def damaged(saved, tmp_path):
    """A copy of `saved` to damage."""
    return shutil.copytree(saved, tmp_path / "checkpoints")


def test_the_latest_two_and_the_best_are_kept(saved):
    assert kept(saved) == ["2", "5", "6"]


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [
        ([None], ["1"]),
        ([None] * 4, ["3", "4"]),
        ([0.1, 0.2, 0.3], ["2", "3"]),
        ([0.3, 0.3, 0.1, 0.1, 0.1], ["2", "4", "5"]),
        ([-0.5, -0.7, None, None], ["1", "3", "4"]),
    ],
)
def test_what_is_kept(tmp_path, scores, wanted):
    assert kept(save_all(tmp_path / "c", scores)) == wanted


def test_the_best_is_not_lost_over_restarts(tmp_path):
    for step, score in enumerate([0.1, 0.9, 0.3, None, 0.4, None, None], 1):
        with Checkpoints(tmp_path, "map@r") as checkpoints:
            metrics = None if score is None else {"map@r": score}
            checkpoints.save(step, make_state(step), metrics)
    assert kept(tmp_path) == ["2", "6", "7"]
    assert restore(tmp_path)[:2] == (7, 2)


@pytest.mark.parametrize("devices", [8, 1, 4])
def test_restored_exactly_onto_any_number_of_devices(saved, devices):
    assert restore(saved, devices) == (6, 2, [])


def test_devices_may_change_from_save_to_save(tmp_path):
    for step, devices in enumerate([8, 1, 4], 1):
        with Checkpoints(tmp_path, "map@r") as checkpoints:
            found = checkpoints.restore_latest(abstract_state(devices), pytest.fail)
            assert (found[0] if found else 0) == step - 1
            checkpoints.save(step, make_state(step, devices), {"map@r": 0.1 * step})
    assert restore(tmp_path, 2) == (3, 3, [])


def test_among_equals_the_best_is_the_latest(tmp_path):
    save_all(tmp_path, [0.1, 0.5, 0.5, 0.2])
    assert restore(tmp_path)[:2] == (4, 3)


def test_nothing_was_saved(tmp_path):
    assert restore(tmp_path / "checkpoints") == (None, None, [])


def cut_short(directory):
    path = largest_file(directory)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(directory):
    largest_file(directory).write_bytes(b"")


def one_bit_flipped(directory):
    path = largest_file(directory)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)


def without(*names):
    def remove(directory):
        for name in names:
            path = directory / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    remove.__name__ = "without " + " ".join(names)
    return remove


def without_everything(directory):
    shutil.rmtree(directory)
    directory.mkdir()


def digest_of_another_state(directory):
    about = directory / "about"
    shutil.rmtree(about)
    shutil.copytree(directory.parent / "5" / "about", about)


@pytest.mark.parametrize(
    "damage",
    [
        cut_short,
        emptied,
        one_bit_flipped,
        without("state"),
        without("about"),
        without("state/_METADATA"),
        without("state/manifest.ocdbt"),
        without("state/d"),
        without("state/ocdbt.process_0"),
        without_everything,
        digest_of_another_state,
    ],
    ids=lambda function: function.__name__,
)
def test_a_damaged_checkpoint_is_passed_over(damaged, damage, capfd):
    damage(damaged / "6")
    latest, best, said = restore(damaged)
    assert (latest, best) == (5, 2)
    assert len(said) == 1
    assert str(damaged / "6") in said[0] and "cannot be restored" in said[0]
    assert "going back to step 5" in said[0]
    assert kept(damaged) == ["2", "5", "6.unreadable"]
    assert capfd.readouterr().err == ""
    # The run saves that step again, and no checkpoint is lost on the way.
    with Checkpoints(damaged, "map@r") as checkpoints:
        checkpoints.save(6, make_state(6), None)
    assert restore(damaged) == (6, 2, [])


def test_two_damaged_checkpoints_are_passed_over(damaged):
    cut_short(damaged / "6")
    one_bit_flipped(damaged / "5")
    latest, best, said = restore(damaged)
    assert (latest, best) == (2, 2)
    assert str(damaged / "6") in said[0] and str(damaged / "5") in said[1]
    assert "going back to step 5" in said[0] and "going back to step 2" in said[1]


def test_nothing_readable(damaged):
    for step in (2, 5, 6):
        cut_short(damaged / str(step))
    latest, best, said = restore(damaged)
    assert (latest, best) == (None, None)
    assert len(said) == 3 and "going back to the start" in said[-1]
    # Nothing is thrown away: the damage may be mended.
    assert kept(damaged) == ["2.unreadable", "5.unreadable", "6.unreadable"]


def test_a_damaged_best_is_told(damaged):
    one_bit_flipped(damaged / "2")
    latest, best, said = restore(damaged)
    assert (latest, best) == (6, 5)
    assert len(said) == 1
    assert str(damaged / "2") in said[0] and "the best of the others" in said[0]


def test_a_state_of_another_shape_is_passed_over(saved, tmp_path):
    directory = shutil.copytree(saved, tmp_path / "c")
    said = []
    with Checkpoints(directory, "map@r") as checkpoints:
        assert checkpoints.restore_latest(abstract_state(size=32), said.append) is None
    assert len(said) == 3


def test_leftovers_of_a_killed_save_are_removed(damaged):
    for name in ("7.orbax-checkpoint-tmp", "6.orbax-checkpoint-tmp"):
        shutil.copytree(damaged / "6", damaged / name)
        without("_CHECKPOINT_METADATA")(damaged / name)
    assert restore(damaged) == (6, 2, [])
    assert kept(damaged) == ["2", "5", "6"]


def test_the_digest_sees_names_types_shapes_and_bytes():
    def of(**arrays):
        return digest(arrays)

    zero = of(a=np.zeros(4, np.float32))
    assert zero == of(a=jnp.zeros(4)) and len(zero) == 64
    different = {
        of(b=np.zeros(4, np.float32)),
        of(a=np.zeros(4, np.int32)),
        of(a=np.zeros((2, 2), np.float32)),
        of(a=-np.zeros(4, np.float32)),
        of(a=np.zeros(4, np.float32), b=np.zeros(0, np.float32)),
    }
    assert zero not in different and len(different) == 5
    strided = np.arange(12, dtype=np.float32).reshape(3, 4).T
    assert of(a=strided) == of(a=strided.copy())


# Two checkpoints; then the disk fills up under the third; then there is space again.
FULL_DISK = """\
import os, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from metricjax.errors import InputError
from test_checkpoints import *

directory, ballast = Path(sys.argv[3]) / "c", Path(sys.argv[3]) / "ballast"
unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

def fill():
    if sys.argv[2] == "limit":
        # Less than the kernel needs in however many files it is written.
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, resource.RLIM_INFINITY))
        return
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == 28, error

def free():
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    ballast.unlink(missing_ok=True)

save_all(directory, [0.5, None])
fill()
try:
    with Checkpoints(directory, "map@r") as checkpoints:
        checkpoints.save(3, make_state(3), None)
        checkpoints.wait()
except InputError as error:
    print(error)
else:
    sys.exit("the write succeeded")
assert restore(directory) == (2, 1, [])
free()
with Checkpoints(directory, "map@r") as checkpoints:
    checkpoints.save(3, make_state(3), None)
assert restore(directory) == (3, 1, [])
assert kept(directory) == ["1", "2", "3"]
"""


@pytest.mark.parametrize("how", ["limit", "tmpfs"])
def test_a_full_disk(tmp_path, how):
    command = [sys.executable, "-c", FULL_DISK, str(Path(__file__).parent), how, "disk"]
    (tmp_path / "disk").mkdir()
    if how == "tmpfs":
        command = [*tiny.on_small_disk(tmp_path / "disk", "400k"), *command]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == (
        f"{tmp_path / 'disk' / 'c'}: the disk is full; free some space and run the "
        "same command again to resume.\n"
    )
    assert result.stderr == ""
