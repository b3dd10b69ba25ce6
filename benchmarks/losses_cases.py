"""What the loss benchmark measures: the cases, their inputs and who competes."""

from dataclasses import dataclass

import numpy as np

DIM = 512
PER_CLASS = 4
LEARNERS = 8
GROUPS = 100  # coarse proxies of the hierarchy
TEMPERATURE = 0.05  # of the softmax


@dataclass(frozen=True)
class Case:
    """One loss with its options.

    Attributes:
      name: as on the command line.
      loss: of which the rivals' modules have a version.
      classes: rows of the proxies or the classifier; None for losses without.
      points: synthetic points of embedding expansion; None for other losses.
    """

    name: str
    loss: str
    classes: int | None = None
    points: int | None = None

    def products(self, batch):
        """(rows, columns) of the matrix of products that the loss looks at, or None.

        Divergence looks at 8 x 8 products for each image, and is bound by memory;
        embedding expansion at the products of the images alone.
        """
        if self.loss == "divergence" or self.loss == "expansion_synthesize":
            return None
        if self.loss == "n_pair":
            return batch // PER_CLASS, batch // PER_CLASS
        if self.loss == "hierarchical_proxy":
            return batch, self.classes + GROUPS
        return batch, self.classes or batch


PAIRS = [
    "contrastive", "contrastive_nonzero", "triplet_hard", "triplet_soft",
    "triplet_all", "triplet_semihard", "n_pair", "lifted_structure",
    "multi_similarity",
]  # fmt: skip
PROXIES = ["proxy_nca", "proxy_anchor", "softmax_cross_entropy"]
EXPANSION = ["triplet", "hphn_triplet", "n_pair", "lifted_structure"]
EXPANSION += ["multi_similarity", "synthesize"]

CASES = {
    case.name: case
    for case in [
        *(Case(name, name) for name in PAIRS),
        *(
            Case(f"{name}_{c}", name, classes=c)
            for name in PROXIES
            for c in (100, 11318)
        ),
        Case("hierarchical_proxy_11318", "hierarchical_proxy", classes=11318),
        Case("divergence", "divergence"),
        *(
            Case(f"expansion_{name}_{n}", f"expansion_{name}", points=n)
            for name in EXPANSION
            for n in (2, 8)
        ),
    ]
}
MAIN = [name for name, case in CASES.items() if case.points is None]
EXPANDED = [name for name, case in CASES.items() if case.points is not None]
LARGE = ["triplet_hard", "multi_similarity"]

# variant -> (module, way); the program of a worker is the same for all.
VARIANTS = {
    "pml": ("losses_pml", "eager"),
    "eager": ("losses_torch", "eager"),
    "compile": ("losses_torch", "compile"),
    "ours": ("losses_ours", "float32"),
    "bf16": ("losses_ours", "bfloat16"),
    "gram_eager": ("losses_torch", "gram_eager"),
    "gram_compile": ("losses_torch", "gram_compile"),
}
TORCH = ("eager", "compile", "gram_eager", "gram_compile")


def variants(case):
    """Who competes in a case; who has no such loss does not."""
    if case.points is not None:
        names = ["eager", "compile", "gram_eager", "gram_compile", "ours", "bf16"]
        if case.loss == "expansion_synthesize":
            return ["eager", "compile", "ours"]
        return names
    if case.loss == "divergence":
        return ["eager", "compile", "ours"]
    if case.loss == "softmax_cross_entropy":
        return ["pml", "eager", "compile", "ours"]
    return ["pml", "eager", "compile", "ours", "bf16"]


def block_size(case, batch, override=None, device="cpu"):
    """Images of a block of ours; None, all at once, where that is a small matrix.

    Larger blocks are matrix products at full speed, smaller ones stay in a processor's
    caches; a GPU, which has none to stay in, gets blocks for the sake of memory alone.
    """
    if override is not None:
        return override or None
    if device != "cpu":
        return None if batch <= 8192 else 4096
    if batch <= 512 or batch * (case.classes or batch) <= 2**20:
        return None
    return 256 if batch <= 2048 else 512


@dataclass(frozen=True)
class Inputs:
    """Arrays of one case.

    Attributes:
      leaves: what the gradient is with respect to; the embeddings, then proxies.
      labels: [b].
      parent: coarse proxy of every class, for the hierarchy.
    """

    leaves: list[np.ndarray]
    labels: np.ndarray
    parent: np.ndarray | None = None


def inputs(case, batch, seed=0):
    """Embeddings in clusters that overlap, so that every term of a loss is at work.

    Unit vectors, `PER_CLASS` of a class and in no order of the classes; for 100 classes
    as many of each as the batch gives; for embedding expansion pairs in rows (2t, 2t +
    1). For N-pair, which is meant for free lengths, 4 long.
    """
    generator = np.random.default_rng(seed)
    if case.points is not None:
        labels = np.repeat(generator.permutation(batch // 2), 2)
    elif case.classes and case.classes < batch // PER_CLASS:
        labels = generator.permutation(batch) % case.classes
    else:
        count = -(-batch // PER_CLASS)
        names = generator.choice(case.classes or 10 * count, count, replace=False)
        labels = generator.permutation(np.repeat(names, PER_CLASS)[:batch])
    width, basis = 32, generator.normal(size=(32, DIM)) / np.sqrt(DIM)

    def unit(rows):
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    def cluster(centers, spread):
        latent = centers + spread * generator.normal(size=(len(centers), width))
        return unit(latent @ basis + 0.01 * generator.normal(size=(len(latent), DIM)))

    centers = generator.normal(size=(labels.max() + 1, width))
    embeddings = cluster(centers[labels], 0.7)
    leaves, parent = [embeddings], None
    if case.loss == "n_pair":
        leaves = [4 * embeddings]
    if case.loss == "divergence":
        shape = (batch, LEARNERS, DIM // LEARNERS)
        alike = embeddings[:, None, : shape[2]] * np.sqrt(LEARNERS)
        leaves = [unit(alike + 0.12 * generator.normal(size=shape))]
    if case.classes:
        more = generator.normal(size=(case.classes, width))
        more[: len(centers)] = centers
        leaves.append(cluster(more, 0.5))
    if case.loss == "hierarchical_proxy":
        parent = generator.integers(GROUPS, size=case.classes)
        leaves.append(cluster(generator.normal(size=(GROUPS, width)), 0.5))
    leaves = [leaf.astype(np.float32) for leaf in leaves]
    return Inputs(leaves, labels.astype(np.int32), parent)


def distance(case, leaves, got, wanted):
    """How far a result is from another: the largest difference over the largest entry.

    Proxies that pytorch-metric-learning makes unit together with the embeddings, and
    distances that torch takes from products of unit vectors, leave out the part of the
    gradient along the vector, which has no effect on a unit vector: there, only the
    rest is compared.

    Args:
      case: whose results they are.
      leaves: as in `Inputs`.
      got: "value" and "gradient0", "gradient1"... -> array.
      wanted: the same.
    """
    worst = 0.0
    for key in wanted:
        a, b = np.asarray(got[key]), np.asarray(wanted[key])
        if key != "value" and (case.classes or case.points is not None):
            leaf = leaves[int(key.removeprefix("gradient"))]
            a, b = _tangential(a, leaf), _tangential(b, leaf)
        apart = float(np.abs(a - b).max()) / max(float(np.abs(b).max()), 1e-30)
        worst = max(worst, apart) if apart == apart else float("inf")
    return worst


def _tangential(gradient, vectors):
    units = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return gradient - np.sum(gradient * units, axis=-1, keepdims=True) * units
