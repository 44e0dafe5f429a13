# Two commands do everything: `make demo` and `make test`. Both make what they need in .venv.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
# uv resolves in seconds what takes pip minutes; where it finds no index, as behind a mirror that only pip knows, pip does it.
install = $(BIN)/uv pip install --quiet --python $(BIN)/python -c deploy/versions.txt -e ".[$(EXTRAS)]" || \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c deploy/versions.txt -e ".[$(EXTRAS)]"

OGIVE_DATA ?= ../shared/data

# Of JupyterHub; a program of Node.js, which comes with the Python packages.
PROXY := .hub/node_modules/.bin/configurable-http-proxy

.PHONY: demo yahtse hub proxy lock test check docs fix clean wheel-test bench bench-series chaos memory scale

# The versions that CI has tested, in deploy/versions.txt: those of the image, too.
$(VENV)/.installed: EXTRAS := test,docs,interop
$(VENV)/.installed: pyproject.toml deploy/versions.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(install)
	touch $@

# PyTorch, for tests of training only: large where the index has no build for the CPU alone, which pip prefers if it has.
$(VENV)/.torch: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c deploy/versions.txt "torch==2.13.0"
	touch $@

demo: $(VENV)/.installed  ## the whole line on a synthetic glacier, under five minutes
	$(BIN)/ogive demo ogive-demo

yahtse: $(VENV)/.installed  ## a real pair of Landsat 8 scenes, and the tables of docs/yahtse.md; needs OGIVE_DATA
	mkdir -p yahtse
	cp -f $(OGIVE_DATA)/imagery/yahtse_landsat8_2016/* yahtse
	cp -f $(OGIVE_DATA)/outlines/st_elias_rock/StEliasMtn_utm7v_rock.gmt yahtse/rock.gmt
	$(BIN)/ogive items yahtse -o yahtse/items.json
	$(BIN)/ogive run docs/yahtse.yaml
	$(BIN)/python docs/yahtse.py yahtse/result

hub: $(VENV)/.installed $(PROXY)  ## JupyterHub with Dask Gateway on this machine; prints where, and the password
	$(BIN)/python -m ogive.testing.hub --folder .hub/users $(if $(PORT),--port $(PORT))

proxy: $(PROXY)  ## what the hub needs from npm

$(PROXY): $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" npm install --prefix .hub --no-audit --no-fund --loglevel error configurable-http-proxy@5.3.0

test: check $(PROXY)  ## everything: style, types, doctests, docs, tests, wheel
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.torch  ## style, types, docs, known faults of packages; doctests run with the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python .ci/audit.py

bench: EXTRAS := bench
bench: $(VENV)/.installed  ## speed and accuracy beside other software; fails when a speed ratio has fallen by 20 %
	$(install)
	NUMBA_NUM_THREADS=1 OGIVE_DATA=$(OGIVE_DATA) $(BIN)/python benchmarks/tracking.py --check benchmarks/baseline.json

bench-series: $(VENV)/.installed  ## the inversion beside TICOI, fails at -20 % of a ratio; a whole ITS_LIVE cube
	NUMBA_NUM_THREADS=1 OGIVE_DATA=$(OGIVE_DATA) $(BIN)/python benchmarks/inversion.py --check benchmarks/series.json
	OGIVE_DATA=$(OGIVE_DATA) $(BIN)/python benchmarks/real_series.py

chaos: $(VENV)/.installed  ## every fault by the hundred, under two hours
	NUMBA_NUM_THREADS=1 $(BIN)/python -m ogive.testing.chaos

memory: $(VENV)/.installed  ## peak memory of 100 kinds of blocks beside what explain says
	NUMBA_NUM_THREADS=1 $(BIN)/python benchmarks/memory.py

scale: $(VENV)/.installed  ## 10^5 blocks through one scheduler
	$(BIN)/python benchmarks/scale.py

lock:  ## deploy/versions.txt anew, after a change of pyproject.toml. Versions that still fit are kept
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --custom-compile-command "make lock" \
	  --extra test --extra docs --extra interop --extra notebook --extra cuda12 -o deploy/versions.txt pyproject.toml

docs: $(VENV)/.installed  ## the documentation as a site, under site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

fix: $(VENV)/.installed  ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove everything that make made
	rm -rf $(VENV) .hub site dist build ogive-demo yahtse .pytest_cache .mypy_cache .ruff_cache .hypothesis
