"""Doctor's checks that need no device: versions, workdir, data, memory.

A check is a function that returns one `Check`, a line of the doctor's table. This file
must be importable without jax, to report an installation in which jax is broken.
"""

import importlib.metadata
import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OK, WARNING, FAILED = "ok", "warning", "FAILED"
# Packages whose versions are listed, and must be the same on all hosts.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# Packages whose requirements are compared with the installed versions; of jax also the
# requirements of extras that are installed at least in part.
_REQUIRING = ("metricjax", "jax", "flax", "optax", "orbax-checkpoint", "grain")
_EXTRAS = ("", "tpu", "cuda12", "cuda13")
_GIB = 2**30
# How long a bucket may take to answer, in seconds.
_BUCKET_LIMIT = 20.0


@dataclass(frozen=True)
class Check:
    """One line of the doctor's table.

    Attributes:
      name: what is checked, in a word or two.
      status: `OK`, `WARNING` or `FAILED`.
      sentence: the result, and unless it is ok what to do.
    """

    name: str
    status: str
    sentence: str


def versions() -> Check:
    """Check that the installed packages fit together, without importing them."""
    installed = {name: version(name) for name in PACKAGES}
    wrong = list(_unmet())
    jax, jaxlib = installed["jax"], installed["jaxlib"]
    if not wrong and jax and jaxlib and _release(jax) != _release(jaxlib):
        wrong.append(("jax", f"jaxlib=={_release(jax)}", jaxlib))
    if wrong:
        problems = "; ".join(
            f"{package} needs {requirement}, but there is {actual or 'none'}"
            for package, requirement, actual in wrong
        )
        wanted = " ".join(f"'{requirement}'" for _, requirement, _ in wrong)
        return Check("versions", FAILED, f"{problems}: pip install {wanted}")
    named = [f"{name} {actual}" for name, actual in installed.items() if actual]
    listed = f"python {platform.python_version()}, {', '.join(named)}"
    if version("metricjax") is None:
        return Check(
            "versions",
            WARNING,
            f"{listed}; metricjax itself is not installed, so its requirements are not "
            "known: pip install -e . in its directory",
        )
    return Check("versions", OK, listed)


def _unmet() -> Iterator[tuple[str, str, str | None]]:
    """(package, requirement, installed version) of each unmet requirement, once."""
    from packaging.requirements import Requirement

    seen = set()
    for package in _REQUIRING:
        for text in _requirements(package):
            requirement = Requirement(text)
            for extra in _EXTRAS if package == "jax" else ("",):
                marker = requirement.marker
                if marker and not marker.evaluate({"extra": extra}):
                    continue
                actual = version(requirement.name)
                is_optional = marker is not None and "extra" in str(marker)
                if actual is None and is_optional:
                    continue
                wanted = f"{requirement.name}{requirement.specifier}"
                met = actual and requirement.specifier.contains(
                    actual, prereleases=True
                )
                if not met and wanted not in seen:
                    seen.add(wanted)
                    yield package, wanted, actual


def _requirements(name: str) -> list[str]:
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def version(name: str) -> str | None:
    """Version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(text: str) -> str:
    """`0.10.2` of `0.10.2.dev1+cuda`."""
    from packaging.version import Version

    return Version(text).base_version


def not_importable(error: Exception) -> Check:
    """The check that fails when jax or a package built on it cannot be imported."""
    return Check(
        "import",
        FAILED,
        f"{brief(error)}: reinstall metricjax in an environment of its own, with "
        "the extra tpu or cuda where there is such a device",
    )


def brief(error: BaseException) -> str:
    """An error in one line, without the full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if len(text) < 300 else f"{text[:300]} ...").rstrip(".")


def workdir(root: str) -> Check:
    """Check that the workdir is writable and has free space, with a test file."""
    from metricjax.storage.directories import local_path

    path = local_path(root)
    if path is None:
        return _bucket("workdir", root, writes=True)
    existing = existing_parent(path)
    try:
        with tempfile.NamedTemporaryFile(prefix=".metricjax-", dir=existing) as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(existing).free
    except OSError as error:
        return Check(
            "workdir",
            FAILED,
            f"{root}: {existing} cannot be written ({brief(error)}): choose another "
            "--workdir, or free space there",
        )
    is_there = existing == path.absolute()
    where = root if is_there else f"{root} (to be created in {existing})"
    result = f"{where} can be written, {free / _GIB:.1f} GiB free"
    if free < 2 * _GIB:
        return Check(
            "workdir",
            WARNING,
            f"{result}: free some, for checkpoints of a large model take more",
        )
    return Check("workdir", OK, result)


def existing_parent(path: Path) -> Path:
    """The path itself if it exists, else its nearest parent that does."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def data(root: str) -> Check:
    """Check that data.root exists and can be read; its content is not checked."""
    from metricjax.storage.directories import local_path

    path = local_path(root)
    if path is None:
        return _bucket("data", root, writes=False)
    try:
        if path.is_dir():
            names = len(os.listdir(path))
            result = f"{root} is a directory of {names:,} names"
            if not names:
                return Check(
                    "data", FAILED, f"{result}: put the images there, or name another"
                )
        else:
            with open(path, "rb") as file:
                file.read(1)
            result = f"{root} is a file of {path.stat().st_size / 2**20:,.1f} MiB"
    except OSError as error:
        return Check(
            "data",
            FAILED,
            f"{root} cannot be read ({error.strerror}): name the directory or archive "
            "that data.root is to be, on every host",
        )
    return Check("data", OK, f"{result}; check its content with metricjax check")


def _bucket(check: str, root: str, writes: bool) -> Check:
    """Check an address such as gs://bucket/dir, within a time limit."""
    answer: list[Check] = []

    def ask():
        try:
            answer.append(_ask_bucket(check, root, writes))
        except Exception as error:  # Every storage client has errors of its own.
            sentence = f"{root}: {brief(error)}; see that this machine may use it"
            answer.append(Check(check, FAILED, sentence))

    # The clients retry for minutes. A daemon thread can be left behind in such a call.
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
        bucket = BucketFiles(root, patient=False)
        name = f".metricjax-{os.getpid()}-{time.time_ns()}"
        bucket.write(name, b"doctor")
        try:
            is_same = bucket.read(name) == b"doctor"
        finally:
            bucket.remove([name])
    except InputError as error:
        return Check(check, FAILED, brief(error))
    if not is_same:
        return Check(check, FAILED, f"{root} gives back other bytes: name another")
    return Check(check, OK, f"{root} can be written, read and deleted from")


def memory(free: int | None) -> Check:
    """Check the free memory of this machine, in bytes."""
    if free is None:
        return Check("memory", OK, "the system does not report how much is free")
    result = f"{free / _GIB:.1f} GiB free"
    if free < 2 * _GIB:
        return Check(
            "memory",
            WARNING,
            f"{result}: end other programs, or set config.data.cache_gib=0 and a "
            "smaller batch",
        )
    return Check("memory", OK, result)
