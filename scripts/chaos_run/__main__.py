"""`python -m scripts.chaos_run`: see `scripts.chaos_run.command`."""

import sys

from scripts.chaos_run.command import main

if __name__ == "__main__":
    sys.exit(main())
