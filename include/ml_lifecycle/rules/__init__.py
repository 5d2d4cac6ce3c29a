"""A contract's rules: what each means, and the one pass over the data that judges them."""
