"""What compiled programs need: memory of a device, and bytes between devices."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import jax

_COLLECTIVE = re.compile(
    "= (.*?) (all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all)"
    r"(-start)?\("
)
_BITS = {"pred": 8, "bf16": 16, "f8e4m3fn": 8, "f8e5m2": 8}
_SHAPE = re.compile(r"\b(pred|bf16|f8\w+|[sufc]\d+)\[([\d,]*)\]")


@dataclass(frozen=True)
class Memory:
    """Bytes of one device while a program runs, as its compiler counts them.

    Attributes:
      arguments: what it is given, such as state and batch.
      temporaries: what it makes on the way, such as activations and gradients.
      outputs: what it gives back, where that does not take the place of an argument.
    """

    arguments: int
    temporaries: int
    outputs: int

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries + self.outputs


def memory(program: jax.stages.Compiled) -> Memory | None:
    """The memory of a program; None where the backend does not tell."""
    found = program.memory_analysis()
    if found is None:
        return None
    return Memory(
        found.argument_size_in_bytes,
        found.temp_size_in_bytes,
        max(0, found.output_size_in_bytes - found.alias_size_in_bytes),
    )


def needed(error: Exception, arguments: int) -> int | None:
    """The bytes that a program would need which a compiler refused as too large.

    TPU's compiler knows the memory of its chips and refuses what they cannot hold.

    Args:
      error: what it said.
      arguments: bytes of what the program is given.

    Returns:
      All that it needs; None where the compiler does not say.
    """
    whole = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", str(error))
    rest = re.search(r"HLO temporaries \(([\d.]+)([KMGT]?)\)", str(error))
    said = whole or rest
    if said is None:
        return None
    size = int(float(said[1]) * 1024 ** " KMGT".index(said[2] or " "))
    return size if whole else size + arguments


def moved(program: jax.stages.Compiled, flops: float) -> float:
    """Bytes to and from a device's memory in one run of a program.

    The compiler counts a loop once, so where it misses FLOPs the bytes are scaled as
    the FLOPs are.

    Args:
      program: compiled.
      flops: of one device, loops counted as often as they run.
    """
    cost = program.cost_analysis() or {}
    return cost.get("bytes accessed", 0.0) * max(1.0, flops / cost.get("flops", flops))


@dataclass(frozen=True)
class Traffic:
    """What each device sends in one run of a program.

    Attributes:
      sent: bytes by kind of collective.
      counts: how many collectives of each kind the program has, each one in a loop
        once.
      repeated: bytes of those inside loops, as often as the loops run; part of `sent`.
      gathered: bytes of the largest array that one collective gathers.
    """

    sent: Counter
    counts: Counter
    repeated: float
    gathered: int

    @property
    def total(self) -> float:
        return float(sum(self.sent.values()))


def traffic(text: str, devices: int) -> Traffic:
    """What the collectives of an optimised program move, read from its HLO.

    Counted as on a ring of n devices: to gather, scatter or exchange an array of s
    bytes each device sends s (n - 1) / n, to add arrays up twice that. A loop counts as
    often as it says that it runs, once where it does not say. A collective that TPU's
    compiler has spread over several computations, to go on beside them, stands in each
    of them with the number of one channel, and counts once.

    Args:
      text: `program.as_text()`.
      devices: n, which all take part in every collective.
    """
    share = (devices - 1) / devices
    sent, counts, repeated, gathered = Counter(), Counter(), 0.0, 0
    channels = set()
    for kind, size, times, channel in _collectives(_computations(text)):
        if channel in channels:
            continue
        if channel:
            channels.add(channel)
        moved = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)
        if kind == "reduce-scatter":
            size *= devices
        if kind == "all-gather":
            gathered = max(gathered, size)
        sent[kind] += moved * size * times
        counts[kind] += 1
        repeated += moved * size * times if times > 1 else 0.0
    return Traffic(sent, counts, repeated, gathered)


def _computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation, by name; that of the entry is "ENTRY"."""
    found, lines = {}, []
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head:
            lines = found.setdefault("ENTRY" if head[1] else head[2], [])
        elif line.startswith(" "):
            lines.append(line)
    return found


def _collectives(computations, name="ENTRY", times=1) -> Iterator[tuple]:
    """(kind, bytes of the result, how often it runs, channel) of every collective."""
    for line in computations.get(name, ()):
        instruction = line.split(", metadata")[0]
        found = _COLLECTIVE.search(instruction)
        if found:
            size = _size(found[1], found[2], bool(found[3]))
            channel = re.search(r", channel_id=(\d+)", instruction)
            yield found[2], size, times, channel and channel[1]
        called = re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", line)
        for several in re.findall(r"branch_computations=\{([^}]*)\}", line):
            called += re.findall(r"[\w.\-]+", several)
        inner = times * _turns(computations, line) if " while(" in line else times
        for computation in called:
            yield from _collectives(computations, computation, inner)


def _turns(computations: dict[str, list[str]], loop: str) -> int:
    """How often a loop runs; 1 where its program does not say."""
    said = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop)
    if said:
        return int(said[1])
    # TPU's compiler leaves it in the condition: `counter < constant`, from 0 on.
    condition = re.search(r"condition=%?([\w.\-]+)", loop)
    lines = "\n".join(computations.get(condition[1], ())) if condition else ""
    bounds = re.findall(r"= s32\[\]\S* constant\((\d+)\)", lines)
    return int(bounds[0]) if len(bounds) == 1 and "direction=LT" in lines else 1


def _size(shapes: str, kind: str, starts: bool) -> int:
    """Bytes of a result; one that only starts lists its operands before it."""
    sizes = [
        prod(int(side) for side in sides.split(",") if side)
        * (_BITS.get(kind_of) or int(re.sub(r"\D", "", kind_of)))
        // 8
        for kind_of, sides in _SHAPE.findall(shapes)
    ]
    if starts and kind == "collective-permute":
        return sizes[0]
    if starts and kind != "all-reduce":
        return sum(sizes[len(sizes) // 2 :])
    return sum(sizes)
