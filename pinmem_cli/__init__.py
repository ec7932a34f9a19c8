"""The command line of pinmem: parses, prints and exits; the work is done by `pinmem_core`."""

from pinmem_cli.idle_threads import let_idle_threads_sleep  # counts from here on

__all__ = ["let_idle_threads_sleep"]
