from ml_lifecycle_airflow import lifecycle_dags

globals().update(lifecycle_dags(__file__))
