"""`python -m adbench.fuse`: the scores of IGD's two scales, trained apart, added. Source: Chen et al. 2022, Eq. 13."""

import sys

from adbench.studies.fuse import main

if __name__ == "__main__":
    sys.exit(main())
