# Two commands do everything: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
export HF_HUB_OFFLINE ?= 1

.PHONY: run setup test test-fast bench lint clean

run: setup
	$(BIN)/python main_propeller.py --config configs/image.yaml input=data/cat.png

setup: $(STAMP)

# pip is asked once; the compiled kernels' cache is warm afterwards.
$(STAMP): requirements.txt requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	$(BIN)/python -c "from gs_propeller.raster_cpu import warm; warm()"
	touch $@

test: setup
	$(BIN)/python -m pytest -q --cov --cov-report=term

test-fast: setup
	$(BIN)/python -m pytest -q -m "not slow"

# gsplat is only a peer to measure against; without its dependencies it needs no CUDA to be imported.
bench: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gsplat==1.5.3
	$(BIN)/python -m bench.raster
	$(BIN)/python -m bench.asset
	$(BIN)/python -m bench.fidelity
	$(BIN)/python -m bench.speed
	$(BIN)/python -m bench.scaling
	$(BIN)/python -m bench.faults

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build/bench runs
