"""`python -m adbench.figures KIND RUN [RUN ...] --out FILE`: finished runs side by side, as the papers' figures show"""

import sys

from adbench.studies.figures import main

if __name__ == "__main__":
    sys.exit(main())
