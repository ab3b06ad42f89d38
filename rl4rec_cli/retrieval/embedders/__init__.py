"""The embedders: one module each, which holds the embedder and what it answers before it is opened."""
