# Everything starts here; `make help` lists it. bootstrap.py does the set-up and says what to do when it cannot.
# Another Python: make learn PYTHON=python3.12

VENV := .venv
BIN := $(VENV)/bin
SETUP = sh -c 'for p in "$$@"; do \
	  if "$$p" -c "import sys; sys.exit(sys.version_info < (3, 6))" >/dev/null 2>&1; then exec "$$p" bootstrap.py $(if $(PYTHON),--python "$(PYTHON)",) --extras $(1); fi; \
	done; \
	echo "qtutor: no Python was found. The course needs Python 3.11 or newer: install one and call make again," \
	  "or name one with make PYTHON=/path/to/python3." >&2; exit 1' \
	bootstrap $(if $(PYTHON),"$(PYTHON)",) python3 python3.14 python3.13 python3.12 python3.11 python

# The course needs no download: a test that tries one has to fail here, not only on a machine without network.
# And its models are small: beside other work, threads that wait for each other take a hundred times as long as one.
# matplotlib's cache of fonts stays in the clone: one of another clone may name fonts that are no longer there.
TEST_ENV = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 MPLCONFIGDIR="$(CURDIR)/build/matplotlib"

# Two at a time, a file on one core each: every test computes on one thread (OMP_NUM_THREADS above).
BOTH_CORES = -n 2 --dist loadfile

# Runs notebooks and compares their outputs; numbers may differ a little (tests/notebook_numbers.py).
NBVAL = $(BIN)/python -m pytest -p tests.notebook_numbers --nbval --nbval-current-env \
  --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout 120

.PHONY: help learn test setup lint unit notebooks capabilities engines package book browser format clean
.DEFAULT_GOAL := help

help:
	@echo "make learn    set up, make your workspace in learn/, and open JupyterLab on the first chapter"
	@echo "make test     set up, lint, run the unit tests, then run every notebook and compare its outputs"
	@echo "make capabilities"
	@echo "              run a chapter with the sums of older CPUs (those with AVX2, and without) and compare its outputs"
	@echo "make engines  set up with llama.cpp, vLLM, gptqmodel and others (6 GB) and a real model, and compare with what they compute"
	@echo "make package  set up, build wheel and sdist, and try them outside of the repository"
	@echo "make book     set up, and build the chapters as a static site in book/_build/html"
	@echo "make browser  set up, build the book, and try it and the chapters in JupyterLab in a real browser"
	@echo "make format   format code and notebooks, and mend what the linter can mend"
	@echo "make clean    remove .venv and caches (your workspace in learn/ stays)"
	@echo "              PYTHON=python3.12 chooses the Python that .venv is made with"

learn:
	@$(call SETUP,learn)
	@$(BIN)/qtutor learn learn

setup:
	@$(call SETUP,learn$(comma)test)

# One after the other even under make -j: each of the two keeps both cores busy.
test: setup
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory notebooks

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

unit:
	$(TEST_ENV) $(BIN)/python -m pytest $(BOTH_CORES) tests

notebooks:
	$(TEST_ENV) $(NBVAL) $(BOTH_CORES) notebooks

# The sums of CPUs without AVX-512, and without AVX2: torch computes them here when it is told to. Chapter 01 is cheap
# and differs on each of them.
capabilities: setup
	for capability in avx2 default; do \
	  $(TEST_ENV) ATEN_CPU_CAPABILITY=$$capability $(NBVAL) notebooks/01_numbers.ipynb || exit 1; \
	done

# Skipped tests are shown: with the engines there, none of the comparisons with them may be among these. What contradicts
# the course's requirements has environments of its own, build/engines-venv and build/vllm-venv. Chapter 11 is about
# SmolLM2, which is here: so its outputs are compared, too (`make test` only runs it, with the embedded decoder).
engines:
	@$(call SETUP,learn$(comma)test$(comma)engines-prebuilt)
	@$(BIN)/python tests/engines/environments.py
	$(TEST_ENV) GGML_NO_BACKTRACE=1 $(BIN)/python -m pytest $(BOTH_CORES) tests/gguf tests/formats tests/methods/test_bnb.py
	$(TEST_ENV) SERVING_LOADS=300 $(BIN)/python -m pytest tests/serving/test_engine.py -k generate
	$(TEST_ENV) PYTHONPATH="$(CURDIR)" build/engines-venv/bin/python -m pytest tests/engines --ignore tests/engines/test_in_vllm.py
	$(TEST_ENV) PYTHONPATH="$(CURDIR)" build/vllm-venv/bin/python -m pytest tests/engines/test_in_vllm.py
	$(TEST_ENV) PYTHONPATH="$(CURDIR):build/engines-venv/triton" $(BIN)/python -m pytest tests/runtime/kernels/test_cuda.py
	$(TEST_ENV) $(NBVAL) notebooks/11_your_model.ipynb

# What somebody gets who has no clone. Built without isolation: hatchling is one of the tested versions.
package:
	@$(call SETUP,learn$(comma)test$(comma)package)
	$(TEST_ENV) $(BIN)/python -m pytest tests/package

book:
	@$(call SETUP,learn$(comma)book)
	@$(BIN)/python book/build.py

# The extras of all three, in one call: the tests work in JupyterLab and read the book.
browser:
	@$(call SETUP,learn$(comma)test$(comma)book$(comma)browser)
	@sh tests/browser/chromium.sh
	@$(MAKE) --no-print-directory book
	$(TEST_ENV) $(BIN)/python -m pytest tests/browser

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist book/_build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

comma := ,
