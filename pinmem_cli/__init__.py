"""The command line of pinmem: parse, print and exit; `pinmem_core` does the work."""

from pinmem_cli.idle_threads import let_idle_threads_sleep  # counts from here on

__all__ = ["let_idle_threads_sleep"]
