"""Preference tuning: the task whose prompts come with a chosen and a rejected answer."""
