"""Checks before a run: of this machine, its hosts and devices, and of the data."""
