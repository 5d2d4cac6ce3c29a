"""The whole stack on one machine: Airflow, MLflow, localpods and model servers under supervisord."""
