"""Several runs of one command: where they work, in what processes, and what became of them."""
