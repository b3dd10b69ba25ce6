"""Files: written atomically, locked, in directories or buckets.

`atomic` writes and locks local files, `directories` opens one flat directory that is
local or in a bucket, `bucket` copies a run's files to and from a bucket with retries,
`user_cache` is the directory of caches.
"""
