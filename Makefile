# Every verb builds the environment it needs. PYTHON picks the interpreter (3.11 or later).
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
PIP     = $(PY) -m pip install --quiet --disable-pip-version-check -c constraints/cpu.txt
export TQDM_DISABLE = 1
TASK   ?= countdown
SEED   ?= 0
ALGO   ?= rloo
JOBS   ?= 2
ROUNDS ?= 20

.DEFAULT_GOAL := help
.PHONY: help demo demo-rm test fuzz check format proto bench clean

help:  ## Show the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(VENV)/.installed: pyproject.toml constraints/cpu.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[dev]'
	touch $@

.venv-proto/.installed: constraints/proto.txt
	test -x .venv-proto/bin/python || $(PYTHON) -m venv .venv-proto
	.venv-proto/bin/python -m pip install --quiet --disable-pip-version-check -r constraints/proto.txt
	touch $@

demo: $(VENV)/.installed  ## Train a small policy against the service; TASK=countdown|sort, SEED=0
	$(PY) examples/demo/run.py --task $(TASK) --seed $(SEED)

demo-rm: $(VENV)/.installed  ## The learned-reward path: preferences, reward model, service; ALGO=rloo|ppo
	$(PY) examples/demo/learned_reward.py --algorithm $(ALGO) --seed $(SEED)

test: $(VENV)/.installed  ## Run all tests, JOBS=2 side by side
	$(VENV)/bin/pytest -q -n $(JOBS) --dist worksteal $(ARGS)

fuzz: $(VENV)/.installed  ## Ask the property tests new examples, ROUNDS=20 times
	for round in $$(seq $(ROUNDS)); do \
	  $(VENV)/bin/pytest -q -n $(JOBS) --hypothesis-profile=fuzz tests/property $(ARGS) || exit 1; \
	done

check: $(VENV)/.installed .venv-proto/.installed  ## Format, lint, types, layers, spelling, stubs
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/codespell
	scripts/check_proto.sh

format: $(VENV)/.installed  ## Format the code
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

proto: .venv-proto/.installed  ## Regenerate rewardsvc/v1 from proto/
	scripts/gen_proto.sh

bench: $(VENV)/.installed  ## Run the benchmarks, one after another; those for a GPU where there is one
	for script in benchmarks/bench_*.py; do \
	  case $$script in *_gpu.py) command -v nvidia-smi >/dev/null || continue;; esac; \
	  echo "== $$script"; $(PY) $$script || exit 1; \
	done

clean:  ## Remove environments, caches and runs
	rm -rf $(VENV) .venv-proto build dist runs .mypy_cache .ruff_cache .pytest_cache *.egg-info
