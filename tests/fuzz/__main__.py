"""The command: `python -m tests.fuzz`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the makers of odd files are, too

from fuzz.run import main

if __name__ == "__main__":
    sys.exit(main())
