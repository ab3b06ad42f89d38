"""The leakage audit: what in a dataset gives targets away, or bends the measurement."""
