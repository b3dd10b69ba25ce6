"""`metricjax plan`: memory, time and largest batch of a run before it starts.

`plan` writes the report, `hardware` describes present devices or a TPU topology,
`batch_size` finds what fits by compiling, `timing` measures a few steps.
"""
