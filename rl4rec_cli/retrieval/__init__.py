"""Embeddings, exact ranking and search."""
