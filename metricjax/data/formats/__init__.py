"""How images lie on disk: class folders, archives, tables, packed shards, TFDS.

`folder` opens a directory or an archive, `packed` what `packing` wrote, `tfds` what
tensorflow-datasets has prepared. `file_tree` reads files by their names, from a
directory or from `archives` and `tar`.
"""
