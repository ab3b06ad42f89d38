"""rl4rec: reinforcement learning that makes language models recommend.

Importing this package is free: everything heavy is imported where it is used. `rl4rec_cli.api` has the functions and
classes for programs.
"""

__version__ = "0.1.0"
