"""Is a data set fit for training? Checks of its images, and messages about them.

`dataset_report` decodes every image once, `perceptual_hash` finds near-duplicates,
`messages` turns the report into sentences, `packed_integrity` verifies packed shards.
"""
