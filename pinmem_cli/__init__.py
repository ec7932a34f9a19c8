"""The command line of pinmem: parses, prints and exits; the work is done by `pinmem_core`."""
