# Every way in. `make help` lists the targets.
SHELL := /bin/bash
# A distribution's Python is compiled with profiles of its use, one that was compiled on this machine mostly without: the one
# imports PyTorch a quarter faster than the other.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3.1[1-9]) python3)
VENV   := .venv
BIN    := $(VENV)/bin
UV     := build/uv/bin
# Tests wait for a cluster as often as they compute: four workers keep two cores busy. A file's tests stay together.
PARALLEL ?= --numprocesses 4 --dist loadfile --no-loadscope-reorder
# Hundreds of processes import PyTorch: what one has compiled is kept for the others.
unexport PYTHONDONTWRITEBYTECODE
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# The lock file decides what is installed; the stamp makes a second run free and an interrupted one start over.
$(VENV)/.installed: requirements.lock requirements-uv.lock pyproject.toml
	@echo "==> Python environment in $(VENV) (first time: about 3 GB to fetch, PyTorch above all)"
	@test -x $(UV)/python || python3 -m venv $(UV:/bin=)
	@$(UV)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@test -x $(BIN)/python || $(UV)/uv venv --quiet --allow-existing --python "$(PYTHON)" $(VENV)
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV)/uv pip sync --compile-bytecode --require-hashes requirements-uv.lock requirements.lock
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(UV)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: setup
setup: $(VENV)/.installed ## the Python environment, pinned

.PHONY: lint
lint: setup ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error

.PHONY: system
system: ## system packages: bubblewrap, in which the cluster's nodes run pods
	@command -v bwrap >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "==> installing bubblewrap"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	      apt-get install -qq --yes --no-install-recommends bubblewrap >/dev/null; \
	  else \
	    echo "The cluster's nodes run pods in bubblewrap, which is missing: install your system's package of that" \
	      "name (Debian, Ubuntu: sudo apt-get install bubblewrap; Fedora: sudo dnf install bubblewrap)." >&2; exit 1; \
	  fi; }

.PHONY: tools
tools: setup ## the control plane, kubectl and Helm, built once into the user's cache (about nine minutes on two cores)
	@$(BIN)/python -m devcluster tools

.PHONY: cluster-up
cluster-up: system tools ## a Kubernetes control plane on this machine (NAME=dev UP="--nodes 1 --gpus 1 --s3")
	@$(BIN)/python -m devcluster up --name $(or $(NAME),dev) $(UP)

.PHONY: cluster-down
cluster-down: setup ## end it and forget its data
	@$(BIN)/python -m devcluster down --name $(or $(NAME),dev)

.PHONY: demo
demo: setup system ## one job from kubectl apply to a model version (DATASET=path/to/voc.zip EPOCHS=n)
	@$(BIN)/python -m devcluster tools >/dev/null
	@$(BIN)/python -m demo $(if $(DATASET),--dataset "$(DATASET)") $(if $(EPOCHS),--epochs $(EPOCHS))

.PHONY: demo-down
demo-down: setup ## end the demo's cluster and forget its data
	@$(BIN)/python -m devcluster down --name demo

.PHONY: test
test: setup system tools ## all tests, those against the real control plane included
	$(BIN)/pytest $(PARALLEL) --ignore tests/kueue

.PHONY: test-quick
# These wait for nothing: as many workers as cores.
test-quick: PARALLEL := --numprocesses auto --dist worksteal
test-quick: setup ## no cluster, no training: under a minute
	$(BIN)/pytest $(PARALLEL) -m "not cluster and not training"

.PHONY: kueue
kueue: setup system tools ## executions under a real Kueue, which is built once (some 15 minutes)
	@PYTHONPATH=.:bench/operator $(BIN)/python -c "from peers import KUEUE, programs_folder; programs_folder(KUEUE)"
	$(BIN)/pytest tests/kueue

.PHONY: fuzz
fuzz: setup ## damaged and malicious inputs, for FUZZ=600 seconds, from input SEED=100000 on
	$(BIN)/python -m tests.fuzz.run annotation=2000 json=1000 image=1000 zip=500 spec=1000 \
	  --seconds $(or $(FUZZ),600) --seed $(or $(SEED),100000) --folder .fuzz

.PHONY: chaos
chaos: setup system tools ## kills, faults and edits of every kind against the operator, judged by the audit log (ROUNDS=100 SEED=1)
	$(BIN)/python -m tests.chaos --rounds $(or $(ROUNDS),100) --seed $(or $(SEED),1) $(CHAOS)

.PHONY: crds
crds: setup ## render the CRDs (for kubectl and the chart) and their reference from the models
	$(BIN)/python -m trainyard_api.crd crds helm/trainyard/files/crds
	$(BIN)/python -m trainyard_api.reference docs/reference.md

.PHONY: lock
lock: ## renew the lock file within the ranges of pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --extra dev --generate-hashes --no-emit-index-url --python-version 3.11 -q -U -o requirements.lock

.PHONY: bench-data
bench-data: setup ## what one image costs on its way into a batch
	@OMP_NUM_THREADS=1 $(BIN)/python bench/trainer/data.py

.PHONY: bench-dataset
bench-dataset: setup ## reading datasets: from zip, prefix and S3, and training under a memory cap (ARGS="--mib 256 --parts check")
	@OMP_NUM_THREADS=1 $(BIN)/python bench/trainer/dataset.py $(ARGS)

.PHONY: bench-apply
bench-apply: setup ## apply → Job created, apply → first training step
	$(BIN)/python bench/operator/apply.py

.PHONY: bench-operator
bench-operator: setup ## a burst and a steady stream of jobs beside plain Jobs, Kueue and Kubeflow Trainer, on nodes of kwok (BENCH="--bursts 1000 5000 --check", BENCH="--waiting 15000 --slots 100 --restart")
	$(BIN)/python bench/operator/burst.py $(BENCH)

.PHONY: bench-intake
bench-intake: setup ## reports a second on one core, and forged ones refused (ARGS="--rate 500 --seconds 20 --check")
	@$(BIN)/python bench/operator/intake.py $(ARGS)

.PHONY: bench-failover
bench-failover: setup ## the leader is killed: how long until the next one decides (ARGS="--rounds 10 --check")
	@PYTHONPATH=. $(BIN)/python bench/operator/failover.py $(ARGS)

.PHONY: bench-train
bench-train: setup ## training speed against torchvision's SSDLite, and the work on data
	@OMP_NUM_THREADS=1 $(BIN)/python bench/trainer/speed.py

.PHONY: bench-catalogue
bench-catalogue: setup ## training speed of every architecture that may train on a CPU
	@OMP_NUM_THREADS=1 $(BIN)/python bench/trainer/catalogue.py

.PHONY: bench-life
bench-life: setup ## start of a trainer, an evaluation beside training, and its stop with the checkpoint on S3
	@OMP_NUM_THREADS=1 $(BIN)/python bench/trainer/life.py

.PHONY: bench-ddp
bench-ddp: setup ## two processes against one with two threads
	@$(BIN)/python bench/trainer/ddp.py

.PHONY: bench-accuracy
bench-accuracy: setup ## how good after so many CPU-minutes, on BCCD and on sets of other kinds (two hours and more)
	@OMP_NUM_THREADS=1 $(BIN)/python bench/trainer/accuracy.py

.PHONY: bench-map
bench-map: setup ## our mAP against faster-coco-eval and pycocotools: time, largest difference
	@OMP_NUM_THREADS=1 $(BIN)/python bench/trainer/map.py
