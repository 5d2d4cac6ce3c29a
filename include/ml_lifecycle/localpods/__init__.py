"""A loopback server that speaks the Pods API and runs containers as child processes."""
