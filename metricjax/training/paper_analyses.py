"""The papers' analyses of a trained run: what its report shows beside the metrics.

Which there are depends on the run: descriptors are mapped for CGD, learners compared
for ensembles, masks shown for ABE, distances for embedding expansion, groups of classes
for hierarchical proxies. Each takes some test images, or the proxies, and a moment.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from metricjax.data import transforms
from metricjax.data.datasets import Split, UnreadableImage
from metricjax.inference.embedder import Embedded
from metricjax.inference.evaluate_split import some_classes
from metricjax.losses import embedding_expansion
from metricjax.models import cgd, pooling
from metricjax.models.embedder import ModelConfig
from metricjax.reports import studies
from metricjax.reports.studies import Study
from metricjax.training.run import Run

# Images that are looked into, images whose similarities are counted, classes whose
# distances are drawn, proxies in the plane.
_LOOKED_INTO, _COMPARED, _DRAWN, _IN_PLANE = 4, 2000, 32, 2000
_BINS = 80
# Groups of classes in the report, and classes of each.
_GROUPS, _MEMBERS = 12, 10


def of_run(
    run: Run,
    variables: Any,
    proxies: Mapping[str, Any],
    carried: Mapping[str, Any],
    trained: Embedded,
    queries: np.ndarray,
    results: Mapping[str, Any],
) -> list[Study]:
    """All analyses that a run's model and objective have.

    Args:
      run: what was trained, and the images.
      variables: of the model as it is judged, on the host like the next two.
      proxies, carried: what the losses have learnt and carry along, see
        `objectives.Losses`.
      trained: the test images, embedded.
      queries: test images to look into; the first few are.
      results: `recall@1` and, of an ensemble, `learners`.
    """
    config, test = run.config, run.dataset.test
    found = []
    images = _images(test, run.transform, queries)
    if len(images):
        found += _looks(
            config.model, run.programs.model, variables, images, run.transform
        )
    if "learners" in results:
        each = results["learners"]["recall@1"]
        some = some_classes(trained.valid, test, config.seed, _COMPARED)
        rows, labels = trained.embeddings[some], test.labels[some]
        counts = learner_similarities(rows, labels, learners=len(each))
        found.append(studies.similarities(np.linspace(-1, 1, _BINS + 1), counts))
        found.append(studies.recalls(each, results["recall@1"]))
    for name, _, _, options in config.objective.losses():
        if name.startswith("ee_"):
            found += _expanded(trained, test, config.seed, name, options)
    if config.objective.hierarchy:
        found += _grouped(proxies, carried, run)
    return found


def position_shares(
    letter: str, features: Float[Array, "b h w c"], gem_p: float | Array = 3.0
) -> Float[Array, "b h w"]:
    """What part of a global descriptor comes from each position of the map.

    SPoC, MAC, GeM and sums and weightings of them grow with the map in proportion, so
    that by Euler `f_c = sum_i x_ic df_c/dx_ic`. The share of position i in the squared
    length is `a_i = sum_c f_c x_ic df_c/dx_ic / |f|^2`, and the shares add up to 1.

    Args:
      letter: of `cgd.DESCRIPTORS`, but R, whose regions are of unit length.
      features: the feature map.
      gem_p: GeM's exponent.
    """
    features = features.astype(jnp.float32)

    def half_squared(features):
        return 0.5 * jnp.sum(jnp.square(cgd.describe(letter, features, gem_p)))

    squares = jnp.sum(jnp.square(cgd.describe(letter, features, gem_p)), axis=1)
    parts = jnp.sum(features * jax.grad(half_squared)(features), axis=-1)
    return parts / jnp.maximum(squares, 1e-12)[:, None, None]


def learner_similarities(
    embeddings: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], learners: int
) -> dict[str, Int[np.ndarray, "m bins"]]:
    """Pairs of embeddings by their cosine similarity, for each learner.

    Args:
      embeddings: the learners' side by side, all of one length.
      labels: classes.
      learners: m.

    Returns:
      Counts in equal bins over -1..1: "self", two learners' embeddings of one image;
      "positive" and "negative", one learner's of two images.
    """
    rows = embeddings.reshape(len(embeddings), learners, -1).astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=2, keepdims=True), 1e-12)
    same = labels[:, None] == labels
    later = np.triu(np.ones_like(same), 1)
    counts = {"self": [], "positive": [], "negative": []}
    for learner in range(learners):
        others = np.delete(rows, learner, axis=1)
        own = rows[:, learner]
        pairs = own @ own.T
        counts["self"].append(_binned(np.einsum("nd,nmd->nm", own, others)))
        counts["positive"].append(_binned(pairs[same & later]))
        counts["negative"].append(_binned(pairs[~same & later]))
    return {kind: np.stack(found) for kind, found in counts.items()}


def _binned(values):
    return np.histogram(np.clip(values, -1, 1), bins=_BINS, range=(-1, 1))[0]


def shortest_distances(
    embeddings: Float[np.ndarray, "n 2 d"], points: int, normalize: bool = True
) -> Float[np.ndarray, "n n"]:
    """Shortest distance between two classes, each a pair of images.

    Args:
      embeddings: of unit length.
      points: between the images of a pair that count beside them.
      normalize: whether the points are of unit length.

    Returns:
      Euclidean distances; NaN on the diagonal.
    """
    count, _, dim = embeddings.shape
    flat = jnp.asarray(embeddings.reshape(-1, dim))
    labels = np.repeat(np.arange(count), 2)
    made = embedding_expansion.synthesize(
        flat, labels, points=points, normalize=normalize
    )
    every = np.concatenate([embeddings, np.asarray(made)[::2]], axis=1)
    every = every.reshape(-1, dim).astype(np.float64)
    squares = np.sum(every**2, axis=1)
    distances = squares[:, None] + squares - 2 * every @ every.T
    blocks = distances.reshape(count, points + 2, count, points + 2)
    shortest = np.sqrt(np.maximum(blocks.min(axis=(1, 3)), 0))
    np.fill_diagonal(shortest, np.nan)
    return shortest


def _images(split, transform, indices) -> np.ndarray:
    """The first images that can be read, as the network sees them, uint8."""
    found = []
    for index in indices:
        if len(found) == _LOOKED_INTO:
            break
        try:
            found.append(transform.prepare_test(split.read(index)))
        except UnreadableImage:
            continue
    return np.stack(found) if found else np.zeros((0,))


def _looks(config: ModelConfig, model, variables, images, transform) -> list[Study]:
    """Where the model looks: shares of its descriptors, masks of its learners."""
    normalized = transforms.normalize(jnp.asarray(images), transform.config)
    output, aside = jax.jit(
        lambda variables, images: model.apply(
            variables, images, train=False, mutable=["intermediates"]
        )
    )(variables, normalized)
    features = output.features
    if config.head != "cgd":
        found = [_masks(images, aside["intermediates"])] if config.head == "abe" else []
        each = {
            f"learner {number + 1}": np.asarray(
                position_shares("S", features[:, number])
            )
            for number in range(features.shape[1])
        }
        return found + _shares(images, each)
    params = variables["params"]
    maps = {}
    for letter in config.descriptors.replace("R", ""):
        learnt = params.get(cgd.GEM_NAMES.get(letter))
        p = pooling.GeM.exponent(learnt) if learnt else config.gem_p
        name = cgd.DESCRIPTORS[letter].split(",")[0]
        maps[name] = np.asarray(position_shares(letter, features, p))
    return _shares(images, maps)


def _shares(images, maps) -> list[Study]:
    """Nothing where the map is a single position."""
    one = any(values[0].size == 1 for values in maps.values())
    return [] if one or not maps else [studies.shares(images, maps)]


def _masks(images, aside) -> Study:
    (masks,) = aside["masks"]  # [b, m, h, w, c]
    masks = np.asarray(masks, np.float32)
    differences = masks.std(axis=1).mean(axis=(0, 1, 2))
    channels = np.argsort(-differences, kind="stable")[:2].tolist()
    return studies.masks(
        images, masks.mean(axis=-1), {one: masks[..., one] for one in channels}
    )


def _expanded(embedded: Embedded, split: Split, seed: int, name, options) -> list:
    """Of some test classes with two images; none where there are not two such."""
    pairs = []
    for label in np.random.default_rng(seed).permutation(split.num_classes):
        rows = np.flatnonzero(embedded.valid & (split.labels == label))[:2]
        if len(rows) == 2:
            pairs.append(embedded.embeddings[rows])
        if len(pairs) == _DRAWN:
            break
    if len(pairs) < 2 or not options["points"]:
        return []
    found = [
        shortest_distances(np.stack(pairs), points, options["normalize"])
        for points in (0, options["points"])
    ]
    return [studies.expansion(*found, options["points"], name)]


def _grouped(proxies, carried, run: Run) -> list[Study]:
    """The lowest level of groups; none where training ended before they were made."""
    train, name = run.train, "hierarchical_proxy"
    fine, coarse = proxies[name]["fine"], proxies[name].get("coarse1")
    if not carried[name]["active"]:
        return []
    parent, *above = (
        carried[name][f"parent{level}"]
        for level in range(1, len(run.config.objective.hierarchy.level_weights))
    )
    rng = np.random.default_rng(run.config.seed)
    some = np.sort(rng.permutation(len(fine))[:_IN_PLANE])
    places = _in_plane(fine[some], coarse)
    sizes = np.bincount(parent)
    groups = []
    for group in np.argsort(-sizes, kind="stable")[:_GROUPS]:
        labels = np.flatnonzero(parent == group)
        title = f"Group {group + 1}: {len(labels)} classes" + "".join(
            f", in group {level[labels[0]] + 1} of level {number}"
            for number, level in enumerate(above, 2)
        )
        members = []
        for label in labels[:_MEMBERS]:
            images = _first_image(train, run.transform, label)
            members += [(train.class_names[label], image) for image in images]
        groups.append((title, members))
    names = [train.class_names[label] for label in some]
    stars = None if places is None or coarse is None else places[len(some) :]
    places = None if places is None else places[: len(some)]
    return [studies.proxies(places, stars, parent[some], names, groups)]


def _first_image(split, transform, label) -> list[np.ndarray]:
    """One image of a class, none where the first cannot be read."""
    index = int(np.argmax(split.labels == label))
    try:
        return [transform.prepare_test(split.read(index))]
    except UnreadableImage:
        return []


def _in_plane(fine, coarse) -> Float[np.ndarray, "n 2"] | None:
    """t-SNE of the proxies made unit, fine and coarse; None without scikit-learn."""
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        return None
    rows = fine if coarse is None else np.concatenate([fine, coarse])
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    if len(rows) < 4:
        return None
    perplexity = min(30.0, (len(rows) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(rows)
