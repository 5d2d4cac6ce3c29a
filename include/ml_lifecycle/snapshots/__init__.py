"""What becomes of snapshots: which there are, how two differ, and which may go."""
