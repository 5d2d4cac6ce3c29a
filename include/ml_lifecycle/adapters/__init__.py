"""The only callers of object storage, Great Expectations, Feast, MLflow and Evidently."""
