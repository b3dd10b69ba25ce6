"""Finished runs side by side: paired differences, intervals, tables.

`runs` reads and compares, `tables` writes Markdown and LaTeX, `per_query` is what a run
keeps of each query so that runs can be compared in pairs.
"""
