"""A workdir in a bucket: written into a copy on this machine, and pushed from there.

Nothing else of a run knows of buckets. The bucket is what counts: at its start a run
makes the copy as the bucket is, so that it can go on on any machine. A checkpoint in
the bucket counts once `checkpoints/STEP.complete` is there, which is written last and
says what belongs to it; otherwise the files are those of any workdir.
"""

import hashlib
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import jax

from metricjax.config.schema import RunConfig
from metricjax.errors import InputError, disk_errors
from metricjax.runtime import exchange
from metricjax.storage import user_cache
from metricjax.storage.atomic import locked
from metricjax.storage.bucket import BucketFiles
from metricjax.storage.directories import local_path
from metricjax.training.checkpoints import Checkpoints
from metricjax.training.workdir import CONFIG_FILE, check_owner, read_config_file

_CHECKPOINTS = "checkpoints"
# What a run that goes on reads, besides its checkpoints.
_READ = ("config.json", "metrics.jsonl", "report.html")
# It says that all is done, so that it is pushed after everything else.
_LAST = "report.html"


class Workdir:
    """A run's directory on this machine.

    Attributes:
      path: where to write.
      address: what the user called it.
    """

    def __init__(self, path: Path, address: Path | str):
        self.path, self.address = path, address

    def shown(self, sentence: str) -> str:
        """A sentence with the user's word for the directory."""
        return sentence

    def push(self) -> None:
        """Bring what was written to where it is kept, checkpoints apart."""

    def finish(self) -> None:
        """The same for the last time."""

    def checkpoints(self, metric: str) -> Checkpoints:
        """The run's checkpoints; see `Checkpoints`."""
        return Checkpoints(self.path / _CHECKPOINTS, metric)


@contextmanager
def opened(
    workdir: Path | str, config: RunConfig, say: Callable[[str], None]
) -> Iterator[Workdir]:
    """Open the workdir of a run, of these settings or none; to be called on all hosts.

    Args:
      workdir: a directory, or the address of one in a bucket.
      config: the settings.
      say: called with a sentence for each checkpoint that is passed over.

    Raises:
      InputError: it holds a run of other settings, or cannot be used; also later, while
        it is in use.
    """
    path = local_path(workdir)
    if path is not None:
        check_owner(read_config_file(path), path, config)
        yield Workdir(path, path)
        return
    bucket = BucketFiles(workdir)
    check_owner(bucket.read(CONFIG_FILE), bucket.address, config)
    copy = _place_of_copy(bucket.address)
    in_use = (
        f"--workdir {bucket.address} is in use by another process on this machine: "
        "wait for it, or end it first."
    )
    with locked(copy, in_use), InBucket(bucket, copy, say) as place:
        yield place


def _place_of_copy(address: str) -> Path:
    """A directory of this host's own; hosts may share a home."""
    digest = hashlib.sha256(address.encode()).hexdigest()[:16]
    try:
        runs = user_cache.home() / "runs"
        place = runs / digest / f"host{jax.process_index()}"
        place.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"--workdir {address}: no copy can be kept on this machine ({error}); set "
            "XDG_CACHE_HOME to a directory that can be written."
        ) from error
    return place


class InBucket(Workdir):
    """A workdir in a bucket. Every host reads from it, the first alone writes."""

    def __init__(self, bucket: BucketFiles, copy: Path, say: Callable[[str], None]):
        super().__init__(copy, bucket.address)
        self._bucket, self._say, self._first = bucket, say, jax.process_index() == 0
        self._pushed: dict[str, tuple[int, int]] = {}
        self._worker = ThreadPoolExecutor(1)
        self._pending: Future | None = None
        with disk_errors(copy):
            for path in copy.iterdir():
                if path.name != _CHECKPOINTS:
                    _remove(path)
        there = set(_READ) & set(bucket.find(""))
        bucket.get(sorted(there), copy)
        self.pull_checkpoints()

    def __enter__(self) -> "InBucket":
        return self

    def __exit__(self, *_) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    def shown(self, sentence: str) -> str:
        return sentence.replace(str(self.path), str(self.address))

    def checkpoints(self, metric: str) -> Checkpoints:
        return _Pushed(self, metric)

    def push(self) -> None:
        if not self._first:
            return
        found = self.path.rglob("*")
        names = (str(p.relative_to(self.path)) for p in found if p.is_file())
        files = [n for n in names if not n.startswith((f"{_CHECKPOINTS}/", "."))]
        for name in sorted(files, key=lambda name: (name == _LAST, name)):
            stat = (self.path / name).stat()
            version = (stat.st_size, stat.st_mtime_ns)
            if self._pushed.get(name) != version:
                self._push_as_it_is(name)
                self._pushed[name] = version

    def _push_as_it_is(self, name: str) -> None:
        """Push a file that may be written to meanwhile."""
        with disk_errors(self.path):
            still = self.path / ".pushing" / name
            still.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.path / name, still)
        self._bucket.put(self.path / ".pushing", [name])
        still.unlink()

    def finish(self) -> None:
        self.push()
        shutil.rmtree(self.path, ignore_errors=True)

    def push_checkpoint(self, step: int, written: Callable[[], None]) -> None:
        """Push everything, behind, once a checkpoint is `written`, which waits for it.

        Checkpoints that are no longer here are removed from the bucket.
        """

        def push() -> None:
            written()
            self.push()
            self._push_checkpoints(step)

        self._pending = self._worker.submit(push)

    def wait(self) -> None:
        """Wait until all is pushed.

        Raises:
          InputError: it could not be.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _push_checkpoints(self, saved: int) -> None:
        here, there = self._steps_here(), self._steps_there()
        for step in sorted(here):
            if step == saved or _marker(step) not in there[step]:
                self._bucket.remove(there[step])
                files = _contents(self.path / _CHECKPOINTS / str(step))
                self._bucket.put(self.path, [f"{_CHECKPOINTS}/{f}" for f in files])
                text = json.dumps(files, indent=1) + "\n"
                self._bucket.write(_marker(step), text.encode())
        for step in sorted(there.keys() - here):
            self._bucket.remove(there[step])

    def _steps_here(self) -> set[int]:
        with suppress(FileNotFoundError):
            names = [path.name for path in (self.path / _CHECKPOINTS).iterdir()]
            return {int(name) for name in names if name.isdecimal()}
        return set()

    def _steps_there(self) -> defaultdict[int, list[str]]:
        """By step, the names of what is in the bucket, its marker first."""
        found = defaultdict(list)
        for name in self._bucket.find(_CHECKPOINTS):
            match = re.match(rf"{_CHECKPOINTS}/(\d+)(/|\.complete$)", name)
            if match:
                names = found[int(match[1])]
                names.insert(len(names) if match[2] == "/" else 0, name)
        return found

    def pull_checkpoints(self) -> None:
        """Make the checkpoints here what they are in the bucket."""
        directory = self.path / _CHECKPOINTS
        wanted = {}
        for step, names in self._steps_there().items():
            if _marker(step) in names:
                wanted[step] = self._listed(step)
        with disk_errors(self.path):
            directory.mkdir(exist_ok=True)
            for path in list(directory.iterdir()):
                step = int(path.name) if path.name.isdecimal() else None
                if step not in wanted or _contents(path) != wanted[step]:
                    _remove(path)
        for step, files in wanted.items():
            if (directory / str(step)).exists():
                continue
            names = [f"{_CHECKPOINTS}/{file}" for file in files]
            missing = set(names) - set(self._bucket.find(f"{_CHECKPOINTS}/{step}"))
            if not missing:
                self._bucket.get(names, self.path)
            if not names or missing or _contents(directory / str(step)) != files:
                shutil.rmtree(directory / str(step), ignore_errors=True)
                self._say(
                    f"{self.address}/{_CHECKPOINTS}/{step} is not what it was when it "
                    "was saved: it is passed over."
                )

    def _listed(self, step: int) -> dict[str, Any]:
        """What a marker says; nothing if it makes no sense."""
        try:
            files = dict(json.loads(self._bucket.read(_marker(step)) or b"{}"))
        except (ValueError, TypeError):
            return {}
        is_inside = (f.startswith(f"{step}/") and ".." not in f for f in files)
        return files if all(is_inside) else {}


class _Pushed(Checkpoints):
    """Checkpoints that are pushed as soon as they are written.

    The next is saved when the one before has been pushed, so that none is taken away
    while it is read.
    """

    def __init__(self, place: InBucket, metric: str):
        own = jax.process_count() > 1
        super().__init__(place.path / _CHECKPOINTS, metric, own=own)
        self._place, self._first = place, jax.process_index() == 0

    def save(self, step: int, state: Any, metrics: dict[str, float] | None) -> None:
        if self._first:
            self.wait()
            super().save(step, state, metrics)
            self._place.push_checkpoint(step, super().wait)

    def restore_best(
        self, abstract: Any, say: Callable[[str], None]
    ) -> tuple[int, Any] | None:
        self.wait()
        exchange.gather("pushed", None)
        if not self._first:
            self._place.pull_checkpoints()
            self._manager.reload()
        return super().restore_best(abstract, say)

    def wait(self) -> None:
        self._place.wait()
        super().wait()

    def close(self) -> None:
        super().close()
        self._place.wait()

    def __exit__(self, kind, *_) -> None:
        # What stopped the run is worth more than that its last checkpoint is not there.
        with suppress(InputError) if kind else nullcontext():
            self.close()


def _marker(step: int) -> str:
    return f"{_CHECKPOINTS}/{step}.complete"


def _contents(directory: Path) -> dict[str, list]:
    """By name from the directory above, each file's size and SHA-256."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            name = path.relative_to(directory.parent).as_posix()
            found[name] = [path.stat().st_size, digest]
    return found


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
