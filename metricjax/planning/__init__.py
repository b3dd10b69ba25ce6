"""What a run will need, told before it starts: memory, time, the largest batch.

`plan` asks and tells, `hardware` describes the devices, here or of a TPU topology,
`batch_size` finds what fits by compiling, `timing` measures a few steps.
"""
