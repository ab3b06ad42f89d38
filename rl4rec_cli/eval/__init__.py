"""Evaluation: metrics, baselines, statistics and what is printed of them."""
