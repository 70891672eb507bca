"""`python -m atopipe.pipeline` is the same as `atopipe`."""

import sys

from atopipe.pipeline.cli import main

sys.exit(main())
