"""`python -m atopipe.pipeline` is the same as `atopipe`."""

import sys

if __name__ == "__main__":
    # Python puts the working directory first, where a file named as a library would hide it.
    sys.path.append(sys.path.pop(0))

    from atopipe.pipeline.cli.main import main

    sys.exit(main())
