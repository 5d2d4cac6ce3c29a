"""The life of a machine-learning model as plain Python: specs, stages, ledger, delivery, serving.

Nothing here imports Airflow. ``ml_lifecycle_airflow`` turns these stages into operators.
"""

__version__ = "0.1.0"
