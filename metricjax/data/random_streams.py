"""Counter-based random streams; every random choice in `data` uses one of them.

A stream is a pure function of (seed, purpose, words), so any draw can be repeated on
any host and in any thread without replaying those before it.
"""

import threading

import numpy as np

# The purpose is the high half of the Philox key, so no two purposes share random
# numbers. Changing a value changes every data set or batch that was drawn with it.
GLYPHS = 1
DECK_TAIL = 2
DECK_BODY = 3
AUGMENT = 4
HOLDOUT = 5
HALVES = 6
PARTNERS = 7

_LOW_64_BITS = (1 << 64) - 1

_per_thread = threading.local()


def stream(seed: int, purpose: int, *words: int) -> np.random.Generator:
    """The generator for (seed, purpose, words).

    Seed and purpose are the key of a Philox counter generator, the words the high part
    of its counter, so streams of different arguments never overlap.

    Args:
      seed: the run's seed; only its low 64 bits are used.
      purpose: one of the constants of this module.
      words: at most three integers in [0, 2**64).
    """
    key = (seed & _LOW_64_BITS) | (purpose << 64)
    counter = sum(word << (64 * (place + 1)) for place, word in enumerate(words))
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def reused_stream(seed: int, purpose: int, *words: int) -> np.random.Generator:
    """Like `stream`, but valid only until the thread's next call of this function.

    Each thread has one generator that is reset to the start of the stream, because
    creating one takes longer than a short draw from it.
    """
    if not hasattr(_per_thread, "generator"):
        _per_thread.generator = np.random.Generator(np.random.Philox(0))
        _per_thread.beginning = _per_thread.generator.bit_generator.state
    state = _per_thread.beginning["state"]
    state["key"] = np.array((seed & _LOW_64_BITS, purpose), np.uint64)
    state["counter"] = np.array((0, *words, *(0,) * (3 - len(words))), np.uint64)
    _per_thread.generator.bit_generator.state = _per_thread.beginning
    return _per_thread.generator
