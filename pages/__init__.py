"""What makes the pages: tables between markers, the generated reference, the notebook, and pictures of the site.

`python -m pages` writes the tables anew, `make docs` builds the site, `make screenshots` draws its pictures.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
