"""The engine ``spark``: stages computed by Spark, with the results that they have without it.

Nothing here judges, joins or scores by itself. Great Expectations' own Spark engine judges, Feast's Spark
store joins, and in Spark's Python workers the profile and ONNX Runtime do what they do everywhere.
"""
