PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo docs screenshots test lint clean

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(VENV)/.ready  ## segment a real volume in a Slicer scene; pictures and segments go to demo/
	$(BIN)/python -m pip install --quiet --no-deps nilearn==0.14.1
	$(BIN)/python Testing/demo/demo.py $(if $(VOLUME),--volume "$(VOLUME)") $(if $(LABEL),--label "$(LABEL)")

screenshots: $(VENV)/.ready  ## make all pictures of the documentation anew, in Resources/Screenshots
	$(BIN)/python -m pip install --quiet --no-deps nilearn==0.14.1
	$(BIN)/python Testing/demo/pictures.py

docs: $(VENV)/.ready  ## pages and API reference as HTML, in docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html

test: $(VENV)/.ready lint  ## set up everything, then check style and types and run the whole suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope

lint: $(VENV)/.ready  ## style, then types
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .mypy_cache build docs/_build docs/_api *.egg-info
