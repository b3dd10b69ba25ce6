"""Checks before a run: `metricjax doctor` for machines, `metricjax check` for data.

`host_checks` needs no device, `device_checks` needs JAX and all hosts, `decoding_rate`
measures the input pipeline, `dataset_check` reports on a data set.
"""
