"""What a person looks at after a run: one self-contained HTML page.

`page.write` takes plain arguments (dicts, arrays, two callables) and knows nothing of
a run; `figures` draws its curves, `galleries` its queries and neighbours.
"""
