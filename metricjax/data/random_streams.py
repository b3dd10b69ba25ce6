"""Random streams named by integers: every random choice in `data` is one of them.

A stream is a pure function of (seed, purpose, words), so a draw can be repeated
without replaying those before it, on any host and in any thread.
"""

import threading

import numpy as np

# What a stream is for: the high half of the Philox key, so no two purposes share
# numbers. Changing a value changes every data set or batch made with it.
GLYPHS = 1
DECK_TAIL = 2
DECK_BODY = 3
AUGMENT = 4
HOLDOUT = 5
HALVES = 6
PARTNERS = 7

_LOW_64_BITS = (1 << 64) - 1

_of_thread = threading.local()


def stream(seed: int, purpose: int, *words: int) -> np.random.Generator:
    """The generator for (seed, purpose, words).

    The seed and the purpose are the key of a Philox counter generator and the words the
    high part of its counter: different arguments give streams that never overlap.

    Args:
      seed: the run's seed; its low 64 bits count.
      purpose: one of the constants of this module.
      words: at most three integers in [0, 2**64).
    """
    key = (seed & _LOW_64_BITS) | (purpose << 64)
    counter = sum(word << (64 * (place + 1)) for place, word in enumerate(words))
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def passing_stream(seed: int, purpose: int, *words: int) -> np.random.Generator:
    """The numbers of `stream`, only to be read before the thread's next call of this.

    There is one generator to a thread, put to the beginning of the stream: making a new
    one takes longer than a short draw from it.
    """
    if not hasattr(_of_thread, "generator"):
        _of_thread.generator = np.random.Generator(np.random.Philox(0))
        _of_thread.beginning = _of_thread.generator.bit_generator.state
    state = _of_thread.beginning["state"]
    state["key"] = np.array((seed & _LOW_64_BITS, purpose), np.uint64)
    state["counter"] = np.array((0, *words, *(0,) * (3 - len(words))), np.uint64)
    _of_thread.generator.bit_generator.state = _of_thread.beginning
    return _of_thread.generator
