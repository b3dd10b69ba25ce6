"""What `doctor` looks at without a device: versions, disk, data, memory."""

import importlib.metadata
import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

OK, WARNING, FAILED = "ok", "warning", "FAILED"
# What a run stands on: named where it is installed, and the same on all hosts.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# Whose requirements are compared with what is installed, and of jax those of its extras
# of which something is installed.
_REQUIRING = ("metricjax", "jax", "flax", "optax", "orbax-checkpoint", "grain")
_EXTRAS = ("", "tpu", "cuda12", "cuda13")
_GIB = 2**30
# For how long a bucket may take to answer, in seconds.
_BUCKET_LIMIT = 20.0


@dataclass(frozen=True)
class Check:
    """One line of the doctor's table.

    Attributes:
      name: what was looked at, in a word or two.
      status: `OK`, `WARNING` or `FAILED`.
      sentence: what was found, and unless it is ok what to do.
    """

    name: str
    status: str
    sentence: str


def versions() -> Check:
    """Do the installed packages belong together? Imports none of them."""
    installed = {name: version(name) for name in PACKAGES}
    wrong = list(_unmet())
    jax, jaxlib = installed["jax"], installed["jaxlib"]
    if not wrong and jax and jaxlib and _release(jax) != _release(jaxlib):
        wrong.append(("jax", f"jaxlib=={_release(jax)}", jaxlib))
    if wrong:
        said = "; ".join(
            f"{who} needs {requirement}, but there is {there or 'none'}"
            for who, requirement, there in wrong
        )
        wanted = " ".join(f"'{requirement}'" for _, requirement, _ in wrong)
        return Check("versions", FAILED, f"{said}: pip install {wanted}")
    named = [f"{name} {there}" for name, there in installed.items() if there]
    found = f"python {platform.python_version()}, {', '.join(named)}"
    if version("metricjax") is None:
        return Check(
            "versions",
            WARNING,
            f"{found}; metricjax itself is not installed, so that what it needs is not "
            "known: pip install -e . in its directory",
        )
    return Check("versions", OK, found)


def _unmet() -> Iterator[tuple[str, str, str | None]]:
    """(who, what it needs, the version that is there), without repetition."""
    from packaging.requirements import Requirement

    seen = set()
    for who in _REQUIRING:
        for text in _requirements(who):
            requirement = Requirement(text)
            for extra in _EXTRAS if who == "jax" else ("",):
                marker = requirement.marker
                if marker and not marker.evaluate({"extra": extra}):
                    continue
                there = version(requirement.name)
                is_optional = marker is not None and "extra" in str(marker)
                if there is None and is_optional:
                    continue
                wanted = f"{requirement.name}{requirement.specifier}"
                met = there and requirement.specifier.contains(there, prereleases=True)
                if not met and wanted not in seen:
                    seen.add(wanted)
                    yield who, wanted, there


def _requirements(name: str) -> list[str]:
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def version(name: str) -> str | None:
    """Of an installed package; None of one that is not."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(text: str) -> str:
    """`0.10.2` of `0.10.2.dev1+cuda`."""
    from packaging.version import Version

    return Version(text).base_version


def not_importable(error: Exception) -> Check:
    """jax or what is built on it cannot be imported."""
    return Check(
        "import",
        FAILED,
        f"{brief(error)}: install metricjax anew in an environment of its own, with "
        "the extra tpu or cuda where there is such a device",
    )


def brief(error: BaseException) -> str:
    """An error in one line, without the full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if len(text) < 300 else f"{text[:300]} ...").rstrip(".")


def workdir(root: str) -> Check:
    """Can a run be kept there? A file is written, read again and deleted."""
    from metricjax.storage.directories import local_path

    path = local_path(root)
    if path is None:
        return _bucket("workdir", root, writes=True)
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.NamedTemporaryFile(prefix=".metricjax-", dir=place) as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Check(
            "workdir",
            FAILED,
            f"{root}: {place} cannot be written ({brief(error)}): choose another "
            "--workdir, or free space there",
        )
    where = root if place == path.absolute() else f"{root} (to be made in {place})"
    found = f"{where} can be written, {free / _GIB:.1f} GiB free"
    if free < 2 * _GIB:
        return Check(
            "workdir",
            WARNING,
            f"{found}: free some, for checkpoints of a large model take more",
        )
    return Check("workdir", OK, found)


def data(root: str) -> Check:
    """Is data.root there and readable? What is in it is not looked at."""
    from metricjax.storage.directories import local_path

    path = local_path(root)
    if path is None:
        return _bucket("data", root, writes=False)
    try:
        if path.is_dir():
            names = len(os.listdir(path))
            found = f"{root} is a directory of {names:,} names"
            if not names:
                return Check(
                    "data", FAILED, f"{found}: put the images there, or name another"
                )
        else:
            with open(path, "rb") as file:
                file.read(1)
            found = f"{root} is a file of {path.stat().st_size / 2**20:,.1f} MiB"
    except OSError as error:
        return Check(
            "data",
            FAILED,
            f"{root} cannot be read ({error.strerror}): name the directory or archive "
            "that data.root is to be, on every host",
        )
    return Check("data", OK, f"{found}; metricjax.prepare --check looks inside")


def _bucket(check: str, root: str, writes: bool) -> Check:
    """The same of an address such as gs://bucket/dir, within a time limit."""
    answer: list[Check] = []

    def ask():
        try:
            answer.append(_ask_bucket(check, root, writes))
        except Exception as error:  # Each kind of address has errors of its own.
            sentence = f"{root}: {brief(error)}; see that this machine may use it"
            answer.append(Check(check, FAILED, sentence))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_BUCKET_LIMIT)
    if answer:
        return answer[0]
    return Check(
        check,
        FAILED,
        f"{root} did not answer within {_BUCKET_LIMIT:.0f} s: see that this machine "
        "reaches it and is allowed to use it (gcloud auth application-default login)",
    )


def _ask_bucket(check: str, root: str, writes: bool) -> Check:
    from metricjax.errors import InputError
    from metricjax.storage.bucket import BucketFiles
    from metricjax.storage.directories import open_storage

    try:
        if not writes:
            names = len(open_storage(root).names())
            if not names:
                return Check(check, FAILED, f"{root} is empty: name another")
            return Check(check, OK, f"{root} holds {names:,} names")
        place = BucketFiles(root, patient=False)
        name = f".metricjax-{os.getpid()}-{time.time_ns()}"
        place.write(name, b"doctor")
        try:
            is_same = place.read(name) == b"doctor"
        finally:
            place.remove([name])
    except InputError as error:
        return Check(check, FAILED, brief(error))
    if not is_same:
        return Check(check, FAILED, f"{root} gives back other bytes: name another")
    return Check(check, OK, f"{root} can be written, read and deleted from")


def memory(free: int | None) -> Check:
    """Memory that programs of this machine may still take, in bytes."""
    if free is None:
        return Check("memory", OK, "the system does not tell how much is free")
    found = f"{free / _GIB:.1f} GiB free"
    if free < 2 * _GIB:
        return Check(
            "memory",
            WARNING,
            f"{found}: end other programs, or set config.data.cache_gib=0 and a "
            "smaller batch",
        )
    return Check("memory", OK, found)
