# Every target first installs what it needs into .venv, once: a stamp per set of extras remembers it.
#   make PYTHON=python3.12 test      with that interpreter (.venv is made anew if it has another version)
#   make demo ARGS="--epochs 3"      ARGS are passed on
SHELL := bash
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-slow test-all openclip sanitize bench gpu gpu-quick lint format clean

VENV := .venv
OPENCLIP := .venv-openclip
PYTHON :=
ARGS :=
RUN := $(VENV)/bin/python -m
SOURCES := $(wildcard csrc/*.* csrc/*/*.*)

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed-demo  ## train a CLIP on emoji art, about five minutes on two cores; report and a page to explore in runs/demo
	$(RUN) fastclip.train --logs runs --name demo $(ARGS)
	$(RUN) fastclip.explore "$$(ls -dt runs/demo*/ | head -n 1)"

test: $(VENV)/.installed-test  ## run the quick tests
	$(RUN) pytest -m "not slow" $(ARGS)

test-slow: $(VENV)/.installed-test $(OPENCLIP)/.installed  ## run the slow tests
	$(RUN) pytest -m slow $(ARGS)

test-all: test test-slow sanitize  ## run all tests

openclip: $(OPENCLIP)/.installed  ## prepare an environment with open_clip, for the slow tests that compare with it

sanitize: $(VENV)/.installed-test  ## run the C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer
	$(VENV)/bin/cmake -S . -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM="$(abspath $(VENV))/bin/ninja" \
	  -DPython_EXECUTABLE="$(abspath $(VENV))/bin/python" -Dpybind11_DIR="$$($(RUN) pybind11 --cmakedir)" \
	  -DFASTCLIP_SANITIZE="address;undefined"
	$(VENV)/bin/ninja -C build/sanitize kernels_test
	FASTCLIP_ISA=baseline build/sanitize/kernels_test
	build/sanitize/kernels_test  # the best instruction set of this processor

bench: $(VENV)/.installed-bench  ## time the backends against plain torch: a table, then pytest-benchmark
	$(RUN) benchmarks --quick $(ARGS)
	$(RUN) pytest benchmarks

# The interpreter that has what they need, as it is; a machine with a GPU need not have a network.
ON_GPU = "$$(PYTHON="$(PYTHON)" bash tools/gpu_python.sh $(VENV))" -m benchmarks gpu

gpu:  ## check, then time the kernels on this machine's GPU, ten minutes; results as JSON
	$(ON_GPU) $(ARGS)

gpu-quick:  ## the same in less than three minutes
	$(ON_GPU) --quick $(ARGS)

lint: $(VENV)/.installed-all  ## check style and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	PYTHONHASHSEED=0 $(VENV)/bin/mypy  # what mypy infers for mixed tuples depends on the order of sets
	$(VENV)/bin/clang-format --dry-run -Werror $(SOURCES)

format: $(VENV)/.installed-all  ## put style in order
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format
	$(VENV)/bin/clang-format -i $(SOURCES)

clean:  ## remove build products and caches; .venv's packages and runs/ stay
	rm -rf build dist *.egg-info fastclip/_C.*.so fastclip/_build_failure.txt
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks $(VENV)/.installed-*
	find fastclip benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A PYTHON given by hand is looked at every time: .venv may have been made with another.
$(VENV)/.installed-%: pyproject.toml setup.py CMakeLists.txt constraints.txt tools/setup.sh $(SOURCES) $(if $(PYTHON),FORCE)
	@PYTHON="$(PYTHON)" bash tools/setup.sh $(VENV) $*
	@touch $@

$(OPENCLIP)/.installed: $(VENV)/.installed-test tools/openclip.sh
	@bash tools/openclip.sh $(VENV) $(OPENCLIP)
	@touch $@

.PHONY: FORCE
FORCE:
