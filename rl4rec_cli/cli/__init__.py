"""The command line: signatures, help and exit codes. What the commands do is in the packages beside this one."""
