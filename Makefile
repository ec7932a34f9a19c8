# Everything runs in .venv, which is made where it is missing. PYTHON names the interpreter (>= 3.11).
PYTHON ?= python3

.PHONY: demo test check docs clean

demo: .venv/installed
	.venv/bin/python -m pinmem_cli.demo

test: .venv/installed
	.venv/bin/python -m pytest -n logical --dist worksteal

check: .venv/installed
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

docs: .venv/installed
	PINMEM_HOME=build/home .venv/bin/python -m sphinx -q -W --keep-going -b html docs build/site

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable '.[test,docs]'
	touch $@

clean:
	rm -rf .venv
