"""`python -m adbench.orthogonality RUN`: how nearly a trained network projects orthogonally onto normal images."""

import sys

from adbench.studies.orthogonality import main

if __name__ == "__main__":
    sys.exit(main())
