# Two commands do everything: `make try` and `make test`. The rest is for people who change the code.

PYTHON ?= python3
BIN := .venv/bin
# A real file of this repository, and the rest of one of its lines.
TRY ?= lsp_server/check/indentation.py:91:5 --until 91:53

.PHONY: try test check vsix e2e gpu gpu-train clean

try: .venv/ready ## set up, get the default model (491 MB, once), then complete a real file and show the drafts
	$(BIN)/mezzotint download
	$(BIN)/mezzotint complete $(TRY) --film

test: .venv/ready-dev ## set up, then run everything that needs no GPU and no editor
	$(BIN)/python -m pytest -m "not gpu and not editor"

check: .venv/ready-dev ## what a change must pass before it is committed; under two minutes
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -m "not slow and not gpu and not editor"

vsix: .venv/ready ## editor-extension/mezzotint.vsix, with the wheel of the server in it; needs Node 22
	rm -rf editor-extension/wheel
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir editor-extension/wheel .
	npm ci --prefix editor-extension --ignore-scripts --no-audit --no-fund --loglevel=error
	npm --prefix editor-extension run package

e2e: ## real editors: VS Code, Neovim and Emacs; sets everything up (Debian 12)
	.ci/editor-tests

# On a GPU machine with our dependencies (`pip install -e .`) and pytest; the other tests' settings and
# plugins are left aside. Where tree-sitter is missing, the language server's requests are left out.
GPU_PYTHON ?= python3
# A backbone on that machine, as a path: one without a network needs it; an empty one is downloaded.
GPU_MODEL ?=
GPU_BACKBONE = $(or $(GPU_MODEL),$$($(GPU_PYTHON) -m model.backbone))
gpu: ## the gpu tests, then the benchmarks, into docs/benchmarks
	$(GPU_PYTHON) -m pytest -q -rs -c /dev/null --noconftest --rootdir . tests/model/test_gpu.py
	$(GPU_PYTHON) -m model.benchmarks --model "$(GPU_BACKBONE)" --device cuda --out docs/benchmarks
	if $(GPU_PYTHON) -c 'import tree_sitter'; then \
	  $(GPU_PYTHON) -m model.benchmarks keystrokes --model "$(GPU_BACKBONE)" --device cuda \
	    --out docs/benchmarks; fi

# There, too. A packed corpus lies in corpus/. Run again, it goes on (docs/training.md).
GPU_MINUTES ?= 20
GPU_WINDOWS ?= 16
gpu-train: ## the gpu tests, then the training of a denoiser; its last line is its score
	$(GPU_PYTHON) -m pytest -q -rs -c /dev/null --noconftest --rootdir . tests/model/test_gpu.py
	$(GPU_PYTHON) -m model.training corpus --backbone "$(GPU_BACKBONE)" --out runs/gpu \
	  --minutes $(GPU_MINUTES) --windows $(GPU_WINDOWS) --device cuda --json

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/ready-dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ .venv/ready

clean:
	rm -rf .venv .e2e build dist .pytest_cache .ruff_cache
