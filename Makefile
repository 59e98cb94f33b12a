# Two commands do everything: `make train-detr` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Extra Hydra overrides, e.g. ARGS="data=coco detector=detr_r50 trainer=ddp trainer.devices=8".
ARGS ?=
# Tests use one process per core with one thread each, so that they do not fight over the cores. A file stays in one
# process, which shares what its tests share.
TEST_WORKERS ?= auto

.DEFAULT_GOAL := help
.PHONY: help setup train-detr train-yolo ablation evidence demo test test-slow look-at-data bench-step bench-data bench-memory bench-index \
	bench-eval bench-logging bench-long bench-specialise bench-engines bench-control lint types docs check lock sample-data clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  \033[1m%-16s\033[0m %s\n", $$1, $$2}'

setup: $(STAMP) ## Create .venv with the locked dependencies and this package

# uv is taken from PATH, or installed with pip into the environment itself: nothing outside this folder changes.
$(STAMP): requirements.lock pyproject.toml
	@set -e; \
	if command -v uv >/dev/null 2>&1; then \
		UV=uv; [ -x $(BIN)/python ] || uv venv --quiet --python $(PYTHON) $(VENV); \
	else \
		[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); \
		$(BIN)/python -m pip install --quiet uv; UV=$(BIN)/uv; \
	fi; \
	$$UV pip install --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock; \
	$$UV pip install --python $(BIN)/python --no-deps --editable .
	@touch $@

train-detr: setup ## Train AnyDepth-DETR (the embedded sample unless ARGS says otherwise) and draw its depth curve
	$(BIN)/anydepth-train $(ARGS)

train-yolo: setup ## The same with AnyDepth-YOLO
	$(BIN)/anydepth-train detector=yolo_tiny $(ARGS)

ablation: setup ## Six arms of the method, two seeds each, and the page that compares them (60 to 90 minutes)
	$(BIN)/anydepth-train -m experiment=ablation $(ARGS)

evidence: setup ## Train the arms of the method and what it competes with, with intervals (half a day; docs/studies.md)
	$(BIN)/python scripts/evidence.py $(ARGS)

test: setup ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadscope --no-loadscope-reorder $(ARGS)

test-slow: setup ## Run the tests that take long (ARGS="--record" writes docs/slow-tests.md)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/slow_tests.py -n $(TEST_WORKERS) --dist loadscope $(ARGS)

demo: setup ## Serve a page that detects in pictures, videos and the webcam (ARGS="bundle port=8080")
	$(BIN)/anydepth-demo $(ARGS)

look-at-data: setup ## Draw training batches with their boxes (ARGS="data=custom data.root=... augmentation=yolo")
	$(BIN)/anydepth-data look $(ARGS)

bench-data: setup ## Images per second of the loader, beside torchvision's (ARGS="--data ROOT", --help)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/benchmark_data.py $(ARGS)

bench-memory: setup ## Memory of loader processes over five epochs of 20,000 images (Linux)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/benchmark_memory.py $(ARGS)

bench-step: setup ## Compare a step of any-depth training with a full-only step (ARGS="--help" lists options)
	GOMP_SPINCOUNT=20000 $(BIN)/python scripts/benchmark_step.py $(ARGS)

bench-index: setup ## Seconds and memory of a data set of COCO's size, beside pycocotools (Linux)
	$(BIN)/python scripts/benchmark_index.py $(ARGS)

bench-eval: setup ## Seconds of the COCO evaluation, and of evaluating five depths in one pass
	$(BIN)/python scripts/benchmark_evaluation.py $(ARGS)

bench-logging: setup ## What logging adds to a training step: silent, no logger, csv, wandb offline
	OMP_NUM_THREADS=1 $(BIN)/python scripts/benchmark_logging.py $(ARGS)

bench-long: setup ## Memory, open files, threads and step time over 2,000 steps (Linux)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/benchmark_long_run.py $(ARGS)

bench-specialise: setup ## Latency of the specialised network of a depth beside the detector, on the CPU
	GOMP_SPINCOUNT=20000 $(BIN)/python scripts/benchmark_specialise.py $(ARGS)

bench-engines: setup ## Speed of bundles in engines beside PyTorch and peers' exports (ARGS="--bundles FOLDER")
	$(BIN)/python scripts/benchmark_engines.py $(ARGS)

bench-control: setup ## Error of the latency controller, late frames and AP of the mix (ARGS="BUNDLE --data ROOT", --help)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/benchmark_control.py $(ARGS)

lint: setup ## Check style (ruff) and the layers of the architecture (import-linter)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup ## Check types (mypy --strict, no exemptions)
	$(BIN)/mypy

# The theme's notice about the future of MkDocs is no warning of this site.
docs: setup ## Build the documentation into site/ (offline; warnings are errors)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

check: lint types docs test ## Everything that CI runs

lock: ## Pin every dependency in requirements.lock; versions that still fit stay (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --group dev --group docs pyproject.toml -o requirements.lock

sample-data: setup ## Cut the embedded sample again from its source photographs (SOURCE=folder of the photographs)
	$(BIN)/python scripts/make_sample.py $(SOURCE)

clean: ## Remove the environment, caches and run outputs
	rm -rf $(VENV) site outputs multirun .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
