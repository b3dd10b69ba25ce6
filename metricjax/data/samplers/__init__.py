"""Which images stand in which batch, as pure functions of (seed, step).

`registry` has every sampler by its name, `class_balanced` the batches of P classes with
K images, `decks` deals without repeats.
"""
