# The verbs. Works from a fresh clone with git, make and Python 3.11 or newer; all else is installed into .uv and .venv.
.DEFAULT_GOAL := help
.PHONY: help install run check test test-slow real crossfit ui report up down status clean

PYTHON ?= python3
# uv: the one on the path if it starts, else one of the project's own
UV ?= $(shell uv --version >/dev/null 2>&1 && echo uv || echo .uv/bin/uv)

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
unexport PYTHONDONTWRITEBYTECODE  # without byte code every import compiles anew: seconds for each stage
unexport VIRTUAL_ENV PYTHONPATH

help:
	@echo "make run      install, run the pipeline in the sandbox (no key, no network, no GPU), print the result table"
	@echo "make test     install, then run the tests"
	@echo "make test-slow  the tests with servers and workers that are killed; 35 minutes and more"
	@echo "make check    install, then lint, format check, types, import rules, spelling"
	@echo "make real     run the pipeline on recorded real outputs (set ARMS_REAL_DATA) and print the result table"
	@echo "make crossfit  the claimed figures: grouped 5-fold cross-fitting, after make real; resumable"
	@echo "make ui       MLflow's pages on 127.0.0.1 (PORT=5000, WORKSPACE=. or e.g. workspaces/real): runs, curves, models"
	@echo "make report   the report of the last run, made where it is stale and opened in a browser (WORKSPACE=. as above)"
	@echo "make up       Prefect, MLflow and workers on 127.0.0.1 (PREFECT_PORT=4200, MLFLOW_PORT=5000, GPU_WORKERS=one a GPU)"
	@echo "make down     end all that make up started, and all that it began"
	@echo "make status   what runs, what is stale, which VLMs are new, who is champion, what was spent"
	@echo "make install  only install"
	@echo "make clean    remove what tools left (caches); data, models and environments stay"

install: .venv/.installed

.venv/.installed: pyproject.toml uv.lock $(filter .uv/bin/uv,$(UV))
	@$(UV) sync --quiet --frozen --all-extras
	@touch $@

.uv/bin/uv:
	@$(PYTHON) -m venv .uv
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check uv

run: export HF_HUB_OFFLINE := 1
run: install
	@dvc repro
	@python -m tasks.cascade_eval --show em
	@echo
	@echo "The sandbox's VLMs are small programs: these figures show that the loop works and claim nothing about real VLMs."
	@echo "Next, with .venv/bin on your PATH:"
	@echo "  make report                           one page: results with intervals, figures, sample cards, gates"
	@echo "  make ui                               MLflow's pages: runs, curves, the registered router with its card"
	@echo "  python -m tasks.register promote      the challenger against the champion, on queries that nothing was picked on"
	@echo "  python -m tasks.cascade_eval --show   all tables: differences with intervals, calibration, pairs"
	@echo "  python -m tasks.collect --dry-run     what collecting would ask, spend and take, per VLM"
	@echo "  edit params.yaml, then dvc repro      add a block under vlms: only the new pool's stages run, only it is asked"
	@echo "  docs/collecting.md                    ask your own VLMs: any OpenAI-compatible endpoint"
	@echo "  make real                             recorded outputs of 35 real VLMs (set ARMS_REAL_DATA)"

check: install
	@ruff check --quiet
	@ruff format --quiet --check || { echo "formatting differs: run 'ruff format'"; exit 1; }
	@mypy --no-error-summary
	@report=$$(lint-imports --no-logo 2>&1) || { echo "$$report"; exit 1; }
	@codespell
	@echo "check: all passed"

test: export HF_HUB_OFFLINE := 1
test: install
	@python -m pytest -q -m "not slow" --numprocesses auto --dist loadscope

test-slow: export HF_HUB_OFFLINE := 1
test-slow: install
	@python -m pytest -q -m slow $$(grep -rlF mark.slow tests --include='*.py' | sort) --numprocesses 3 --dist loadfile --no-loadscope-reorder -rs --no-fold-skipped  # three even on two cores: they wait a lot

real: install
	@folder=$$(python -m tasks.common.workspace presets/real.yaml) && cd "$$folder" && dvc repro && \
		python -m tasks.cascade_eval --show

crossfit: install
	@python -m tasks.studies.crossfit --workspace workspaces/real

PORT ?= 5000
WORKSPACE ?= .
ui: install
	@cd "$(WORKSPACE)" && python -m tasks.common.ui --port $(PORT)

report: export HF_HUB_OFFLINE := 1
report: install
	@cd "$(WORKSPACE)" && dvc repro --quiet report && page="$$(pwd)/report/report.html" && echo "$$page" && \
		if [ -n "$$DISPLAY$$WAYLAND_DISPLAY" ] || [ "$$(uname)" = Darwin ]; then python -m webbrowser "file://$$page"; fi

up: install
	@python -m flows.services up $(if $(PREFECT_PORT),--prefect-port $(PREFECT_PORT)) \
		$(if $(MLFLOW_PORT),--mlflow-port $(MLFLOW_PORT)) $(if $(GPU_WORKERS),--gpu-workers $(GPU_WORKERS))

down:  # installs nothing: what runs may be using the environment
	@if [ -x .venv/bin/python ]; then python -m flows.services down; else echo "Nothing was running."; fi

status: install
	@python -m flows.overview

clean:
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	@find . -name __pycache__ -type d -not -path './.venv/*' -not -path './.uv/*' -prune -exec rm -rf {} +
