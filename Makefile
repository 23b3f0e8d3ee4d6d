# Two commands do everything: `make try` and `make test`. The rest is for people who change the code.

PYTHON ?= python3
BIN := .venv/bin
# A real file of this repository, and the rest of one of its lines.
TRY ?= lsp_server/cli.py:376:22 --until 376:48

.PHONY: try test check vsix e2e gpu gpu-train clean

try: .venv/ready ## set up, then complete a real file and show how the completion was denoised
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

# On a GPU machine with torch, numpy, tokenizers, safetensors, tqdm and pytest; the other tests' settings
# and plugins are left aside. What else is there is used: matplotlib (a plot), transformers (the peer),
# tree-sitter (the language server's requests).
GPU_PYTHON ?= python3
gpu: ## the gpu tests, then the benchmarks, into docs/benchmarks; under eight minutes on an H100
	$(GPU_PYTHON) -m pytest -q -rs -c /dev/null --noconftest --rootdir . tests/model/test_gpu.py
	$(GPU_PYTHON) -m model.benchmarks --device cuda --out docs/benchmarks
	if $(GPU_PYTHON) -c 'import tree_sitter'; then \
	  $(GPU_PYTHON) -m model.benchmarks keystrokes --device cuda --out docs/benchmarks; fi

# There, too. A packed corpus lies in corpus/. Run again, it goes on (docs/training.md).
GPU_MINUTES ?= 20
GPU_WINDOWS ?= 64
# A HumanEval-Infilling file, to score the trained model on; without it nothing is scored.
GPU_DATA ?=
GPU_SHAPE := --hidden-size 512 --layers 6 --context-tokens 1024
# Training goes on from the shipped checkpoint as soon as that has this shape.
GPU_FROM := $(if $(shell grep '"hidden_size": 512' model/weights/config.json),--from model/weights)
gpu-train: ## the gpu tests, then the training of the model to ship, then its score
	$(GPU_PYTHON) -m pytest -q -rs -c /dev/null --noconftest --rootdir . tests/model/test_gpu.py
	$(GPU_PYTHON) -m model.training corpus --out runs/gpu $(GPU_SHAPE) $(GPU_FROM) \
	  --minutes $(GPU_MINUTES) --windows $(GPU_WINDOWS) --device cuda --json
	$(GPU_PYTHON) -m model.evaluation n-grams --data corpus/heldout.jsonl.gz --model runs/gpu/checkpoint \
	  --device cuda --out runs/gpu/n_grams.json --save
	$(if $(GPU_DATA),$(GPU_PYTHON) -m model.evaluation infilling --data $(GPU_DATA) --cut single-line \
	  --model runs/gpu/checkpoint --device cuda --out runs/gpu/single-line.json --json)

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
