"""``python -m sparsec``: the command line."""

from __future__ import annotations

import sys

from sparsec.cli import main

sys.exit(main())
