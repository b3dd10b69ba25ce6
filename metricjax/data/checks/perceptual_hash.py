"""Which pictures look the same: 64-bit hashes of what is coarse in them, compared.

The hash is that of Zauner ("Implementation and Benchmarking of Perceptual Image Hash
Functions", 2010): the signs of low frequencies against their median. Unlike hashes of
neighbouring pixels it tells drawings on a white ground apart.
"""

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt64

SIDE = 32
BITS = 64
# Below this standard deviation, in grey levels, there is nothing to be hashed.
BLANK = 2.0
_PAIRS_AT_ONCE = 8192
_COMPARED = 1024


def hashes(thumbnails: UInt8[np.ndarray, "n 32 32"]) -> UInt64[np.ndarray, " n"]:
    """The hash of each picture: bit k says whether frequency k is above the median.

    Args:
      thumbnails: [n, 32, 32], grey, each the whole picture.
    """
    basis = _cosines()
    rows, columns = _low_frequencies()
    result = np.empty(len(thumbnails), np.uint64)
    weights = np.left_shift(np.uint64(1), np.arange(BITS, dtype=np.uint64))
    for start in range(0, len(thumbnails), _PAIRS_AT_ONCE):
        part = thumbnails[start : start + _PAIRS_AT_ONCE].astype(np.float32)
        spectrum = (basis @ part @ basis.T)[:, rows, columns]
        # Whole numbers: what is nothing but rounding must not decide a bit.
        spectrum = np.rint(spectrum)
        bits = spectrum > np.median(spectrum, axis=1, keepdims=True)
        result[start : start + len(part)] = bits @ weights
    return result


def _cosines() -> Float[np.ndarray, "16 32"]:
    """The orthonormal cosine transform's first rows; no lower bit needs more."""
    frequency, place = np.arange(SIDE // 2)[:, None], np.arange(SIDE)
    basis = np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE))
    basis *= np.where(frequency == 0, np.sqrt(1 / SIDE), np.sqrt(2 / SIDE))
    return basis.astype(np.float32)


def _low_frequencies() -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the 64 lowest frequencies but the mean."""
    rows, columns = np.divmod(np.arange((SIDE // 2) ** 2), SIDE // 2)
    lowest = np.argsort(rows**2 + columns**2, kind="stable")[1 : BITS + 1]
    return rows[lowest], columns[lowest]


def is_blank(thumbnails: UInt8[np.ndarray, "n 32 32"]) -> np.ndarray:
    """Bool [n]: whether a picture is of one shade, so that its hash means nothing."""
    blank = np.empty(len(thumbnails), bool)
    for start in range(0, len(thumbnails), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        blank[part] = thumbnails[part].std(axis=(1, 2), dtype=np.float32) < BLANK
    return blank


def near(
    values: UInt64[np.ndarray, " n"], distance: int, most: int = 500_000
) -> tuple[Int[np.ndarray, "m 2"], int]:
    """All pairs of hashes that differ in at most `distance` bits.

    Two hashes that differ in d bits agree on one of any d + 1 bands of bits; so within
    each band only those that agree on it are compared. Where very many agree, each is
    compared with the next 1,024 in order of the hash, and when `most` pairs are found
    the search ends: time and memory are bounded whatever the data.

    Args:
      values: [n] hashes.
      distance: 0 to 63.
      most: see above; slightly more may be returned.

    Returns:
      (pairs, left out): each pair once, the smaller index first, in order; and how many
      comparisons were left out, counted in each band.
    """
    found, number, left_out = [np.empty(0, np.int64)], 0, 0
    for band in _bands(distance + 1):
        key = values & band
        order = np.lexsort((values, key))
        key, ordered = key[order], values[order]
        agreeing = np.unique(key, return_counts=True)[1].astype(np.int64)
        left_out += int((agreeing * (agreeing - 1) // 2).sum())
        # An entry whose key differs from that `step` later differs from all later ones.
        first = np.arange(len(values))
        for step in range(1, min(_COMPARED, len(values) - 1) + 1):
            first = first[: np.searchsorted(first, len(values) - step)]
            first = first[key[first] == key[first + step]]
            if not len(first) or number >= most:
                break
            left_out -= len(first)
            apart = np.bitwise_count(ordered[first] ^ ordered[first + step])
            close = first[apart <= distance]
            a, b = order[close], order[close + step]
            found.append(np.minimum(a, b) * len(values) + np.maximum(a, b))
            number += len(close)
    pairs = np.divmod(np.unique(np.concatenate(found)), max(len(values), 1))
    return np.stack(pairs, axis=1), left_out


def _bands(count: int) -> list[np.uint64]:
    """Masks that share the bits out, frequencies of every height to each."""
    masks = [
        sum(1 << bit for bit in range(start, BITS, count)) for start in range(count)
    ]
    return [np.uint64(mask) for mask in masks]


def correlation(
    thumbnails: UInt8[np.ndarray, "n 32 32"], pairs: Int[np.ndarray, "m 2"]
) -> Float[np.ndarray, " m"]:
    """How alike the pictures of each pair are: Pearson's correlation, in -1..1.

    It does not change with brightness or contrast. A blank picture has 0 with all.

    Args:
      thumbnails: [n, 32, 32], grey.
      pairs: [m, 2] indices.
    """
    result = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        part = pairs[start : start + _PAIRS_AT_ONCE]
        both = thumbnails[part].reshape(len(part), 2, -1).astype(np.float32)
        both -= both.mean(axis=2, keepdims=True)
        lengths = np.linalg.norm(both, axis=2)
        product = np.einsum("mp,mp->m", both[:, 0], both[:, 1])
        scale = lengths[:, 0] * lengths[:, 1]
        result[start : start + len(part)] = np.where(
            scale > 0, product / np.maximum(scale, 1e-12), 0.0
        )
    return result
