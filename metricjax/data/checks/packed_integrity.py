"""`--verify` of packed images: read every shard again and compare checksums."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from metricjax.data.formats.packed import read_manifest, reporting_damage
from metricjax.data.formats.shard_reader import Shards, open_shard, read_record, sha256
from metricjax.storage.directories import open_storage

_MAX_LISTED = 10


def verify(
    root: str,
    *,
    say: Callable[[str], None] = print,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Read every shard again and report what is damaged.

    Args:
      root: a completely packed directory or URL. Shards of a bucket are downloaded one
        by one into a temporary directory.
      say: called with each sentence.
      progress: called with the number of records read and the total.

    Returns:
      Whether every byte is as it was written.

    Raises:
      InputError: nothing is packed there, or its manifest is damaged.
    """
    storage = open_storage(root)
    root = storage.root
    manifest = read_manifest(storage)
    with reporting_damage(storage):
        shards = Shards(storage, manifest)
        names = [*manifest["train"]["names"], *manifest["test"]["names"]]
    present = set(storage.names())
    faults = 0
    for number, shard in enumerate(manifest["shards"]):
        records = range(*shards.first[number : number + 2])
        with tempfile.TemporaryDirectory(prefix="metricjax-") as scratch:
            if shard["name"] not in present:
                messages = [f"{shard['name']} is missing."]
            else:
                path = storage.fetch(shard["name"], Path(scratch))
                messages = list(_faults(path, shard, shards, records, names))
        for message in messages:
            say(message)
        faults += len(messages)
        if progress is not None:
            progress(records.stop, len(shards))
    if faults:
        say(f"{root} is damaged: pack the images again into another directory.")
    else:
        say(f"{root} is whole: {len(shards):,} images, each as it was written.")
    return not faults


def _faults(
    path: Path,
    shard: Mapping[str, Any],
    shards: Shards,
    records: range,
    names: list[str],
) -> Iterator[str]:
    """Yield a sentence for each fault of one shard."""
    name, size = shard["name"], path.stat().st_size
    if size != shard["bytes"]:
        yield f"{name} has {size:,} bytes instead of {shard['bytes']:,}."
    reader = open_shard(path)
    damaged = [
        record
        for position, record in enumerate(records)
        if not shards.is_intact(record, read_record(reader, position))
    ]
    for record in damaged[:_MAX_LISTED]:
        position = record - records.start
        yield f"{name}: record {position} ({names[record]!r}) is damaged."
    if damaged[_MAX_LISTED:]:
        yield f"{name}: {len(damaged) - _MAX_LISTED:,} more records are damaged."
    # Last, because it reads the file once more: bytes between the records.
    if not damaged and size == shard["bytes"] and sha256(path) != shard["sha256"]:
        yield f"{name} is not as it was written, but all its records are whole."
