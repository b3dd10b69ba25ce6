"""Workers of the retrieval benchmark: faiss, torch.topk, pytorch-metric-learning."""

import harness
import numpy as np
import retrieval_cases as cases

BLOCK = 1024


def with_faiss(embeddings, labels):
    """IndexFlatIP, the query taken out of its own neighbours by its index; numpy."""
    import faiss

    counts = cases.others(labels)
    k = max(counts.max(), *cases.RECALL_AT)
    index = faiss.IndexFlatIP(embeddings.shape[1])
    index.add(embeddings)
    _, found = index.search(embeddings, int(k) + 1)
    itself = found == np.arange(len(found))[:, None]
    itself[~itself.any(1), -1] = True
    found = found[~itself].reshape(len(found), k)
    return cases.metrics(labels[found] == labels[:, None], counts)


def with_topk(embeddings, labels):
    """Products and torch.topk in blocks of queries; numpy."""
    import torch

    counts = cases.others(labels)
    k = int(max(counts.max(), *cases.RECALL_AT))
    rows, classes = torch.from_numpy(embeddings), torch.from_numpy(labels)
    relevant = np.empty((len(rows), k), bool)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        places = torch.arange(len(block))
        products = block @ rows.T
        products[places, start + places] = -torch.inf
        found = products.topk(k).indices
        same = classes[found] == classes[start : start + BLOCK, None]
        relevant[start : start + BLOCK] = same.numpy()
    return cases.metrics(relevant, counts)


def with_pml(embeddings, labels):
    """AccuracyCalculator as it comes, and Recall@K in the way its guide adds metrics.

    Its neighbours are faiss's; K is the size of the largest class.
    """
    import torch
    from pytorch_metric_learning.utils import accuracy_calculator

    class Calculator(accuracy_calculator.AccuracyCalculator):
        def requires_knn(self):
            return super().requires_knn() + [f"recall_at_{k}" for k in cases.RECALL_AT]

    def recall(k):
        def calculate(self, knn_labels, query_labels, **_):
            found = (knn_labels[:, :k] == query_labels[:, None]).any(1)
            return found.float().mean().item()

        return calculate

    for k in cases.RECALL_AT:
        setattr(Calculator, f"calculate_recall_at_{k}", recall(k))
    names = {
        **{f"recall@{k}": f"recall_at_{k}" for k in cases.RECALL_AT},
        "r_precision": "r_precision",
        "map@r": "mean_average_precision_at_r",
    }
    calculator = Calculator(
        include=tuple(names.values()), k="max_bin_count", device=torch.device("cpu")
    )
    found = calculator.get_accuracy(
        torch.from_numpy(embeddings), torch.from_numpy(labels)
    )
    return {name: found[theirs] for name, theirs in names.items()}


WAYS = {"faiss": with_faiss, "topk": with_topk, "pml": with_pml}

if __name__ == "__main__":
    harness.serve(lambda spec: cases.Task(spec, WAYS[spec["way"]]))
