"""Checks that all hosts start with the same settings, data, code and workdir."""

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
# Settings that may differ between hosts.
_OWN = {f"data.{name}" for name in ("root", "source", "threads", "cache_gib")}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
# How long a new file may take to appear on another host, in seconds: shared file
# systems cache directory listings.
_VISIBLE_WITHIN = 10.0


def check_same(config: RunConfig, dataset: Dataset) -> None:
    """Check that all hosts were started with the same settings, data and code.

    Raises:
      InputError: a host differs from the majority; all hosts raise the same error.
    """
    for topic, facts in _facts(config, dataset).items():
        difference = _difference(exchange.gather(topic, facts))
        if difference:
            sentence = _describe_difference(topic, *difference)
            raise InputError(f"{sentence}: {_REMEDIES[topic]}")


def check_shared(workdir: Path | str) -> None:
    """Check that every host sees what host 0 writes into the workdir.

    Args:
      workdir: a directory, or the address of one in a bucket.

    Raises:
      InputError: one does not; all hosts raise the same error.
    """
    hosts = exchange.gather("token", uuid.uuid4().hex)
    writer, token = hosts[0]
    if len(hosts) == 1:
        return
    storage, file, first = open_storage(workdir), f".{token}", exchange.is_first()
    if first:
        storage.write(file, b"Do the hosts share this directory?\n")
    try:
        exchange.gather("written", None)  # a barrier: look for the file only now
        for name, seen in exchange.gather("seen", _appears(storage, file)):
            if not seen:
                raise InputError(
                    f"--workdir {workdir}: {name} does not see what {writer} writes "
                    "there: name a directory that all hosts share."
                )
    finally:
        if first:
            storage.remove(file)


def _appears(storage: Storage, name: str) -> bool:
    deadline = time.monotonic() + _VISIBLE_WITHIN
    while storage.read(name) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _facts(config: RunConfig, dataset: Dataset) -> dict[str, dict[str, Any]]:
    """What must be the same on all hosts, by topic: values or digests, by name."""
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


def _difference(gathered: list[tuple[str, Any]]) -> tuple | None:
    """((host, facts) that differs from the majority, (host, facts) of the majority)."""
    texts = [json.dumps(facts, sort_keys=True) for _, facts in gathered]
    # `most_common` keeps the order of insertion: a tie goes to the first host.
    common, _ = Counter(texts).most_common(1)[0]
    odd = [one for one, text in zip(gathered, texts, strict=True) if text != common]
    return (odd[0], gathered[texts.index(common)]) if odd else None


def _describe_difference(topic: str, odd: tuple, usual: tuple) -> str:
    """A sentence on the first fact in which two hosts differ."""
    (odd_host, odd_facts), (host, facts) = odd, usual
    names = sorted({*odd_facts, *facts})
    name = next(n for n in names if odd_facts.get(n) != facts.get(n))
    where = {
        "settings": f"config.{name} is {odd_facts.get(name)!r} and {facts.get(name)!r}",
        "versions": f"{name} {odd_facts.get(name)} and {facts.get(name)}",
    }.get(topic, name)
    return f"{odd_host} has other {topic} than {host} ({where})"
