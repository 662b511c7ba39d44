# make serve [TP=2] [PP=1] [ARGS='port=0 ...']   the default model, unless ARGS has model=
# make test, make lint, make clean
# VENV=DIRECTORY uses an environment that exists, and installs there only what it lacks.

TP ?= 2
PP ?= 1
ARGS ?=
VENV ?=

ENV := $(abspath $(or $(VENV),.venv))
KIND := $(if $(VENV),given,own)
PYTHON := "$(ENV)/bin/python"
export PATH := $(ENV)/bin:$(PATH)

.PHONY: serve test lint clean environment test-environment model

# Ctrl-C asks the ranks to drain, and leaves torchrun to end when they have: no traceback of its own.
SIGNALS := --signals-to-handle SIGTERM,SIGHUP,SIGQUIT
# torchrun is `python -m torch.distributed.run`; so it is found in every kind of environment.
RANKS := $(shell echo $$(($(TP) * $(PP))))
CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
SERVE := --nproc-per-node $(RANKS) launch/serve.py +tp=$(TP) $(if $(filter-out 1,$(PP)),pp=$(PP)) $(ARGS)

serve: export OMP_NUM_THREADS ?= $(shell echo $$(($(CORES) > $(RANKS) ? $(CORES) / $(RANKS) : 1)))
serve: environment $(if $(findstring model=,$(ARGS)),,model)
	$(info torchrun $(strip $(SERVE)))
	@trap 'pkill -TERM -P $$pid || kill -TERM $$pid' INT TERM; \
	$(PYTHON) -m torch.distributed.run $(SIGNALS) $(SERVE) & pid=$$!; \
	while wait $$pid; code=$$?; kill -0 $$pid 2>/dev/null; do :; done; \
	exit $$code

test: lint
	$(PYTHON) -m launch.fetch
	$(PYTHON) -m pytest -n 2

lint: test-environment
	$(PYTHON) -m ruff check
	$(PYTHON) -m mypy
	lint-imports

environment:
	@.ci/environment "$(ENV)" $(KIND)

test-environment:
	@.ci/environment "$(ENV)" $(KIND) test

model: environment
	@$(PYTHON) -m launch.fetch

clean:
	rm -rf .venv build dist outputs multirun tessera.egg-info .hypothesis .import_linter_cache \
		.mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
