"""What the hosts of a run tell each other, and what they must agree on to start."""

import hashlib
import importlib.metadata
import json
import platform
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

from metricjax.config.parsing import flat, to_dict
from metricjax.config.schema import RunConfig
from metricjax.data.datasets import Dataset
from metricjax.errors import InputError
from metricjax.runtime import exchange
from metricjax.storage.directories import Storage, open_storage

_REMEDIES = {
    "settings": "start the same command on every host.",
    "data": "give every host the same images.",
    "code": "install the same metricjax on every host.",
    "versions": "install the same versions on every host.",
}
# Settings that a host may have for itself.
_OWN = {f"data.{name}" for name in ("root", "source", "threads", "cache_gib")}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
# For how long a file may take to be seen by another host, in seconds.
_SHARING = 10.0


def check_same(config: RunConfig, dataset: Dataset) -> None:
    """Check that all hosts were started with the same settings, data and programs.

    Raises:
      InputError: a host differs from the most; on every host, with the same sentence.
    """
    for topic, facts in _facts(config, dataset).items():
        odd = _odd_one(exchange.gather(topic, facts))
        if odd:
            raise InputError(f"{_told(topic, *odd)}: {_REMEDIES[topic]}")


def check_shared(workdir: Path | str) -> None:
    """Check that every host sees what host 0 writes into the workdir.

    Args:
      workdir: a directory, or the address of one in a bucket.

    Raises:
      InputError: one does not; on every host, with the same sentence.
    """
    hosts = exchange.gather("token", uuid.uuid4().hex)
    writer, token = hosts[0]
    if len(hosts) == 1:
        return
    place, file, first = open_storage(workdir), f".{token}", exchange.is_first()
    if first:
        place.write(file, b"Do the hosts share this directory?\n")
    try:
        exchange.gather("written", None)
        for name, seen in exchange.gather("seen", _appears(place, file)):
            if not seen:
                raise InputError(
                    f"--workdir {workdir}: {name} does not see what {writer} writes "
                    "there: name a directory that all hosts share."
                )
    finally:
        if first:
            place.remove(file)


def _appears(place: Storage, name: str) -> bool:
    until = time.monotonic() + _SHARING
    while place.read(name) is None:
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def _facts(config: RunConfig, dataset: Dataset) -> dict[str, dict[str, Any]]:
    """By topic, what must be the same: name and value, or name and digest."""
    settings = flat(to_dict(config))
    return {
        "settings": {k: v for k, v in settings.items() if k not in _OWN},
        "data": {"images and labels": _digest_of_data(dataset)},
        "code": digest_of_code(),
        "versions": {
            "python": ".".join(platform.python_version_tuple()[:2]),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
    }


def _digest_of_data(dataset: Dataset) -> str:
    sha = hashlib.sha256(dataset.fingerprint.encode())
    for split in (dataset.train, dataset.test):
        names = split.names if not dataset.fingerprint else ()
        sha.update("\n".join(names).encode("utf-8", "surrogateescape"))
        sha.update(split.labels.tobytes())
    return sha.hexdigest()


def digest_of_code() -> dict[str, str]:
    """A digest of each file of this package."""
    package = Path(__file__).parents[1]
    return {
        str(path.relative_to(package)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(package.rglob("*.py"))
    }


def _odd_one(said: list[tuple[str, Any]]) -> tuple | None:
    """((host, facts) of one that differs from most, (host, facts) of one of these)."""
    texts = [json.dumps(facts, sort_keys=True) for _, facts in said]
    # Among equals the first host's counts.
    common, _ = Counter(texts).most_common(1)[0]
    odd = [one for one, text in zip(said, texts, strict=True) if text != common]
    return (odd[0], said[texts.index(common)]) if odd else None


def _told(topic: str, odd: tuple, usual: tuple) -> str:
    """How one host differs, in words."""
    (odd_host, odd_facts), (host, facts) = odd, usual
    names = sorted({*odd_facts, *facts})
    name = next(n for n in names if odd_facts.get(n) != facts.get(n))
    where = {
        "settings": f"config.{name} is {odd_facts.get(name)!r} and {facts.get(name)!r}",
        "versions": f"{name} {odd_facts.get(name)} and {facts.get(name)}",
    }.get(topic, name)
    return f"{odd_host} has other {topic} than {host} ({where})"
