# The two commands: `make demo` plays the example's life, `make test` proves that it works.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# How long the demo leaves its stack running afterwards: yes until `make down`, or no.
KEEP ?= yes

# docker compose, or Debian's docker-compose.
COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)
AIRFLOW_PORT ?= 8080
MLFLOW_PORT ?= 5001
POD_NAMESPACE ?= default
# What pods' images are built on: as all others, unless it is said, e.g. CUDA's.
TRAINING_BASE ?= $(BASE)
export AIRFLOW_PORT MLFLOW_PORT TRAINING_BASE

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo up down status test test-full proof lint full full-down full-secrets constraints clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# What runs needs less than what is tested: PyTorch alone is gigabytes where pip finds its CUDA build.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 15) else "Python 3.11 to 3.14 is needed, $(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing Airflow, MLflow, Feast and the rest into $(VENV); the first time takes a few minutes"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,postgres]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "Installing what the tests need, PyTorch among it"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(VENV)/installed ## Make the virtual environment
install-dev: $(VENV)/installed-dev ## The same with all that the tests need

demo: install ## Play 2013: train, approve, serve, drift, retrain (stack stays up; KEEP=no stops it)
	$(BIN)/python -m ml_lifecycle_airflow.stack demo --keep $(KEEP)

up: install ## Start the whole stack and print where it is
	$(BIN)/python -m ml_lifecycle_airflow.stack up

down: ## Stop the stack of `make up` or `make demo`
	@test -x $(BIN)/python && $(BIN)/python -m ml_lifecycle_airflow.stack down || true

status: ## Show each process of the stack with its state
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m ml_lifecycle_airflow.stack status; else \
	  echo "no stack was ever started here: make up starts one"; fi

lint: install-dev ## Ruff, mypy strict and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint ## Prove it: lint and every quick test
	$(BIN)/python -m pytest -m "not full and not proof" -n 2 --dist loadfile --no-loadscope-reorder

test-full: install-dev ## The demo, whole lives on a running stack, browser and fuzz tests (half an hour)
	$(BIN)/python -m pytest -m full -n 2 --dist loadfile --no-loadscope-reorder

proof: install-dev ## The long proofs: kills everywhere, scheduling, PostgreSQL, soak (hours on two cores)
	$(BIN)/python -m pytest -m proof

full: full-secrets ## The same demo through docker-compose.yaml (needs Docker only; KEEP=no takes it down)
	$(COMPOSE) build
	$(COMPOSE) up --detach
	$(COMPOSE) run --rm demo
	@if [ "$(KEEP)" = no ]; then $(COMPOSE) down --volumes; rm -rf .full; else \
	  echo "Airflow http://localhost:$(AIRFLOW_PORT)  MLflow http://localhost:$(MLFLOW_PORT)  passwords .full/airflow-passwords.json"; \
	  echo "stop    make full-down"; fi

full-down: ## Stop what `make full` left up, and remove its state
	$(COMPOSE) down --volumes
	rm -rf .full

full-secrets: ## Make the secrets that docker-compose.yaml mounts (pods in a cluster: KUBECONFIG=file POD_NAMESPACE=name)
	@PYTHONPATH=include:operators $(PYTHON) -m ml_lifecycle_airflow.stack.full_secrets .full \
	  --airflow-port $(AIRFLOW_PORT) --mlflow-port $(MLFLOW_PORT) --namespace $(POD_NAMESPACE) \
	  $(if $(filter command line,$(origin KUBECONFIG)),--kubeconfig $(KUBECONFIG))

constraints: ## Pin anew (needs make install-dev)
	@( printf '# Pins everything for every supported Python (3.11 to 3.14); made by `make constraints`, never by hand.\n# Why a range in pyproject.toml ends where it ends is said beside it there. Names no registry.\n'; \
	  $(BIN)/uv pip compile --quiet pyproject.toml --extra dev --extra xgboost --universal --python-version 3.11 \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate ) > constraints.new
	mv constraints.new constraints.txt

clean: down ## Remove the environment and all state
	rm -rf $(VENV) .run .demo dist build
