"""The world around the example: raw files that arrive, clients that ask for predictions."""
