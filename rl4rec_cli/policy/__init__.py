"""Policies: loading, saving and generating."""
