# make demo   sets everything up and trains a small Vision Transformer on handwritten digits
# make test   sets everything up and runs the whole test suite
# make check  format, lint and types, as CI runs them
# make lock   pins the newest versions again

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test check format lock setup clean
.DEFAULT_GOAL := demo

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh tools/setup.sh
	@touch "$@"

demo: $(READY)
	@$(BIN)/vitreous demo

# tests start hundreds of processes: none must compile all of torch anew
test: $(READY)
	@sh tools/browser.sh
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(PYTEST_ARGS)

check: $(READY)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright

format: $(READY)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: $(READY)
	@$(BIN)/uv pip compile --quiet --universal --no-emit-index-url --no-header --python-version 3.11 \
		--upgrade $(foreach extra,demo data jpeg vtab plot umap dev,--extra $(extra)) -o requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
