# `make demo` and `make test` each do all their own set-up; nothing else has to be run first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# torch, what is built beside it, and the CUDA libraries it asks for differ by machine: they carry no pinned hash.
TORCH_BUILD := torch triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti \
	nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand \
	nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink \
	nvidia-nvshmem-cu13 nvidia-nvtx torchvision
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint doctest check docs notebooks bench lock clean
demo: $(VENV)/core
	$(BIN)/jaxunlearn demo --out demo-run

test: $(VENV)/test
	$(BIN)/python -m pytest -n 2 --dist worksteal tests

doctest: $(VENV)/test
	$(BIN)/python -m pytest --doctest-modules jaxunlearn
	$(BIN)/python -m pytest --doctest-glob='*.md' README.md CONTRIBUTING.md docs/guides

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

check: test lint doctest docs

# Into docs/_build/html, from docstrings, guides and notebooks; a warning is an error.
docs: $(VENV)/test
	$(BIN)/sphinx-build -b html -W --keep-going -q docs docs/_build/html

# Made anew from examples/ and executed; needed when an example changes.
notebooks: $(VENV)/test
	$(BIN)/python docs/make_notebooks.py

bench: $(VENV)/test
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/hvp_throughput.py --sizes 1M
	$(BIN)/python benchmarks/solvers.py

$(VENV)/core: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxunlearn needs Python 3.11 or newer; run make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --no-deps --require-hashes -r constraints.txt
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/test: $(VENV)/core
	$(PIP) install --quiet torch==2.13.0
	@touch $@

# Resolve the ranges of pyproject.toml anew into exact, hashed versions.
lock: $(VENV)/core
	$(PIP) install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra test --universal --fork-strategy fewest --python-version 3.11 \
		--generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
		$(addprefix --no-emit-package ,$(TORCH_BUILD)) --upgrade -o constraints.txt

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache docs/_build docs/api docs/notebooks
