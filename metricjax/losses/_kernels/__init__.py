"""How the losses are computed. Come here for speed and memory, not for formulas.

A loss is a function of one anchor's row (`losses/*.py`). Shared by all of them:

- `anchors`: makes the rows, maps the function over the anchors, averages. `inputs`
  checks the arguments, `measures` fills the rows, `numerics` has the safe arithmetic.
- `blocks`: rows in blocks of anchors, O(block x n) memory, and over a mesh.
- `platform`: rows or a CPU kernel.

The CPU kernels compute the same values and gradients faster. `tiles` visits a batch in
square tiles that fit a processor's cache and computes each product once for both of
its images; `contrastive`, `lifted_structure`, `multi_similarity`, `mining` (batch-hard)
and `triplets` (all and semi-hard) are written on top of it. `first_pairs` is N-pair's.

`segments` and `segment_rows` find the closest points of embedding expansion, on every
platform.
"""
