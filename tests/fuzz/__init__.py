"""Feeds pinmem damaged and hostile inputs of every format that it reads from outside.

`python -m tests.fuzz --inputs 20000 --seed 0 --output counts.json` runs the long form.
"""
