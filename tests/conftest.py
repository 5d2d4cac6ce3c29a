"""For every test."""

# Before anything imports Feast, whose import switches the client to files that a whole process shares:
# counters of one server would then count for all.
import prometheus_client  # noqa: F401
