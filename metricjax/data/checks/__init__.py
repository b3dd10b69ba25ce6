"""Is a data set fit for training? Findings about its images, and sentences on them.

`findings` looks at every image once, `perceptual_hash` finds copies, `sentences` says
what is wrong, `packed_integrity` verifies packed shards.
"""
