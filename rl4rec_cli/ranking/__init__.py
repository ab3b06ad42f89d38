"""Exact ranks and top-k over vectors and ids: knows nothing of texts."""
