"""`python -m experiments.lab`: the grids. Thin, so that what worker processes are given has importable names."""

import sys

from experiments.lab.grids import main
from pivotune.errors import PivotuneError

try:
    sys.exit(main())
except PivotuneError as error:
    sys.exit(f"error: {error}")
