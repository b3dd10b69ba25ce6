"""Packed images read again, whole: is every byte what was written?"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from metricjax.data.formats.packed import damage_told, read_manifest
from metricjax.data.formats.shard_reader import Shards, open_shard, read_record, sha256
from metricjax.storage.directories import open_storage

_MAX_NAMED = 10


def verify(
    root: str,
    *,
    say: Callable[[str], None] = print,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Reads every shard again and names what is damaged.

    Args:
      root: a directory or URL that was packed to the end. Shards of a bucket are copied
        into a temporary directory one by one.
      say: called with each sentence.
      progress: called with how many records were read and how many there are.

    Returns:
      Whether all is as it was written.

    Raises:
      InputError: there is nothing packed, or its manifest is damaged.
    """
    place = open_storage(root)
    manifest = read_manifest(place)
    with damage_told(place):
        shards = Shards(place, manifest)
        names = [*manifest["train"]["names"], *manifest["test"]["names"]]
    present = set(place.names())
    faults = 0
    for number, shard in enumerate(manifest["shards"]):
        records = range(*shards.first[number : number + 2])
        with tempfile.TemporaryDirectory(prefix="metricjax-") as scratch:
            if shard["name"] not in present:
                found = [f"{shard['name']} is missing."]
            else:
                path = place.fetch(shard["name"], Path(scratch))
                found = list(_faults(path, shard, shards, records, names))
        for sentence in found:
            say(sentence)
        faults += len(found)
        if progress is not None:
            progress(records.stop, len(shards))
    if faults:
        say(f"{place.root} is damaged: pack the images again into another directory.")
    else:
        say(f"{place.root} is whole: {len(shards):,} images, each as it was written.")
    return not faults


def _faults(
    path: Path,
    shard: Mapping[str, Any],
    shards: Shards,
    records: range,
    names: list[str],
) -> Iterator[str]:
    """What is wrong with one shard, in sentences."""
    name, size = shard["name"], path.stat().st_size
    if size != shard["bytes"]:
        yield f"{name} has {size:,} bytes instead of {shard['bytes']:,}."
    reader = open_shard(path)
    damaged = [
        record
        for position, record in enumerate(records)
        if not shards.is_whole(record, read_record(reader, position))
    ]
    for record in damaged[:_MAX_NAMED]:
        position = record - records.start
        yield f"{name}: record {position} ({names[record]!r}) is damaged."
    if damaged[_MAX_NAMED:]:
        yield f"{name}: {len(damaged) - _MAX_NAMED:,} more records are damaged."
    if not damaged and size == shard["bytes"] and sha256(path) != shard["sha256"]:
        yield f"{name} is not as it was written, but all its records are whole."
