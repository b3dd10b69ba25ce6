"""N-pair loss and embedding expansion in slow float64 numpy, one term at a time."""

import itertools

import numpy as np


def n_pair(x, y, l2_weight=0.0, z=None, w=None, mask=None):
    """The batch x [b, d] of classes y; references z [n, d] of classes w, or the batch.

    mask: [n], False where a reference must not be taken as a positive.
    """
    own = z is None
    z, w = (x, y) if own else (z, w)
    anchors, positives = [], []
    for label in dict.fromkeys(y.tolist()):
        first = int(np.flatnonzero(y == label)[0])
        for j in range(len(w)):
            allowed = mask is None or mask[j]
            if w[j] == label and allowed and not (own and j == first):
                anchors.append(x[first])
                positives.append(z[j])
                break
    if not anchors:
        return 0.0
    total = 0.0
    for i, anchor in enumerate(anchors):
        gaps = [anchor @ positive - anchor @ positives[i] for positive in positives]
        total += np.logaddexp.reduce(gaps)  # the anchor's own gap is the 1
    lengths = sum(v @ v for v in [*anchors, *positives]) / (2 * len(anchors))
    return total / len(anchors) + l2_weight * lengths


# --- embedding expansion: rows (2t, 2t + 1) of x [b, d] are pairs ---------------------


def unit(v):
    return v / np.sqrt(v @ v + 1e-12)


def synthesize(x, points=2, normalize=True):
    """[b, points, d], one point at a time."""
    made = np.zeros((len(x), points, x.shape[1]))
    for i, k in itertools.product(range(len(x)), range(1, points + 1)):
        partner = x[i + 1 if i % 2 == 0 else i - 1]
        point = (k * partner + (points + 1 - k) * x[i]) / (points + 1)
        made[i, k - 1] = unit(point) if normalize else point
    return made


def squared_distance(u, v):
    return np.sum((u - v) ** 2)


def _best(us, vs, measure, choose):
    return choose(measure(u, v) for u in us for v in vs)


def _pairs(x, y, points, normalize, measure, choose):
    """For every pair: the measure of its images, and the best to each negative pair."""
    made = synthesize(x, points, normalize)
    starts = range(0, len(x), 2)
    segments = {t: [x[t], x[t + 1], *made[t]] for t in starts}
    return [
        (
            measure(x[t], x[t + 1]),
            [
                _best(segments[t], segments[other], measure, choose)
                for other in starts
                if y[other] != y[t]
            ],
        )
        for t in starts
    ]


def triplet(x, y, points=2, margin=0.1, normalize=True):
    pairs = _pairs(x, y, points, normalize, squared_distance, min)
    costs = [max(own - d + margin, 0) for own, best in pairs for d in best]
    return np.mean(costs) if costs else 0.0


def n_pair_expanded(x, y, points=2, l2_weight=0.0, normalize=False):
    pairs = _pairs(x, y, points, normalize, np.dot, max)
    costs = [np.log1p(sum(np.exp(s - own) for s in best)) for own, best in pairs]
    return np.mean(costs) + l2_weight * np.mean([v @ v for v in x])


def lifted_structure(x, y, points=2, margin=1.0, normalize=True):
    total = 0.0
    pairs = _pairs(x, y, points, normalize, squared_distance, min)
    for own, best in pairs:
        if best:
            push = np.log(sum(np.exp(margin - np.sqrt(d)) for d in best))
            total += max(push + np.sqrt(own), 0) ** 2
    return total / (2 * len(pairs))


def multi_similarity(
    x, y, points=2, alpha=2.0, beta=50.0, base=0.5, normalize=True
):  # fmt: skip
    total = 0.0
    pairs = _pairs(x, y, points, normalize, np.dot, max)
    for own, best in pairs:
        if best:
            total += np.log1p(np.exp(-alpha * (own - base))) / alpha
            total += np.log1p(sum(np.exp(beta * (s - base)) for s in best)) / beta
    return total / len(pairs)


def hphn_triplet(x, y, points=2, margin=1e-5, soft=False, normalize=True):
    """Every image with its own points on one side; nothing of its partner's."""
    made = synthesize(x, points, normalize)
    costs = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if y[j] != y[i]]
        if not others:
            continue
        far = max(squared_distance(x[i], x[j]) for j in range(len(x)) if y[j] == y[i])
        theirs = [v for j in others for v in [x[j], *made[j]]]
        near = _best([x[i], *made[i]], theirs, squared_distance, min)
        gap = np.sqrt(far) - np.sqrt(near)
        costs.append(np.logaddexp(0, gap) if soft else max(gap + margin, 0))
    return np.mean(costs) if costs else 0.0
