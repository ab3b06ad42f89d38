"""What each command does. A command returns what it made; `cli` prints it."""
