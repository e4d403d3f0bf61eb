# Few targets, kept dull. Each works alone from a clean clone; what it installs goes into .venv and nowhere else.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
NATIVE = find csrc tests/native -name '*.h' -o -name '*.cpp' -o -name '*.cu'

.PHONY: build demo test test-oldest bench check format gpu dist-check clean

build: .venv/.installed               ## compile what changed in csrc/
	@$(BIN)/python setup.py -q build_ext --inplace

demo: build                           ## both experiments in about a minute
	$(BIN)/thickets demo

test: build                           ## the test suite, a process per core
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --dist loadfile

test-oldest: build                    ## the tests of language models with the oldest transformers that is served
	$(BIN)/python -m pip install -q --disable-pip-version-check --upgrade --no-deps --target build/oldest \
	  transformers==4.57.6 huggingface-hub==0.36.2 tokenizers==0.22.2 requests==2.34.2 charset-normalizer==3.5.2 urllib3==2.8.0 certifi
	PYTHONPATH=build/oldest $(BIN)/python -m pytest -n auto --dist loadfile tests/test_transformers_*.py tests/test_generation*.py \
	  tests/test_language_*.py tests/test_cli_language.py tests/test_vllm_*.py tests/test_arithmetic.py

bench: build                          ## micro-benchmarks
	$(BIN)/python -m pytest benchmarks -o python_files='bench_*.py' --benchmark-only

check: build .venv/.checkers          ## linters, formatters, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(NATIVE) | xargs $(BIN)/clang-format --dry-run -Werror
	@rm -rf build/mypy && mkdir -p build/mypy/thickets
	@ln -s $(CURDIR)/python/* $(CURDIR)/triton_kernels build/mypy/thickets
	MYPYPATH=build/mypy $(BIN)/mypy -p thickets

format: .venv/.checkers               ## rewrite the sources as `make check` wants them
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(NATIVE) | xargs $(BIN)/clang-format -i

gpu:                                  ## on a machine with a GPU, by its own Python: build, test, measure, write the tables
	$(PYTHON) -m benchmarks.gpu

dist-check: .venv/.checkers           ## the source distribution, and the wheel built from it alone
	rm -rf build/dist
	$(BIN)/python -m build --outdir build/dist .
	$(BIN)/python -m zipfile -l build/dist/*.whl
	ls -l build/dist

clean:                                ## everything that was built; .venv stays
	rm -rf build python/*.so *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

# Build requirements first and no isolation: an isolated build would fetch them a second time.
.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) setuptools wheel pybind11 ninja
	$(PIP) --no-build-isolation -e '.[test]'
	@touch $@

.venv/.checkers: .venv/.installed
	$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@
