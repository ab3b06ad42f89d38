"""`python -m rl4rec_cli`: the command `rl4rec`, also from a source tree that nobody installed."""

import sys

from rl4rec_cli.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
