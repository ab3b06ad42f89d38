"""The algorithms: how a batch of completions and rewards becomes an update."""
