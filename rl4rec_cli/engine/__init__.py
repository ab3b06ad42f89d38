"""vLLM in a process of its own, for policies and embedders."""
