"""``python -m hiermt``."""

from __future__ import annotations

import sys

from hiermt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
