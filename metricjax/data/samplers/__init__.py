"""Which images a batch contains, as a pure function of (seed, step).

`registry` builds samplers by name; `class_balanced` has P x K batches, `random_images`
random images and pairs, `decks` the shuffles they draw from, `sampler` the interface.
"""
