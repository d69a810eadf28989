# Two commands do everything: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
export HF_HUB_OFFLINE ?= 1

.PHONY: run app setup web test test-fast coverage bench blender docs lint clean

run: setup
	$(BIN)/python main_propeller.py --config configs/image.yaml input=data/cat.png prior=pocket

# The page, http://127.0.0.1:7860.
app: $(VENV)/.app
	$(BIN)/python gradio_app.py

$(VENV)/.app: $(STAMP) requirements-app.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-app.txt
	touch $@

setup: $(STAMP)

# pip is asked once; the compiled kernels' cache is warm afterwards. The pinned packages have wheels for these Pythons.
FITS := import sys; v = sys.version_info; (3, 11) <= v[:2] <= (3, 13) or \
	sys.exit("Python 3.11 to 3.13 is needed, this is %d.%d: make run PYTHON=python3.12" % (v[0], v[1]))
$(STAMP): requirements.txt requirements-dev.txt requirements-docs.txt
	@test -x $(BIN)/python || $(PYTHON) -c '$(FITS)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	$(BIN)/python -c "from gs_propeller.scenes.gaussians.raster.cpu import warm; warm()"
	$(BIN)/python -c "from gs_propeller.scenes.fields.march import warm; warm()"
	$(BIN)/python -c "from gs_propeller.scenes.tetrahedra.scene import warm; warm()"
	$(BIN)/python -c "from gs_propeller.mesh.render import warm; warm()"
	$(BIN)/python -c "from gs_propeller.app.asset import warm; warm()"
	touch $@

# What the tests of written files need beyond Python: a machine without npm, or where chromium is missing and
# cannot be installed, skips those tests and says so.
web:
	@if command -v npm > /dev/null && ! test -d tests/web/node_modules; then \
		npm ci --prefix tests/web --silent --no-audit --no-fund || echo "npm ci failed: those tests are skipped"; fi
	@if ! command -v chromium > /dev/null && command -v apt-get > /dev/null && test "$$(id -u)" = 0; then \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } > /dev/null 2>&1 \
		|| echo "chromium could not be installed: its test is skipped"; fi

# Two workers, each with one thread (tests/conftest.py). A worker keeps to its half of the files, whose tests share what
# is dear, and takes over part of the other's once it is through.
WORKERS ?= 2
TESTS := -m pytest -q --numprocesses $(WORKERS) --dist worksteal

test: setup web $(VENV)/.app
	$(BIN)/python $(TESTS)

# Measuring it costs a sixth of the tests' time.
coverage: setup web $(VENV)/.app
	$(BIN)/python $(TESTS) --cov --cov-report=term

test-fast: setup
	$(BIN)/python $(TESTS) -m "not slow"

# gsplat is only a peer to measure against; without its dependencies it needs no CUDA to be imported.
bench: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gsplat==1.5.3
	$(BIN)/python -m bench.raster
	$(BIN)/python -m bench.asset
	$(BIN)/python -m bench.mesh
	$(BIN)/python -m bench.prior
	$(BIN)/python -m bench.elevation
	$(BIN)/python -m bench.text
	$(BIN)/python -m bench.text --nouns --only sds
	$(BIN)/python -m bench.paper
	$(BIN)/python -m bench.fidelity
	$(BIN)/python -m bench.speed
	$(BIN)/python -m bench.scaling
	$(BIN)/python -m bench.faults

# The add-on's test in Blender itself (bpy 5.0.1 has wheels for Python 3.11 alone, and 370 MB), which `make test` skips.
BLENDER := build/blender
blender: setup
	test -x $(BLENDER)/bin/python || $(BIN)/python -m venv $(BLENDER)
	$(BLENDER)/bin/python -m pip install --quiet --disable-pip-version-check bpy==5.0.1
	PROPELLER_BPY_PYTHON=$(BLENDER)/bin/python $(BIN)/python -m pytest -q tests/test_blender.py

# The site, into build/site; a warning is an error (but for --quiet, which counts none).
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build/bench build/site $(BLENDER) runs
