"""A loopback server that speaks the Pods API and runs a pod's container as a child process.

It is what the cluster is on one machine: ``KubernetesPodOperator`` talks to it unchanged. Start it::

    python -m ml_lifecycle.localpods --state-dir state --token-file token --port 8001

and tell Airflow, whose operators then say ``kubernetes_conn_id="localpods"``::

    from ml_lifecycle.localpods.connection import connection_json
    os.environ["AIRFLOW_CONN_LOCALPODS"] = connection_json("http://127.0.0.1:8001", token, "default")

- Where a proxy is set (``HTTP_PROXY``), ``NO_PROXY`` must name ``127.0.0.1``, or Airflow asks the proxy.
- ``KUBECONFIG`` must not be set where deferrable tasks run: they refuse two sources.
- No ``do_xcom_push``: the server has no ``exec``, and results belong in the lake.

**What a container is here.** A process in a process group of its own, with nothing of the server's
environment but ``PATH`` (in which ``python`` is ``--python``), ``HOME`` and ``TMPDIR`` (private, removed when
it ends) and ``LANG``; GPUs by ``CUDA_VISIBLE_DEVICES``. It is no sandbox: it runs as the server's user.
:mod:`~ml_lifecycle.localpods.manifest` says what of a manifest is honoured, refused and ignored.

**Restarts.** Each container has a small process beside it (:mod:`~ml_lifecycle.localpods.shim`) that keeps
its log and its exit code, so pods survive the server, even its ``kill -9``: the next server on the same
``--state-dir`` adopts what runs and accounts for what ended. With ``--stop-pods-on-exit`` a SIGTERM ends all
pods first (SIGTERM, SIGKILL after five seconds), for whoever brings the whole machine down; after a server
that was killed, ``--sweep`` does the same from outside.
"""
