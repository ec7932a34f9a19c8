"""The command line of pinmem: parses, prints and exits; the work is done by `pinmem_core`."""

import os

# Threads that wait by spinning make a shared machine crawl. Must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
