"""`python -m atopipe.pipeline` is the same as `atopipe`."""

import sys

from atopipe.pipeline.cli.main import main

sys.exit(main())
