"""rl4rec: reinforcement learning that makes language models recommend.

Importing this package is free: everything heavy is imported where it is used.
"""

__version__ = "0.1.0"
