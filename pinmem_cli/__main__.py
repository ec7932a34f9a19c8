"""Lets `python -m pinmem_cli` do what `pinmem` does."""

from pinmem_cli.app import main

main()
