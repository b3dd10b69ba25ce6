"""The losses of pytorch-metric-learning, as its documentation puts them together.

Conventions are aligned as far as its options go: the pair losses leave unit embeddings
as they are, and reducers average over what ours averages over. The proxy losses make
embeddings unit as well, so that their gradient lacks the part along the embedding;
the check compares the rest.
"""

import torch
from losses_cases import DIM, TEMPERATURE
from pytorch_metric_learning import distances, losses, miners, reducers

L2 = {"normalize_embeddings": False}


class ContrastiveMean(torch.nn.Module):
    """Both terms over the number of all pairs; no reducer of the library does that."""

    def __init__(self):
        super().__init__()
        self._terms = losses.ContrastiveLoss(
            neg_margin=1.0,
            distance=distances.LpDistance(power=2, **L2),
            reducer=reducers.DoNothingReducer(),
        )

    def forward(self, embeddings, labels):
        terms = self._terms(embeddings, labels)
        pairs = [terms["pos_loss"]["losses"], terms["neg_loss"]["losses"]]
        return sum(pair.sum() for pair in pairs) / sum(len(pair) for pair in pairs)


class Mined(torch.nn.Module):
    """A miner and the loss of what it finds."""

    def __init__(self, miner, loss):
        super().__init__()
        self._miner, self._loss = miner, loss

    def forward(self, embeddings, labels):
        return self._loss(embeddings, labels, self._miner(embeddings, labels))


class Hierarchy(torch.nn.Module):
    """Two levels of Proxy-Anchor."""

    def __init__(self, classes, groups, parent):
        super().__init__()
        self.fine = losses.ProxyAnchorLoss(classes, DIM, margin=0.1, alpha=32)
        self.coarse = losses.ProxyAnchorLoss(groups, DIM, margin=0.1, alpha=32)
        self._parent = parent

    def forward(self, embeddings, labels):
        groups = self._parent[labels]
        return self.fine(embeddings, labels) + 0.1 * self.coarse(embeddings, groups)


def mined_triplets(miner, margin=0.1, smooth=False):
    return Mined(
        miner,
        losses.TripletMarginLoss(
            margin=margin, smooth_loss=smooth, distance=distances.LpDistance(**L2),
            reducer=reducers.MeanReducer(),
        ),
    )  # fmt: skip


def pair_loss(name):
    """Module of a loss without parameters."""
    euclidean, dot = distances.LpDistance(**L2), distances.DotProductSimilarity(**L2)
    squared = distances.LpDistance(power=2, **L2)
    make = {
        "contrastive": ContrastiveMean,
        "contrastive_nonzero": lambda: losses.ContrastiveLoss(distance=squared),
        "triplet_hard": lambda: mined_triplets(
            miners.BatchHardMiner(distance=euclidean)
        ),
        "triplet_soft": lambda: mined_triplets(
            miners.BatchHardMiner(distance=euclidean), margin=0.0, smooth=True
        ),
        "triplet_all": lambda: losses.TripletMarginLoss(
            margin=0.1, distance=euclidean
        ),
        "triplet_semihard": lambda: mined_triplets(
            miners.TripletMarginMiner(0.1, "semihard", distance=euclidean)
        ),
        "n_pair": lambda: losses.NPairsLoss(distance=dot),
        "lifted_structure": lambda: losses.LiftedStructureLoss(distance=euclidean),
        "multi_similarity": lambda: Mined(
            miners.MultiSimilarityMiner(epsilon=0.1, distance=dot),
            losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5, distance=dot),
        ),
    }  # fmt: skip
    return make[name]()


class Task:
    """Value and gradient of one case; see `losses_torch.Task`."""

    def __init__(self, case, inputs, device="cpu"):
        self._device = device
        leaves = [torch.from_numpy(leaf).to(device) for leaf in inputs.leaves]
        self._labels = torch.from_numpy(inputs.labels).long().to(device)
        parameters = []
        if case.loss == "hierarchical_proxy":
            parent = torch.from_numpy(inputs.parent).to(device)
            module = Hierarchy(case.classes, len(leaves[2]), parent)
            parameters = [module.fine.proxies, module.coarse.proxies]
        elif case.loss == "proxy_nca":
            module = losses.ProxyNCALoss(case.classes, DIM, softmax_scale=9)
            parameters = [module.proxies]
        elif case.loss == "proxy_anchor":
            module = losses.ProxyAnchorLoss(case.classes, DIM, margin=0.1, alpha=32)
            parameters = [module.proxies]
        elif case.loss == "softmax_cross_entropy":
            module = losses.NormalizedSoftmaxLoss(
                case.classes, DIM, temperature=TEMPERATURE
            )
            parameters, leaves[1] = [module.W], leaves[1].t().contiguous()
        else:
            module = pair_loss(case.loss)
        for parameter, leaf in zip(parameters, leaves[1:], strict=True):
            parameter.data = leaf
        self._transposed = case.loss == "softmax_cross_entropy"
        self._module = module.to(device)
        self._leaves = [leaves[0].requires_grad_(), *parameters]

    def step(self):
        self._value = self._module(self._leaves[0], self._labels)
        self._gradients = torch.autograd.grad(self._value, self._leaves)
        if self._device == "cuda":
            torch.cuda.synchronize()

    def result(self):
        arrays = {"value": self._value.detach().cpu().numpy()}
        for index, gradient in enumerate(self._gradients):
            gradient = gradient.t() if self._transposed and index else gradient
            arrays[f"gradient{index}"] = gradient.cpu().numpy()
        return arrays

    def device_peak(self):
        if self._device != "cuda":
            return None
        return torch.cuda.max_memory_allocated()


def build(spec):
    from losses_cases import CASES, inputs

    case = CASES[spec["case"]]
    return Task(case, inputs(case, spec["batch"]), spec["device"])


if __name__ == "__main__":
    import harness

    harness.serve(build)
