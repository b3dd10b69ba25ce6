"""Slow float64 numpy versions of the formulas, written for reading, not for speed."""

import itertools

import numpy as np


def retrieval_metrics(ranked_relevant, count, recall_at):
    """Recall@K for each K, R-precision and MAP@R of one ranking.

    ranked_relevant: [n] bool, the gallery from nearest to farthest; count: R.
    """
    ranked = np.asarray(ranked_relevant, np.float64)
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return np.array(
        [
            *(float(ranked[:k].any()) for k in recall_at),
            ranked[:count].sum() / count,
            (precision * ranked)[:count].sum() / count,
        ]
    )


def retrieval_values(queries, labels, gallery, gallery_labels, own_index, recall_at):
    """[q, metrics] by a full sort of every row, NaN where R = 0; ignores ties."""
    similarities = queries.astype(np.float64) @ gallery.astype(np.float64).T
    values = np.full((len(queries), len(recall_at) + 2), np.nan)
    for query, row in enumerate(similarities):
        others = np.delete(np.arange(len(gallery)), own_index[query : query + 1])
        if own_index[query] < 0:
            others = np.arange(len(gallery))
        others = others[np.argsort(-row[others], kind="stable")]
        relevant = gallery_labels[others] == labels[query]
        if relevant.any():
            values[query] = retrieval_metrics(relevant, relevant.sum(), recall_at)
    return values


def retrieval_expected(similarities, relevant, recall_at):
    """(mean over all orders of the gallery, whether any order differs) of one query.

    similarities: [n] with few rows: every one of the n! orders is ranked stably, which
    puts ties in every order equally often.
    """
    values = np.array(
        [
            retrieval_metrics(
                relevant[order][np.argsort(-similarities[order], kind="stable")],
                relevant.sum(),
                recall_at,
            )
            for order in map(np.array, itertools.permutations(range(len(similarities))))
        ]
    )
    return values.mean(axis=0), bool(np.ptp(values, axis=0).max() > 1e-12)


# --- models -------------------------------------------------------------------------


def l2_normalize(vectors):
    """Every vector along the last axis, to unit length."""
    return vectors / np.sqrt(np.sum(vectors**2, axis=-1, keepdims=True))


def generalized_mean(features, p):
    """[b, h, w, c] to [b, c], one channel of one image at a time; p may be infinite."""
    features = np.asarray(features, np.float64)
    pooled = np.empty((features.shape[0], features.shape[3]))
    for image in range(pooled.shape[0]):
        for channel in range(pooled.shape[1]):
            values = features[image, :, :, channel].ravel()
            if np.isinf(p):
                pooled[image, channel] = max(values)
            else:
                pooled[image, channel] = np.mean(values**p) ** (1 / p)
    return pooled


def cgd(features, descriptors, weights, architecture="C", combine="concat", p=3.0):
    """CGD's embedding and the branches it is made of (none for architecture B).

    `weights` are the linear maps [c, k] in the order of `descriptors`; for B one map
    [n c, dim].
    """
    exponents = {"S": 1.0, "M": np.inf, "G": p}
    raw = [generalized_mean(features, exponents[letter]) for letter in descriptors]
    if architecture == "B":
        return l2_normalize(np.concatenate(raw, axis=1) @ weights[0]), None
    branches = [l2_normalize(f @ w) for f, w in zip(raw, weights, strict=True)]
    if combine == "sum":
        return l2_normalize(np.sum(branches, axis=0)), branches
    return l2_normalize(np.concatenate(branches, axis=1)), branches


def convolve(images, kernel, strides=1, padding=0):
    """Cross-correlation of [b, h, w, c] with [k, k, c, o]."""
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    images = np.pad(np.asarray(images, np.float64), sides)
    side = kernel.shape[0]
    height = (images.shape[1] - side) // strides + 1
    width = (images.shape[2] - side) // strides + 1
    result = np.zeros((len(images), height, width, kernel.shape[3]))
    for row in range(height):
        for column in range(width):
            top, left = row * strides, column * strides
            window = images[:, top : top + side, left : left + side]
            result[:, row, column] = np.tensordot(window, kernel, axes=3)
    return result


def max_pool(images, window, stride, padding=0):
    """The largest value in every window of [b, h, w, c]."""
    sides = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    images = np.pad(np.asarray(images, np.float64), sides, constant_values=-np.inf)
    height = (images.shape[1] - window) // stride + 1
    width = (images.shape[2] - window) // stride + 1
    result = np.empty((len(images), height, width, images.shape[3]))
    for row in range(height):
        for column in range(width):
            top, left = row * stride, column * stride
            patch = images[:, top : top + window, left : left + window]
            result[:, row, column] = patch.max(axis=(1, 2))
    return result


def batch_norm(features, scale, bias, mean, variance, epsilon=1e-5):
    """Normalisation over the last axis by the statistics given."""
    return (features - mean) / np.sqrt(variance + epsilon) * scale + bias


def resnet(images, variables, depth, last_stride):
    """ResNet's last feature map, v1.5, with running averages."""
    parameters, statistics = variables["params"], variables["batch_stats"]

    def conv_norm(x, path, conv, norm, strides, padding):
        of = parameters[path] if path else parameters
        averages = statistics[path] if path else statistics
        x = convolve(x, of[conv]["kernel"], strides, padding)
        return batch_norm(
            x,
            of[norm]["scale"],
            of[norm]["bias"],
            averages[norm]["mean"],
            averages[norm]["var"],
        )

    x = np.maximum(conv_norm(images, None, "conv1", "bn1", 2, 3), 0)
    x = max_pool(x, 3, 2, 1)
    blocks = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth]
    for stage, first_stride in zip(range(4), (1, 2, 2, last_stride), strict=True):
        for index in range(blocks[stage]):
            path = f"layer{stage + 1}_{index}"
            stride = first_stride if index == 0 else 1
            if depth == 18:
                branch = conv_norm(x, path, "conv1", "bn1", stride, 1)
                branch = conv_norm(np.maximum(branch, 0), path, "conv2", "bn2", 1, 1)
            else:
                branch = conv_norm(x, path, "conv1", "bn1", 1, 0)
                branch = np.maximum(branch, 0)
                branch = conv_norm(branch, path, "conv2", "bn2", stride, 1)
                branch = conv_norm(np.maximum(branch, 0), path, "conv3", "bn3", 1, 0)
            if "downsample_conv" in parameters[path]:
                x = conv_norm(x, path, "downsample_conv", "downsample_bn", stride, 0)
            x = np.maximum(branch + x, 0)
    return x


# --- losses -------------------------------------------------------------------------


def gradient(function, point, step=1e-6):
    """Central differences of a scalar function of one float64 array."""
    point = np.asarray(point, np.float64)
    slopes = np.empty(point.shape)
    for index in np.ndindex(point.shape):
        offset = np.zeros(point.shape)
        offset[index] = step
        slopes[index] = (function(point + offset) - function(point - offset)) / 2 / step
    return slopes


def distances(anchors, references):
    """Euclidean distances [b, n], from the differences of the vectors."""
    anchors, references = (np.asarray(x, np.float64) for x in (anchors, references))
    gaps = anchors[:, None, :] - references[None, :, :]
    return np.sqrt((gaps**2).sum(axis=-1))


def mean_over_anchors(anchor, rows, labels, others=None):
    """Mean of anchor(values of positives, values of negatives), skipping None.

    rows: [b, n]; others: labels of the references, or None where they are the anchors.
    """
    values = []
    for index, row in enumerate(rows):
        same = labels[index] == (labels if others is None else others)
        positives = same.copy()
        if others is None:
            positives[index] = False
        value = anchor(row[positives], row[~same])
        if value is not None:
            values.append(value)
    return np.mean(values) if values else 0.0


def triplet(
    embeddings,
    labels,
    margin=0.1,
    squared=False,
    soft=False,
    references=None,
    reference_labels=None,
):
    """Batch-hard triplet loss, one anchor at a time."""
    rows = distances(embeddings, embeddings if references is None else references)
    rows = rows**2 if squared else rows

    def anchor(positives, negatives):
        if not len(positives) or not len(negatives):
            return None
        gap = max(positives) - min(negatives)
        return np.log1p(np.exp(gap)) if soft else max(gap + margin, 0.0)

    return mean_over_anchors(anchor, rows, labels, reference_labels)


def softmax_cross_entropy(logits, labels, temperature=1.0, label_smoothing=0.0):
    """One image at a time; the smoothed target is spread over all classes."""
    total = 0.0
    for scores, label in zip(np.asarray(logits, np.float64), labels, strict=True):
        scores = scores / temperature
        logs = scores - np.max(scores)
        logs = logs - np.log(np.exp(logs).sum())
        target = np.full(len(scores), label_smoothing / len(scores))
        target[label] += 1 - label_smoothing
        total -= (target * logs).sum()
    return total / len(labels)


def pair_statistics(embeddings, labels, margin):
    """positive_distance, negative_distance, active: see objectives.pair_statistics."""
    rows = distances(embeddings, embeddings)

    def active(positives, negatives):
        if not len(positives) or not len(negatives):
            return None
        return float(max(positives) - min(negatives) + margin > 0)

    return {
        "positive_distance": mean_over_anchors(
            lambda positives, _: np.mean(positives) if len(positives) else None,
            rows,
            labels,
        ),
        "negative_distance": mean_over_anchors(
            lambda _, negatives: np.mean(negatives) if len(negatives) else None,
            rows,
            labels,
        ),
        "active": mean_over_anchors(active, rows, labels),
    }
