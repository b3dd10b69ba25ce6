"""A model opened to be used: embeddings, galleries, search, evaluation of a split.

`trained_model` opens a finished run, `embedder` turns images into embeddings on all
devices. `gallery_index` and `approximate_index` search; `index_cache`,
`partial_embeddings` and `embed_to_file` keep embeddings on disk so that an interrupted
job resumes; `embedding_files` and `parquet` are their formats. `evaluate_split` and
`verify_split` compute the metrics and thresholds of a split.
"""
