"""Routes and releases: what an endpoint serves, and how that changes."""
