"""Run `pinmem` as `python -m pinmem_cli`."""

from pinmem_cli.app import main

main()
