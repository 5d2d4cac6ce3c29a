"""Airflow operators, sensors, triggers, hooks and the DAG builder."""
