"""Slow float64 numpy versions of the proxy and ensemble losses, one term at a time."""

import numpy as np
import reference


def proxy_nca(
    embeddings, labels, proxies, temperature=1 / 9, include_positive=True, margin=0.0
):
    """Squared Euclidean distances to unit proxies, one image at a time."""
    proxies = reference.l2_normalize(np.asarray(proxies, np.float64))
    total = 0.0
    for embedding, label in zip(embeddings, labels, strict=True):
        # Twice a margin of similarity is one of squared distance.
        moved = 2.0 * margin * (np.arange(len(proxies)) == label)
        squares = ((embedding - proxies) ** 2).sum(axis=1) + moved
        closeness = np.exp(-squares / temperature)
        compared = closeness.sum() - (0.0 if include_positive else closeness[label])
        total -= np.log(closeness[label] / compared)
    return total / len(labels)


def proxy_anchor(embeddings, labels, proxies, margin=0.1, scale=32.0):
    """Proxy-Anchor, one proxy at a time."""
    proxies = reference.l2_normalize(np.asarray(proxies, np.float64))
    pull, present, push = 0.0, 0, 0.0
    for name, proxy in enumerate(proxies):
        similarities = np.asarray(embeddings, np.float64) @ proxy
        own = np.asarray(labels) == name
        if own.any():
            present += 1
            pull += np.log1p(np.exp(-scale * (similarities[own] - margin)).sum())
        push += np.log1p(np.exp(scale * (similarities[~own] + margin)).sum())
    return pull / max(present, 1) + push / len(proxies)


def hierarchical_proxy(embeddings, labels, levels, weights, loss):
    """levels: pairs (proxies, parent)."""
    return sum(
        weight * loss(embeddings, parent[labels], proxies)
        for weight, (proxies, parent) in zip(weights, levels, strict=True)
    )


def group_means(proxies, parent):
    """Unit mean of the unit proxies of each group, one group at a time."""
    proxies = reference.l2_normalize(np.asarray(proxies, np.float64))
    means = [proxies[parent == group].mean(axis=0) for group in range(max(parent) + 1)]
    return reference.l2_normalize(np.stack(means))


def divergence(learners, margin=1.0, reduction="sum_pairs"):
    """One pair of learners of one image at a time."""
    learners = np.asarray(learners, np.float64)
    totals, pairs = [], 0
    for image in learners:
        terms = [
            max(0.0, margin - ((image[p] - image[q]) ** 2).sum())
            for p in range(len(image))
            for q in range(p)
        ]
        pairs = len(terms)
        totals.append(sum(terms))
    scale = max(pairs, 1) if reduction == "mean_pairs" else 1
    return np.mean(totals) / scale
