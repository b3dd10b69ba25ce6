"""The objective of a run: a weighted sum of losses, and what they keep over time.

`registry` lists the losses by name, `objective` adds them up, `hierarchical_proxies`
and `class_clustering` are HPL's levels and groups, `cross_batch_memory` is the queue of
past embeddings.
"""
