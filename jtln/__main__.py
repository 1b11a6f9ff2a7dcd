"""``python -m jtln COMMAND``."""

import sys

from jtln.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
