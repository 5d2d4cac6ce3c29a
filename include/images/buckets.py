"""``buckets.py NAME…``: make the buckets that are not there; AWS's own variables and files say where."""

import sys

import s3fs

store = s3fs.S3FileSystem()
for bucket in sys.argv[1:]:
    if not store.exists(bucket):
        store.mkdir(bucket)
        print(f"made {bucket}")
