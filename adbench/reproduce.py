"""`python -m adbench.reproduce PAPER`: a paper's tables on the data in reach, then the report."""

import sys

from adbench.studies.reproduce import main

if __name__ == "__main__":
    sys.exit(main())
