"""`python -m qtutor.cli` is `qtutor`."""

import sys

from qtutor.cli import main

if __name__ == "__main__":
    sys.exit(main())
