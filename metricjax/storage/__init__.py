"""Files: written atomically, locked, in directories or buckets.

`atomic` writes a file whole or not at all, `directories` is one directory here or in a
bucket, `bucket` copies a whole tree to and from object storage, `user_cache` is where
caches lie.
"""
