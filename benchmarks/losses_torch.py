"""The losses in PyTorch, vectorised by hand, as the rival to beat.

Any labels, no B^3, no loop over classes, no cdist (its backward is slower than that of
a Gram matrix). Whatever only chooses pairs runs without autograd, and only what is
chosen is differentiated; sums over positives go through an index table [b, K - 1] made
by one sort of the labels. Exponents need no shift: with unit embeddings they stay below
35, far inside float32. `prepare` does what depends on the labels alone, eagerly; the
rest is one function that `torch.compile` takes as a whole.
"""

import importlib
from typing import NamedTuple

import torch
from losses_cases import TEMPERATURE
from torch.nn import functional


class Classes(NamedTuple):
    """What a batch's labels say.

    Attributes:
      labels: [b].
      positives: rows of the other images of each image's class [b, K - 1], filled up
        with rows that do not count.
      counts: whether they do [b, K - 1].
      first, second: rows of the first and second image of every class that has two.
      parent: class -> coarse class.
    """

    labels: torch.Tensor
    positives: torch.Tensor | None = None
    counts: torch.Tensor | None = None
    first: torch.Tensor | None = None
    second: torch.Tensor | None = None
    parent: torch.Tensor | None = None


def prepare(loss, labels, parent=None):
    """`Classes` as far as `loss` needs it."""
    if loss == "n_pair":
        ordered, order = labels.sort(stable=True)
        begins = torch.ones_like(ordered, dtype=torch.bool)
        begins[1:] = ordered[1:] != ordered[:-1]
        begins[:-1] &= ordered[1:] == ordered[:-1]
        begins[-1] = False
        at = begins.nonzero().squeeze(1)
        return Classes(labels, first=order[at], second=order[at + 1])
    if loss in TABLE:
        ordered, order = labels.sort()
        _, sizes = ordered.unique_consecutive(return_counts=True)
        start = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)[:, None]
        size = sizes.repeat_interleave(sizes)[:, None]
        place = torch.arange(len(labels), device=labels.device)[:, None]
        step = torch.arange(1, max(int(sizes.max()), 2), device=labels.device)
        positives = torch.empty(
            len(labels), len(step), dtype=torch.long, device=labels.device
        )
        counts = torch.empty_like(positives, dtype=torch.bool)
        positives[order] = order[start + (place - start + step) % size]
        counts[order] = step < size
        return Classes(labels, positives, counts)
    return Classes(labels, parent=parent)


def gather(e, rows):
    """e[rows]; the backward pass of an embedding is the fastest there is for it.

    For larger batches it is kept as it stands where compiled: the compiler would make
    atomic additions of it. For small ones the call alone costs more than those.
    """
    if torch.compiler.is_compiling() and rows.numel() > 512:
        return _gather(e, rows)
    return functional.embedding(rows, e)


@torch.library.custom_op("benchmark::gather", mutates_args=())
def _gather(e: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return functional.embedding(rows, e)


@torch.library.custom_op("benchmark::scatter", mutates_args=())
def _scatter(slopes: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    return torch.ops.aten.embedding_dense_backward(slopes, rows, count, -1, False)


@_gather.register_fake
def _gathered(e, rows):
    return e.new_empty(*rows.shape, e.shape[1])


@_scatter.register_fake
def _scattered(slopes, rows, count):
    return slopes.new_empty(count, slopes.shape[-1])


def _remember(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])
    ctx.count = len(inputs[0])


def _add_up(ctx, slopes):
    (rows,) = ctx.saved_tensors
    return _scatter(slopes.contiguous(), rows, ctx.count), None


_gather.register_autograd(_add_up, setup_context=_remember)


def same_class(classes):
    """[b, b], every image with itself among them."""
    return classes.labels[:, None] == classes.labels


def squared_distances(e):
    squares = e.square().sum(1)
    return torch.addmm(squares, e, e.t(), alpha=-2).add_(squares[:, None])


def distances(e):
    return squared_distances(e).clamp_min(1e-12).sqrt()


def paired_distances(e, rows):
    """Distance of image i to image rows[i, ...], from the differences."""
    apart = e.view(len(e), *[1] * (rows.ndim - 1), -1) - gather(e, rows)
    return apart.square().sum(-1).clamp_min(1e-12).sqrt()


def _steps(gaps, inclusive=False):
    """1 where a gap is above 0, or not below, else 0; `gaps` is used up.

    Casting a bool costs the CPU six times an arithmetic pass.
    """
    gaps = gaps.sign_()
    return gaps.add_(1).clamp_max_(1) if inclusive else gaps.clamp_min_(0)


def contrastive(e, classes, margin=1.0):
    """Linear in the distances where it counts, so that weights of them say it all."""
    apart = squared_distances(e)
    with torch.no_grad():
        same = same_class(classes)
        active = _steps(margin - apart).masked_fill_(same, 0.0)
        number = active.sum()
        weights = active.neg_().masked_fill_(same, 1.0).fill_diagonal_(0.0)
    total = (weights * apart).sum() + margin * number
    return total / (len(e) * (len(e) - 1))


def contrastive_nonzero(e, classes, margin=1.0):
    near = paired_distances(e, classes.positives).square() * classes.counts
    gaps = margin - squared_distances(e)
    costs = functional.relu(gaps.masked_fill(same_class(classes), 0.0))
    pull = near.sum() / (near > 0).sum().clamp_min(1)
    return pull + costs.sum() / costs.detach().sign().sum().clamp_min(1)


def _hardest(e, classes):
    with torch.no_grad():
        apart, same = squared_distances(e), same_class(classes)
        nearest = apart.masked_fill(same, torch.inf).argmin(1)
        farthest = apart.masked_fill_(~same, -torch.inf).fill_diagonal_(-torch.inf)
        rows = torch.stack([farthest.argmax(1), nearest], 1)
    far, near = paired_distances(e, rows).unbind(1)
    return far - near


def triplet_hard(e, classes, margin=0.1):
    return functional.relu(_hardest(e, classes) + margin).mean()


def triplet_soft(e, classes):
    return functional.softplus(_hardest(e, classes)).mean()


def _triplets(e, classes, margin, semihard):
    """Linear in the distances where it counts, as `contrastive`."""
    apart = distances(e)
    with torch.no_grad():
        negative = apart.masked_fill(same_class(classes), torch.inf)
        positive = apart.gather(1, classes.positives)
        positive = positive.masked_fill(~classes.counts, -torch.inf)
        weights, numbers = torch.zeros_like(apart), []
        for column in positive.split(1, 1):
            active = _steps(column + margin - negative, semihard)
            if semihard:
                active -= _steps(column - negative, inclusive=True)
            weights += active
            numbers.append(active.sum(1))
        number = torch.stack(numbers, 1)
        weights.scatter_add_(1, classes.positives, -number)
        total = number.sum()
    return margin * (total > 0) - (weights * apart).sum() / total.clamp_min(1)


def triplet_all(e, classes, margin=0.1):
    return _triplets(e, classes, margin, semihard=False)


def triplet_semihard(e, classes, margin=0.1):
    return _triplets(e, classes, margin, semihard=True)


def n_pair(e, classes):
    rows = torch.stack([classes.first, classes.second])
    anchors, positives = gather(e, rows).unbind()
    products = anchors @ positives.t()
    return functional.cross_entropy(
        products, torch.arange(len(products), device=e.device)
    )


def lifted_structure(e, classes, margin=1.0):
    gaps = margin - distances(e)
    push = gaps.masked_fill_(same_class(classes), -torch.inf).exp_().sum(1)
    pairs = (push[:, None] + push[classes.positives]).log()
    pairs = functional.relu(pairs + paired_distances(e, classes.positives)).square()
    return (pairs * classes.counts).sum() / (2 * classes.counts.sum())


def multi_similarity(e, classes, alpha=2.0, beta=50.0, base=0.5, epsilon=0.1):
    alike = e @ e.t()
    positive = (e[:, None] * gather(e, classes.positives)).sum(-1)
    with torch.no_grad():
        same, counts = same_class(classes), classes.counts
        nearest = alike.masked_fill(same, -torch.inf).amax(1, keepdim=True)
        farthest = positive.masked_fill(~counts, torch.inf).amin(1, keepdim=True)
        kept = counts & (positive < nearest + epsilon)
        dropped = same | (alike <= farthest - epsilon)
        both = kept.any(1) & (nearest > farthest - epsilon).squeeze(1)
    pull = torch.exp(-alpha * (positive - base)) * kept
    push = alike.masked_fill(dropped, -torch.inf).sub_(base).mul_(beta).exp_()
    costs = pull.sum(1).log1p() / alpha + push.sum(1).log1p() / beta
    return (costs * both).sum() / len(e)


def proxy_nca(e, classes, proxies, temperature=1 / 9):
    proxies = functional.normalize(proxies) * (2 / temperature)
    return functional.cross_entropy(e @ proxies.t(), classes.labels)


def proxy_anchor(e, classes, proxies, margin=0.1, scale=32.0):
    labels, proxies = classes.labels, functional.normalize(proxies) * scale
    own = torch.exp(scale * margin - (e * gather(proxies, labels)).sum(1))
    pull = own.new_zeros(len(proxies)).index_add(0, labels, own).log1p()
    present = own.new_zeros(len(proxies)).index_fill(0, labels, 1.0).sum()
    others = (e @ proxies.t()).scatter_(1, labels[:, None], -torch.inf)
    others = others.add_(scale * margin).exp_()
    return pull.sum() / present + others.sum(0).log1p().mean()


def hierarchical_proxy(e, classes, proxies, coarse):
    groups = Classes(classes.parent[classes.labels])
    return proxy_anchor(e, classes, proxies) + 0.1 * proxy_anchor(e, groups, coarse)


def divergence(learners, classes, margin=1.0):
    products = learners @ learners.mT
    squares = products.diagonal(dim1=1, dim2=2)
    apart = squares[:, :, None] + squares[:, None] - 2 * products
    return functional.relu(margin - apart).triu(1).sum() / len(learners)


def softmax_cross_entropy(e, classes, weights):
    logits = functional.linear(e / TEMPERATURE, weights)
    return functional.cross_entropy(logits, classes.labels)


# --- embedding expansion: unit embeddings, so that distances follow from products -----


def _between(starts, ends, points):
    """Unit points between rows of `starts` and `ends`: [b, points, d]."""
    at = torch.arange(1, points + 1, device=starts.device)[:, None] / (points + 1)
    made = torch.lerp(starts[:, None], ends[:, None], at)
    return functional.normalize(made, dim=-1)


def _segments(e, points):
    """Pairs of images with the points between them: [N, points + 2, d]."""
    starts, ends = e.view(len(e) // 2, 2, -1).unbind(1)
    between = _between(starts, ends, points)
    return torch.cat([starts[:, None], between, ends[:, None]], 1)


def _all_products(e, points):
    """Of all points with all others [N, P, N, P]."""
    made = _segments(e, points)
    flat = made.flatten(0, 1)
    return (flat @ flat.t()).view(*made.shape[:2], *made.shape[:2])


def most_alike_naive(e, points):
    """Largest product of every two pairs [N, N], all combinations compared."""
    products = _all_products(e, points)
    return products.max(3).values.max(1).values


def most_alike_gram(e, points, steps=None):
    """The same from the Gram matrix of the images: points are never made.

    A point is a x_i + b x_j over its length, so its products are sums of four entries.
    The best combination is chosen without autograd and differentiated alone.

    steps: points of the row pair that count, all by default.
    """
    count, size = len(e) // 2, points + 2
    gram = (e @ e.t()).view(count, 2, count, 2).transpose(1, 2)
    own = gram.diagonal().permute(2, 0, 1)
    start, cross, end = own[:, 0, 0], own[:, 0, 1], own[:, 1, 1]
    b = torch.arange(size, device=e.device) / (points + 1)
    shares = torch.stack([1 - b, b], 1)
    squares = torch.stack([start, 2 * cross, end], 1) @ torch.stack(
        [(1 - b) ** 2, (1 - b) * b, b**2]
    )
    scale = squares.clamp_min(1e-12).rsqrt()
    scale = torch.cat([torch.ones_like(scale[:, :1]), scale[:, 1:-1],
                       torch.ones_like(scale[:, :1])], 1)  # fmt: skip
    with torch.no_grad():
        columns = gram.reshape(-1, 2) @ shares.t()
        columns = columns.view(count, count, 2, size) * scale[:, None]
        best = gram.new_full((count, count), -torch.inf)
        row = torch.zeros(count, count, dtype=torch.long, device=e.device)
        column = torch.zeros_like(row)
        for k in range(size) if steps is None else steps:
            mixed = torch.lerp(columns[:, :, 0], columns[:, :, 1], b[k])
            value, index = mixed.max(-1)
            value = value * scale[:, k, None]
            better = value > best
            best = torch.where(better, value, best)
            row = torch.where(better, k, row)
            column = torch.where(better, index, column)
        weights = shares[row][..., :, None] * shares[column][..., None, :]
    lengths = scale.gather(1, row) * scale.gather(1, column.t()).t()
    return (weights * gram).sum((2, 3)) * lengths


def _pairs(e, classes):
    """Product of the two images of a pair [N], and which pairs are negatives [N, N]."""
    starts, ends = e.view(len(e) // 2, 2, -1).unbind(1)
    labels = classes.labels[::2]
    return (starts * ends).sum(1), labels[:, None] != labels


def _distance(similarity):
    return (2 - 2 * similarity).clamp_min(1e-12).sqrt()


def expansion_triplet(e, classes, points, most_alike, margin=0.5):
    within, negatives = _pairs(e, classes)
    gaps = 2 * (most_alike(e, points) - within[:, None]) + margin
    return (functional.relu(gaps) * negatives).sum() / negatives.sum()


def expansion_n_pair(e, classes, points, most_alike):
    within, negatives = _pairs(e, classes)
    gaps = most_alike(e, points) - within[:, None]
    return gaps.masked_fill(~negatives, -torch.inf).exp().sum(1).log1p().mean()


def expansion_lifted_structure(e, classes, points, most_alike, margin=1.0):
    within, negatives = _pairs(e, classes)
    push = (margin - _distance(most_alike(e, points))).masked_fill(
        ~negatives, -torch.inf
    )
    costs = push.exp().sum(1).log() + _distance(within)
    return functional.relu(costs).square().mean() / 2


def expansion_multi_similarity(
    e, classes, points, most_alike, alpha=2.0, beta=50.0, base=0.5
):
    within, negatives = _pairs(e, classes)
    pull = torch.exp(-alpha * (within - base)).log1p() / alpha
    push = beta * (most_alike(e, points) - base)
    push = push.masked_fill(~negatives, -torch.inf).exp().sum(1).log1p() / beta
    return (pull + push).mean()


def expansion_hphn_triplet(e, classes, points, most_alike, margin=0.1):
    """An image with its points counts, its partner does not."""
    labels, count = classes.labels, len(e) // 2
    if most_alike is most_alike_gram:
        sides = [most_alike(e, points, range(points + 1)),
                 most_alike(e, points, range(1, points + 2))]  # fmt: skip
    else:
        best = _all_products(e, points).max(3).values
        sides = [best[:, :-1].max(1).values, best[:, 1:].max(1).values]
    near = torch.stack(sides, 1).view(2 * count, count)
    near = near.masked_fill(labels[:, None] == labels[::2], -torch.inf).amax(1)
    with torch.no_grad():
        apart = (e @ e.t()).masked_fill_(~same_class(classes), torch.inf)
        farthest = apart.argmin(1)
    far = (e * gather(e, farthest)).sum(1)
    return functional.relu(_distance(far) - _distance(near) + margin).mean()


def expansion_synthesize(e, classes, points, most_alike):
    """Not a loss: the points alone, forward."""
    partners = e.view(len(e) // 2, 2, -1).flip(1).reshape(len(e), -1)
    return _between(e, partners, points)


TABLE = {"contrastive_nonzero", "triplet_all", "triplet_semihard"}
TABLE |= {"lifted_structure", "multi_similarity"}


# --- as a worker ----------------------------------------------------------------------


class Task:
    """Value and gradient of one case.

    Args:
      case: of `losses_cases.CASES`.
      inputs: of `losses_cases.inputs`.
      way: "eager", "compile", or either after "gram_", for embedding expansion.
      device: "cpu" or "cuda".
    """

    def __init__(self, case, inputs, way, device="cpu"):
        self._loss, self._device = case.loss, device
        self._leaves = [
            torch.from_numpy(leaf).to(device).requires_grad_() for leaf in inputs.leaves
        ]
        self._labels = torch.from_numpy(inputs.labels).long().to(device)
        parent = inputs.parent
        self._parent = None if parent is None else torch.from_numpy(parent).to(device)
        function, more = globals()[case.loss], ()
        if case.points is not None:
            gram = way.startswith("gram_")
            more = case.points, most_alike_gram if gram else most_alike_naive

        def loss(leaves, classes):
            return function(leaves[0], classes, *leaves[1:], *more)

        compiles = way.endswith("compile")
        if compiles:  # seconds that are no compilation
            importlib.import_module("torch._inductor.compile_fx")
        self._function = torch.compile(loss, fullgraph=True) if compiles else loss
        self._forward_only = case.loss == "expansion_synthesize"
        self._value = self._gradients = None

    def step(self):
        classes = prepare(self._loss, self._labels, self._parent)
        if self._forward_only:
            with torch.no_grad():
                self._value, self._gradients = self._function(self._leaves, classes), ()
        else:
            self._value = self._function(self._leaves, classes)
            self._gradients = torch.autograd.grad(self._value, self._leaves)
        if self._device == "cuda":
            torch.cuda.synchronize()

    def result(self):
        arrays = {"value": self._value.detach().cpu().numpy()}
        for index, gradient in enumerate(self._gradients):
            arrays[f"gradient{index}"] = gradient.cpu().numpy()
        return arrays

    def device_peak(self):
        if self._device != "cuda":
            return None
        return torch.cuda.max_memory_allocated()


def build(spec):
    from losses_cases import CASES, inputs

    case = CASES[spec["case"]]
    return Task(case, inputs(case, spec["batch"]), spec["way"], spec["device"])


if __name__ == "__main__":
    import harness

    harness.serve(build)
