# Two commands: `make demo` and `make test`. Both make what they need first.

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := demo
.PHONY: demo test check clean

# What users install, held to the versions in constraints.txt.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

# What developers need besides.
.venv/installed-dev: .venv/installed
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["dev"], sep="\n")' > .venv/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement .venv/dev.txt
	touch $@

# Four processes train four blocks in a pipeline; then two methods beside backpropagation.
demo: .venv/installed
	$(BIN)/onward train one-pass --data digits --epochs 20 --processes 4 --out build/demo/pipeline --overwrite
	rm -rf build/demo/compare
	$(BIN)/onward compare one-pass mono-forward --data digits --epochs 20 --set network.widths=500,500 --set plan.validate_every=1 --seeds 1 --out build/demo/compare

# With bytecode, whatever the environment says of it: two hundred processes read it.
test: .venv/installed-dev
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n logical --dist loadscope -m "not slow" $(ARGS)

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32

clean:
	rm -rf .venv build
