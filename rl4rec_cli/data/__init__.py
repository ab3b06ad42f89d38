"""Datasets: reading and checking folders, making synthetic ones, counting what is in them, writing prompts."""
