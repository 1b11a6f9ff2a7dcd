"""Train JTLN: ``python train.py --help``."""

import sys

from jtln.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
