"""What a compiled program costs: device memory, and traffic between devices.

Read from XLA's own analysis where it has one, else from the text of the HLO.
"""

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
    """Memory of one device while a program runs, in bytes, as XLA counts it.

    Attributes:
      arguments: inputs, such as the state and the batch.
      temporaries: intermediate values, such as activations and gradients.
      outputs: results that do not reuse the memory of a donated argument.
    """

    arguments: int
    temporaries: int
    outputs: int

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries + self.outputs


def memory(program: jax.stages.Compiled) -> Memory | None:
    """Memory of a program; None if the backend does not report it."""
    analysis = program.memory_analysis()
    if analysis is None:
        return None
    return Memory(
        analysis.argument_size_in_bytes,
        analysis.temp_size_in_bytes,
        max(0, analysis.output_size_in_bytes - analysis.alias_size_in_bytes),
    )


def needed(error: Exception, arguments: int) -> int | None:
    """Bytes that a program would need which the compiler refused as too large.

    TPU's compiler knows the memory of its chips and refuses programs that exceed it.

    Args:
      error: the compiler's error.
      arguments: bytes of the program's arguments.

    Returns:
      Bytes in total; None if the error does not say.
    """
    whole = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", str(error))
    rest = re.search(r"HLO temporaries \(([\d.]+)([KMGT]?)\)", str(error))
    match = whole or rest
    if match is None:
        return None
    size = int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " "))
    return size if whole else size + arguments


def moved(program: jax.stages.Compiled, flops: float) -> float:
    """Bytes that one device reads from and writes to its memory in a run of a program.

    XLA counts the body of a loop once. If it reports fewer FLOPs than `flops`, the
    bytes are scaled by the same factor.

    Args:
      program: the compiled program.
      flops: FLOPs of one device, every iteration of a loop counted.
    """
    cost = program.cost_analysis() or {}
    return cost.get("bytes accessed", 0.0) * max(1.0, flops / cost.get("flops", flops))


@dataclass(frozen=True)
class Traffic:
    """Bytes that each device sends in one run of a program.

    Attributes:
      sent: bytes by kind of collective.
      counts: number of collectives of each kind, those in loops counted once.
      repeated: the part of `sent` inside loops, every iteration counted.
      gathered: bytes of the largest array that an all-gather produces.
    """

    sent: Counter
    counts: Counter
    repeated: float
    gathered: int

    @property
    def total(self) -> float:
        return float(sum(self.sent.values()))


def traffic(text: str, devices: int) -> Traffic:
    """Traffic of the collectives of an optimised program, read from its HLO.

    Counted for ring algorithms on n devices: to gather, scatter or exchange an array of
    s bytes each device sends s (n - 1) / n bytes, to all-reduce it twice as many. A
    loop counts as often as its known trip count, or once. TPU's compiler splits an
    asynchronous collective over several computations; these share one channel id, by
    which they are counted once.

    Args:
      text: `program.as_text()`.
      devices: n; all of them take part in every collective.
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
    """The lines of each HLO computation, by name; the entry's name is "ENTRY"."""
    computations, lines = {}, []
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head:
            lines = computations.setdefault("ENTRY" if head[1] else head[2], [])
        elif line.startswith(" "):
            lines.append(line)
    return computations


def _collectives(computations, name="ENTRY", times=1) -> Iterator[tuple]:
    """(kind, bytes of the result, times it runs, channel id) of every collective."""
    for line in computations.get(name, ()):
        instruction = line.split(", metadata")[0]
        match = _COLLECTIVE.search(instruction)
        if match:
            size = _size(match[1], match[2], bool(match[3]))
            channel = re.search(r", channel_id=(\d+)", instruction)
            yield match[2], size, times, channel and channel[1]
        called = re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", line)
        for several in re.findall(r"branch_computations=\{([^}]*)\}", line):
            called += re.findall(r"[\w.\-]+", several)
        inner = times * _trip_count(computations, line) if " while(" in line else times
        for computation in called:
            yield from _collectives(computations, computation, inner)


def _trip_count(computations: dict[str, list[str]], loop: str) -> int:
    """How often a loop runs; 1 if the HLO does not say."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop)
    if known:
        return int(known[1])
    # TPU's compiler leaves the count in the condition: `counter < constant`, from 0.
    condition = re.search(r"condition=%?([\w.\-]+)", loop)
    lines = "\n".join(computations.get(condition[1], ())) if condition else ""
    bounds = re.findall(r"= s32\[\]\S* constant\((\d+)\)", lines)
    return int(bounds[0]) if len(bounds) == 1 and "direction=LT" in lines else 1


def _size(shapes: str, kind: str, starts: bool) -> int:
    """Bytes of a result; an asynchronous start lists its operands first."""
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
