"""What runs in a training pod: ``python -m ml_lifecycle.training.pod``.

A pod gets three environment variables and knows nothing else:

``ML_LIFECYCLE_LAKE``
    URL of the lake, as the pod reaches it.
``ML_LIFECYCLE_LAKE_OPTIONS``
    Optional JSON object: the filesystem's options (endpoint, credentials). On a cluster it comes by
    ``secretKeyRef``.
``ML_LIFECYCLE_JOB``
    Path in the lake of the :class:`~ml_lifecycle.training.job.TrainingJob`.

It reads the job, the training set and the packed model folder from the lake, calls ``training.py``'s
``train()``, and writes beside the job, in this order:

``model.onnx``
    The model as it will be served.
``reference.parquet``
    The original estimator's answers to every holdout row and to probe rows
    (:mod:`ml_lifecycle.training.reference`).
``profile.json``
    The reference profile: training features, holdout scores.
``metrics.json``
    The estimator's metrics on the holdout, and why others could not be computed.
``manifest.json``
    The :class:`~ml_lifecycle.records.Training`; last, so that a result without one does not exist.

Below ``checkpoints/`` lie, until there is a result, the newest two checkpoints of a ``train()`` that takes
them (:mod:`ml_lifecycle.training.checkpoint_files` says how they are named); all pods of a job share them.

Told to end by SIGTERM, with ``ML_LIFECYCLE_GRACE_SECONDS`` (30) until SIGKILL, a pod goes on to the next
checkpoint if it is being saved or, by the pace so far, will be in time; else it ends at once.

Exit codes: 0 with a manifest, also when the job was done before, and then nothing is changed; 1 with a
``failure.json`` that says what went wrong; 143 when interrupted by SIGTERM. A pod that is killed leaves
neither, and another one goes on from the newest whole checkpoint, or starts over.
"""
