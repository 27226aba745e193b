"""`python -m adbench.corruptions`: a contact sheet of the artificial defects that SSAE would train on."""

import sys

from adbench.studies.corruptions import main

if __name__ == "__main__":
    sys.exit(main())
