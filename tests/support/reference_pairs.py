"""Pair losses in slow float64 numpy, one pair or triplet at a time.

Each takes the anchors x [b, d], their labels y, the references z [n, d] with labels w,
and `skip(i, j)`: whether the reference j must not stand beside the anchor i.
"""

import numpy as np


def sets(i, y, w, skip):
    """Positives and negatives of the anchor i, as lists of indices."""
    others = [j for j in range(len(w)) if not skip(i, j)]
    return (
        [j for j in others if w[j] == y[i]],
        [j for j in others if w[j] != y[i]],
    )


def distance(a, b):
    return np.sqrt(np.sum((a - b) ** 2))


def softplus(value):
    return np.logaddexp(0.0, value)


def contrastive(x, y, z, w, skip, margin=1.0, squared=True, reduction="mean"):
    together, apart = [], []
    for i in range(len(y)):
        positives, negatives = sets(i, y, w, skip)
        power = 2 if squared else 1
        together += [distance(x[i], z[j]) ** power for j in positives]
        apart += [max(margin - distance(x[i], z[j]) ** power, 0) for j in negatives]
    if reduction == "mean":
        return np.mean(together + apart)
    parts = [[value for value in part if value > 0] for part in (together, apart)]
    return sum(np.mean(part) if part else 0.0 for part in parts)


def triplet(x, y, z, w, skip, margin=0.1, mining="all", squared=False):
    values = []
    power = 2 if squared else 1
    for i in range(len(y)):
        positives, negatives = sets(i, y, w, skip)
        for j in positives:
            for k in negatives:
                far = distance(x[i], z[j]) ** power
                near = distance(x[i], z[k]) ** power
                value = far - near + margin
                inside = value > 0 if mining == "all" else 0 < near - far <= margin
                if inside:
                    values.append(value)
    return np.mean(values) if values else 0.0


def batch_hard(x, y, z, w, skip, margin=0.1, squared=False, soft=False):
    values = []
    power = 2 if squared else 1
    for i in range(len(y)):
        positives, negatives = sets(i, y, w, skip)
        if positives and negatives:
            gap = max(distance(x[i], z[j]) ** power for j in positives)
            gap -= min(distance(x[i], z[k]) ** power for k in negatives)
            values.append(softplus(gap) if soft else max(gap + margin, 0.0))
    return np.mean(values) if values else 0.0


def lifted_structure(x, y, z, w, skip, margin=1.0):
    own = skip(0, 0)
    total, count = 0.0, 0
    for i in range(len(y)):
        positives, negatives = sets(i, y, w, skip)
        for j in positives:
            count += 1
            if own:
                beside = [distance(z[j], z[k]) for k in sets(j, y, w, skip)[1]]
            else:
                beside = [distance(z[j], x[k]) for k in range(len(y)) if y[k] != w[j]]
            reach = [distance(x[i], z[k]) for k in negatives] + beside
            if reach:
                exponents = margin - np.array(reach)
                cost = np.log(np.exp(exponents).sum()) + distance(x[i], z[j])
                total += max(cost, 0.0) ** 2
    return total / (2 * count) if count else 0.0


def multi_similarity(x, y, z, w, skip, alpha=2.0, beta=50.0, base=0.5, epsilon=0.1):
    total = 0.0
    for i in range(len(y)):
        positives, negatives = sets(i, y, w, skip)
        if not positives or not negatives:
            continue
        near = np.array([x[i] @ z[j] for j in positives])
        far = np.array([x[i] @ z[k] for k in negatives])
        kept, pushed = near[near < far.max() + epsilon], far[far > near.min() - epsilon]
        if len(kept) and len(pushed):
            total += np.log(1 + np.exp(-alpha * (kept - base)).sum()) / alpha
            total += np.log(1 + np.exp(beta * (pushed - base)).sum()) / beta
    return total / len(y)
