"""``python -m ml_lifecycle_airflow.stack.mlflow_server …``: ``mlflow server …`` in one process, not two.

MLflow's command imports all of MLflow, starts the server as a child and waits for it: 200 MiB at rest that do
nothing, a tenth of the whole stack. Here the server takes its place, with the arguments and the environment
that MLflow made for it. Should MLflow start it in another way one day, this is just its command.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any


class _InPlace(subprocess.Popen[Any]):
    """Becomes the server instead of starting it."""

    def __init__(self, args: Any, *others: Any, **options: Any) -> None:
        if "uvicorn" in args:
            sys.stdout.flush()
            sys.stderr.flush()
            os.execvpe(args[0], args, options.get("env") or os.environ)
        super().__init__(args, *others, **options)


def main() -> None:
    """Run MLflow's command line."""
    from mlflow.cli import cli

    subprocess.Popen = _InPlace  # type: ignore[misc]
    cli(["server", *sys.argv[1:]], prog_name="mlflow")


if __name__ == "__main__":
    main()
