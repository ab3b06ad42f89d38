"""Trainers: supervised warm start and reinforcement learning."""
