"""A training run from its start, or where it stopped, to its results.

`loop` is the run from the top down, `step` one step as a pure function, `programs` what
is compiled for it, `run` the data and model it is opened with. `checkpoints`, `workdir`
and `remote_workdir` keep what resumes it; `metric_writer`, `step_metrics`, `monitors`
and `nonfinite` watch it; `finalize` and `paper_analyses` write the results;
`cross_validation` repeats it over folds.
"""
