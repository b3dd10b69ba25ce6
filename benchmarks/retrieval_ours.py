"""A worker of the retrieval benchmark: ours."""

import harness
import retrieval_cases as cases

from metricjax.evaluation import retrieval


def measure(embeddings, labels):
    """Ties at expected value included; no intervals, which no other computes."""
    return retrieval(embeddings, labels, recall_at=cases.RECALL_AT, bootstrap=0)


if __name__ == "__main__":
    harness.serve(lambda spec: cases.Task(spec, measure))
