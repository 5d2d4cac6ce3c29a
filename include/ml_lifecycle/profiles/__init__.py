"""What "normal" means: mergeable sketches of columns and scores, and distances between them."""
