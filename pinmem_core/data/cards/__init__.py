"""Dataset cards, one file for each dataset: YAML, or a module that defines `CARD`."""
