"""Random streams named by integers: every random choice in `data` is one of them.

A stream is a pure function of (seed, purpose, words), so a draw can be repeated
without replaying those before it, on any host and in any thread.
"""

import numpy as np

# What a stream is for: the high half of the Philox key, so no two purposes share
# numbers. Changing a value changes every data set or batch made with it.
GLYPHS = 1
DECK_TAIL = 2
DECK_BODY = 3
AUGMENT = 4
HOLDOUT = 5
HALVES = 6

_LOW_64_BITS = (1 << 64) - 1


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
