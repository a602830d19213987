"""`python -m lfp_lens` is the command `lfp-lens`."""

import sys

from lfp_lens.cli import main

if __name__ == "__main__":
    sys.exit(main())
