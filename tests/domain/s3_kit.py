"""An S3 API for tests: moto's server on loopback, or the store that ``ML_LIFECYCLE_S3`` leads to.

``ML_LIFECYCLE_S3`` holds s3fs's storage options as JSON, ``{"key": …, "secret": …, "client_kwargs":
{"endpoint_url": …}}``, of a store in which buckets may be made.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_lifecycle.adapters.lake import Lake


@dataclass(frozen=True)
class S3Store:
    """A store that answers.

    :param options: what s3fs needs to reach it
    """

    options: dict[str, Any]

    def new_lake(self) -> Lake:
        """A lake in a bucket of its own."""
        import s3fs

        bucket = f"test-{uuid.uuid4().hex}"
        s3fs.S3FileSystem(**self.options).mkdir(bucket)
        return Lake(f"s3://{bucket}/prefix", self.options)

    def aws_files(self, folder: Path) -> dict[str, str]:
        """Files of AWS's own form that lead here, in ``folder``; returns the variables that name them."""
        key, secret = self.options["key"], self.options["secret"]
        contents = {
            "AWS_SHARED_CREDENTIALS_FILE": f"aws_access_key_id = {key}\naws_secret_access_key = {secret}\n",
            "AWS_CONFIG_FILE": f"endpoint_url = {self.options['client_kwargs']['endpoint_url']}\n",
        }
        for name, content in contents.items():
            (folder / name.lower()).write_text(f"[default]\n{content}")
        return {name: str(folder / name.lower()) for name in contents}


@contextmanager
def running_s3() -> Iterator[S3Store]:
    """The given store, or moto's for as long as the context lasts."""
    if given := os.environ.get("ML_LIFECYCLE_S3"):
        yield S3Store(json.loads(given))
        return
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = {"endpoint_url": f"http://{host}:{port}"}
        yield S3Store({"key": "test", "secret": "test", "client_kwargs": endpoint})
    finally:
        server.stop()
