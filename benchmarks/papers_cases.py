"""What the comparisons of the four papers consist of: settings, cases, claims."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from metricjax.config import default_config, terms

# Numbers of an embedding: 1, 2, 3 and 8 parts share it equally.
DIM = 192
STEPS = 400


@dataclass(frozen=True)
class Case:
    """One way to train.

    Attributes:
      name: what the table calls it.
      settings: of the config, by dotted name, where it differs from the data set's.
      losses: of the objective, by name, with their settings.
      networks: trained apart, each of an equal part of the embedding.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    losses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    networks: int = 1


@dataclass(frozen=True)
class Claim:
    """What a paper says: `better` is above `worse`; both are names of cases."""

    better: str
    worse: str
    source: str


@dataclass(frozen=True)
class Sweep:
    """Cases along one setting: of each line, (value, name of the case)."""

    setting: str
    lines: Mapping[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Table:
    """Cases that are compared, all at equal steps, batches and embedding lengths.

    Attributes:
      start: the case of EE's table that trains the backbone with which each begins.
    """

    title: str
    cases: tuple[Case, ...]
    claims: tuple[Claim, ...]
    sweeps: tuple[Sweep, ...] = ()
    start: str | None = None

    def case(self, name: str) -> Case:
        return next(case for case in self.cases if case.name == name)


def _cgd(name, descriptors, losses, **settings):
    settings = {f"model.{key}": value for key, value in settings.items()}
    return Case(name, {"model.descriptors": descriptors, **settings}, losses)


_RANK = {"triplet": {"margin": 0.1}}
_BOTH = {**_RANK, "softmax": {"temperature": 0.5, "label_smoothing": 0.1}}


_SIMILARITY = {"multi_similarity": {}}
_CLASSIFIER = {"softmax": {"temperature": 1.0, "label_smoothing": 0.0}}


def _with_classifier(temperature, smoothing):
    softmax = {"temperature": temperature, "label_smoothing": smoothing}
    return {**_RANK, "softmax": softmax}


_CGD = Table(
    "CGD: descriptors, how they are combined, and the classifier",
    (
        *(
            _cgd(letters, letters, _BOTH)
            for letters in ("S", "M", "G", "SM", "SG", "MG", "SMG")
        ),
        _cgd("SG, A", "SG", _BOTH, architecture="A"),
        _cgd("SG, B", "SG", _BOTH, architecture="B"),
        _cgd("SG, sum", "SG", _BOTH, combine="sum"),
        _cgd("SG, ranking alone", "SG", _RANK),
        _cgd("SG, classifier", "SG", _with_classifier(1.0, 0.0)),
        _cgd("SG, temperature", "SG", _with_classifier(0.5, 0.0)),
        _cgd("SG, smoothing", "SG", _with_classifier(1.0, 0.1)),
        # Batch-hard triplets alone keep these networks, which begin at random, where
        # all embeddings are near; this loss does not.
        *(
            _cgd(f"{letters}, multi-similarity", letters, _SIMILARITY)
            for letters in ("S", "M", "G", "SM", "SG", "SMG")
        ),
        _cgd("SG, multi-similarity, classifier", "SG", _SIMILARITY | _CLASSIFIER),
    ),
    (
        *(
            Claim(pair, letter, "several descriptors above one")
            for pair in ("SM", "SG", "MG")
            for letter in pair
        ),
        Claim("SG", "SG, B", "C above B"),
        Claim("SG, B", "SG, A", "B above A"),
        Claim("SG", "SG, sum", "concatenation above the sum"),
        Claim("SG, classifier", "SG, ranking alone", "a classifier helps"),
        Claim("SG", "SG, temperature", "both tricks above temperature alone"),
        Claim("SG", "SG, smoothing", "both tricks above smoothing alone"),
        Claim("SG, temperature", "SG, classifier", "temperature helps"),
        Claim("SG, smoothing", "SG, classifier", "smoothing helps"),
        Claim(
            "SG, multi-similarity, classifier",
            "SG, multi-similarity",
            "a classifier helps multi-similarity",
        ),
        *(
            Claim(
                f"{pair}, multi-similarity",
                f"{letter}, multi-similarity",
                "several descriptors above one",
            )
            for pair, letters in (("SM", "SM"), ("SG", "SG"), ("SMG", ("SM", "SG")))
            for letter in letters
        ),
    ),
)


_ALL_PAIRS = {"reduction": "nonzero"}  # those of one class weigh as much as the others


def _abe(name, learners, divergence=1.0, head="abe", pairs=_ALL_PAIRS, **settings):
    losses = {"contrastive": pairs}
    if learners > 1 and divergence:
        losses["divergence"] = {"weight": divergence}
    about = {"model.head": head, "model.learners": learners}
    about["model.widths"] = (16, 32, 64, 64)  # two stages behind the branching point
    return Case(name, about | settings, losses)


_LAMBDAS = (0.1, 10.0, 100.0)
_BY_LAMBDA = tuple(
    (f"{value:g}", "ABE-8" if value == 1 else f"ABE-8, lambda {value:g}")
    for value in sorted((1.0, *_LAMBDAS))
)
_ABE = Table(
    "ABE: learners, heads, divergence, where the network branches",
    (
        *(_abe(f"ABE-{m}", m) for m in (1, 2, 4, 8)),
        *(_abe(f"{m} heads", m, 0.0, "m_heads") for m in (1, 2, 4, 8)),
        replace(_abe("4 networks", 1, 0.0, "m_heads"), networks=4),
        _abe("ABE-8, no divergence", 8, 0.0),
        _abe("8 heads, divergence", 8, 1.0, "m_heads"),
        *(_abe(f"ABE-8, lambda {value:g}", 8, value) for value in _LAMBDAS),
        _abe("ABE-8, behind stage1", 8, **{"model.branch_after": "stage1"}),
        _abe("ABE-8, attention of 1 block", 8, **{"model.attention_blocks": 1}),
        _abe("ABE-8, 32 pairs", 8, pairs={"among": "adjacent"}, sampler="pairs"),
    ),
    (
        Claim("ABE-8", "ABE-1", "eight learners above one"),
        Claim("ABE-4", "ABE-1", "four learners above one"),
        Claim("ABE-8", "8 heads", "attention above heads (Table 1)"),
        Claim("4 networks", "1 heads", "an ensemble of networks above one"),
        Claim("ABE-4", "4 networks", "shared parameters suffice"),
        Claim("8 heads", "1 heads", "eight heads above one (Table 1)"),
        Claim("ABE-8", "ABE-8, no divergence", "divergence is needed (Table 2)"),
        Claim("ABE-8", "ABE-8, lambda 0.1", "lambda of 1 above 0.1 (Fig. 7 c)"),
        Claim("ABE-8", "ABE-8, 32 pairs", "all pairs of a batch above 32 (ours)"),
    ),
    (
        Sweep(
            "learners",
            {
                "ABE": tuple((f"{m}", f"ABE-{m}") for m in (1, 2, 4, 8)),
                "heads": tuple((f"{m}", f"{m} heads") for m in (1, 2, 4, 8)),
            },
        ),
        Sweep(
            "weight of the divergence, ABE-8",
            {"ABE": (("0", "ABE-8, no divergence"), *_BY_LAMBDA)},
        ),
    ),
)


def _hpl(name, base, weight=0.1, **settings):
    about = {"base": base, "level_weights": (1.0, weight)}
    about |= {"warmup": 100, "every": 50, "scale": 16.0, "clusters": (10,)} | settings
    return Case(name, {"sampler": "images"}, {"hierarchical_proxy": about})


def _flat(name, loss, **settings):
    return Case(name, {"sampler": "images"}, {loss: settings})


_BASES = {"NCA": "proxy_nca", "PA": "proxy_anchor"}
_HPL = Table(
    "HPL: a hierarchy over proxies",
    (
        _flat("NCA", "proxy_nca"),
        _flat("PA", "proxy_anchor", scale=16.0),
        *(
            case
            for short, base in _BASES.items()
            for case in (
                *(
                    _hpl(f"HPL-{short}, w1 {weight:g}", base, weight)
                    for weight in (0.03, 0.1, 0.3, 1.0)
                ),
                *(
                    _hpl(f"HPL-{short}, {k} groups", base, clusters=(k,))
                    for k in (3, 20)
                ),
                _hpl(f"HPL-{short}, categories", base, hierarchy="category", every=0),
            )
        ),
    ),
    tuple(
        claim
        for short in _BASES
        for claim in (
            Claim(f"HPL-{short}, w1 0.1", short, "a hierarchy helps"),
            Claim(
                f"HPL-{short}, w1 0.1",
                f"HPL-{short}, w1 1",
                "w1 of 0.1 above 1 (Fig. 5)",
            ),
        )
    ),
    (
        Sweep(
            "weight of the groups, w1",
            {
                f"HPL-{short}": (
                    ("0", short),
                    *((w, f"HPL-{short}, w1 {w}") for w in ("0.03", "0.1", "0.3", "1")),
                )
                for short in _BASES
            },
        ),
        Sweep(
            "groups",
            {
                f"HPL-{short}": (
                    ("3", f"HPL-{short}, 3 groups"),
                    ("10", f"HPL-{short}, w1 0.1"),
                    ("20", f"HPL-{short}, 20 groups"),
                    ("true", f"HPL-{short}, categories"),
                )
                for short in _BASES
            },
        ),
    ),
)

_EXPANDED = {
    "triplet": ("triplet", {"mining": "all", "squared": True, "margin": 0.2}),
    "hphn_triplet": ("triplet", {"mining": "hard", "margin": 0.1}),
    "n_pair": ("n_pair", {"l2_weight": 0.001}),
    "lifted_structure": ("lifted_structure", {}),
    "multi_similarity": ("multi_similarity", {}),
}

_POINTS = (0, 1, 2, 4, 8)


def _ee(kind):
    """The base, and expansion with several numbers of points, of one loss."""
    base, settings = _EXPANDED[kind]
    about = {"sampler": "distinct"}
    if kind != "hphn_triplet":  # a pair is all that expansion sees of a class
        about |= {"instances_per_class": 2}
    if kind == "n_pair":
        about |= {"optimizer.learning_rate": 1e-3}
    kept = {k: v for k, v in settings.items() if k not in ("mining", "squared")}
    yield Case(kind, about, {base: settings})
    for points in _POINTS:
        losses = {f"ee_{kind}": kept | {"points": points}}
        yield Case(f"EE {kind}, {points} points", about, losses)
    losses = {f"ee_{kind}": kept | {"points": 2, "normalize": kind == "n_pair"}}
    yield Case(f"EE {kind}, 2 points, other length", about, losses)


_EE = Table(
    "EE: points between the images of a pair",
    tuple(case for kind in _EXPANDED for case in _ee(kind)),
    tuple(
        Claim(f"EE {kind}, 2 points", other, said)
        for kind in _EXPANDED
        for other, said in (
            (kind, "expansion helps (Table)"),
            (f"EE {kind}, 0 points", "the points do, not the hardest pair alone"),
        )
    ),
    (
        Sweep(
            "points between the images of a pair",
            {
                kind: (
                    ("base", kind),
                    *((f"{n}", f"EE {kind}, {n} points") for n in _POINTS),
                )
                for kind in _EXPANDED
            },
        ),
    ),
)

_WARM_OF = (
    (
        _CGD,
        (
            "SG, ranking alone",
            "SG, classifier",
            "SG, temperature",
            "SG, smoothing",
            "SG",
        ),
    ),
    (_HPL, ("NCA", "HPL-NCA, w1 0.1")),
    (
        _EE,
        tuple(
            name
            for kind in _EXPANDED
            if kind != "n_pair"  # which points cannot change
            for name in (kind, f"EE {kind}, 0 points", f"EE {kind}, 2 points")
        ),
    ),
)
_WARM = Table(
    "From a trained backbone: what of it is left",
    tuple(table.case(name) for table, names in _WARM_OF for name in names),
    tuple(
        claim
        for table, names in _WARM_OF
        for claim in table.claims
        if {claim.better, claim.worse} <= set(names)
    ),
    start="multi_similarity",
)

TABLES = {"cgd": _CGD, "abe": _ABE, "hpl": _HPL, "ee": _EE, "warm": _WARM}
DATA = ("omniglot", "grocery")


def config_of(table: str, name: str, data: str, quick: bool = False):
    """The config of a case on a data set, as config files give it.

    `quick` is for 20 steps of it, to see that it runs.
    """
    case = TABLES[table].case(name)
    config = default_config()
    config.batch_size = 64
    config.instances_per_class = 4
    config.steps = STEPS
    config.eval_every = STEPS // 4
    config.data.name = "packed" if data == "grocery" else "folder"
    config.data.transform.image_size = 28 if data == "omniglot" else 32
    config.data.transform.channels = 1 if data == "omniglot" else 3
    config.data.transform.recipe = "affine" if data == "omniglot" else "resize_crop"
    config.model.backbone = "convnet"
    config.model.widths = (32, 64, 128)
    config.model.descriptors = "S"
    config.model.dim = DIM
    config.optimizer.method = "muon"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay = 1e-4
    config.objective.terms = terms(**case.losses)
    for setting, value in case.settings.items():
        *groups, last = setting.split(".")
        place = config
        for group in groups:
            place = place[group]
        place[last] = value
    if quick:
        config.steps, config.eval_every, config.optimizer.warmup_steps = 20, 10, 2
        for term in config.objective.terms.values():
            if "warmup" in term:
                term.warmup = 5
    return config
