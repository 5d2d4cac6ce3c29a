"""The lifecycle database and the append-only, hash-chained ledger in it."""
