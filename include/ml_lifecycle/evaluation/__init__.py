"""Judging a model: its gates, its parity with the original estimator, golden rows and the report."""
