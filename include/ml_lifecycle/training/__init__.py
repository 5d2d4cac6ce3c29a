"""What runs in a training pod: ``python -m ml_lifecycle.training.pod``.

A pod is one *attempt* at a *job* (:mod:`ml_lifecycle.training.job`). Environment variables tell it which one
it is; it reads the job, the training set and the packed model folder from the lake, calls ``training.py``'s
``train()``, and writes to a folder that is this attempt's own, ``manifest.json`` last. Whoever launches pods
publishes the result of the attempt that counts (:mod:`ml_lifecycle.stages.train`), so one that was given up
and still runs somewhere changes nothing. ``docs/pod-contract.md`` says all of it, for images in any language.

Below ``checkpoints/`` of the job lie, until there is a result, the newest two checkpoints of a ``train()``
that takes them (:mod:`ml_lifecycle.training.checkpoint_files` says how they are named); all pods of a job
share them.

Told to end by SIGTERM, with ``ML_LIFECYCLE_GRACE_SECONDS`` (30) until SIGKILL, a pod goes on to the next
checkpoint if it is being saved or, by the pace so far, will be in time; else it ends at once.

Exit codes: 0 with a manifest, also when this attempt had left one before, and then nothing is changed; 1 with
a ``failure.json`` that says what went wrong; 143 when interrupted by SIGTERM. A pod that is killed leaves
neither, and another one goes on from the newest whole checkpoint, or starts over.
"""
