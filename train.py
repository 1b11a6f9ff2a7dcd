"""Train JTLN: ``python train.py --help``."""

import sys

from jtln.app.main import main

if __name__ == "__main__":
    sys.exit(main())
