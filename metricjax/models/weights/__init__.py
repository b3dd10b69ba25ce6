"""Weights from the files of others: read by `files`, renamed by `names`."""
