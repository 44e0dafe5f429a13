"""`python -m ogive.testing.chaos`."""

import sys

from . import main

sys.exit(main())
