# Two commands do everything: `make try` and `make test`. The rest is for people who change the code.

PYTHON ?= python3
BIN := .venv/bin
# A real file of this repository, and the rest of one of its lines.
TRY ?= lsp_server/cli.py:370:22 --until 370:48

.PHONY: try test check gpu clean

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

# On a GPU machine with torch, tokenizers, safetensors, tqdm and pytest installed; the test settings of
# pyproject.toml, which need the plugins of the language server's tests, are left aside. Goes on training the shipped checkpoint; a packed corpus
# lies in corpus/ (made by `mezzotint train FOLDERS...`, which keeps it in RUN/corpus).
GPU_PYTHON ?= python3
GPU_MINUTES ?= 20
gpu: ## the gpu tests, then training from the shipped checkpoint
	$(GPU_PYTHON) -m pytest -q -rs -c /dev/null --rootdir . tests/model/test_gpu.py
	$(GPU_PYTHON) -m model.training corpus --out runs/gpu --from model/weights \
	  --minutes $(GPU_MINUTES) --windows 64 --device cuda --json

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
