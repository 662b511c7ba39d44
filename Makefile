# make serve [TP=2] [PP=1] [ARGS='port=0 ...'] [VENV=DIRECTORY]   serve a model, the default one unless ARGS says model=
# make test | lint | clean                                       VENV= takes an environment that exists

TP ?= 2
PP ?= 1
ARGS ?=
VENV ?=

ENV := $(abspath $(or $(VENV),.venv))
KIND := $(if $(VENV),given,own)
PYTHON := "$(ENV)/bin/python"
export PATH := $(ENV)/bin:$(PATH)

.PHONY: serve test lint clean environment test-environment model

# torchrun is `python -m torch.distributed.run`; so it is found in every kind of environment.
RANKS := $(shell echo $$(($(TP) * $(PP))))
SERVE := --nproc-per-node $(RANKS) launch/serve.py +tp=$(TP) $(if $(filter-out 1,$(PP)),pp=$(PP)) $(ARGS)

serve: environment $(if $(findstring model=,$(ARGS)),,model)
	@echo "torchrun $(strip $(SERVE))"
	@exec $(PYTHON) -m torch.distributed.run $(SERVE)

test: lint
	$(PYTHON) -m launch.fetch
	$(PYTHON) -m pytest

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
