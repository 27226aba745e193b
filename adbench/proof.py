"""`python -m adbench.proof`: what this machine makes of the papers' presets; resumable."""

import sys

from adbench.studies.proof import main

if __name__ == "__main__":
    sys.exit(main())
