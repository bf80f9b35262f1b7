# Every habit of the project is a target; `make` alone lists them.
SWEEP  ?=
GRADE  ?=
PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/ready
SEED   ?= 7
BASE   ?= embedded
REF    ?= main
REPO   ?= loralab/lora-course

.DEFAULT_GOAL := help
.PHONY: help setup grade class test proof lint format chapters badges claims exercises bands sweep bench pairs heldout base clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11 to 3.13 is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

setup: $(READY)  ## make .venv with everything in it, at pinned versions

grade: $(READY)  ## grade the class in submitted/, or the solutions where there is none (GRADE="--artifacts-only")
	@$(BIN)/python -m grader grade --base $(BASE) $(GRADE)

class: $(READY)  ## write the class of honest and hostile hand-ins to build/class, grade it, compare with what must come
	$(BIN)/python -m tests.submissions --out build/class
	$(BIN)/python -m grader grade --course build/class --out build/class/grade --minutes 2 $(GRADE)
	$(BIN)/python -m tests.submissions.compare build/class $(filter --artifacts-only,$(GRADE))

# Two torch processes with many threads each stall one another; with one thread each they fill two cores.
test: $(READY) lint  ## lint, then run the tests, the chapters included (those that take minutes each: make proof)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

proof: $(READY)  ## run the tests that take minutes each: true model shapes, every honest variant, the chapters as in Colab
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow
	$(BIN)/python -m tools.colab

lint: $(READY)  ## check the code: ruff, its format, and the types of loralab
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## let ruff write the code's form, notebooks included
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

chapters: $(READY)  ## execute every chapter and keep the outputs (2, 3 and 5 on SmolLM2-135M)
	$(BIN)/python tools/notebooks.py execute

badges: $(READY)  ## write Colab badges and bootstrap cells: make badges REPO=owner/name [REF=main]
	$(BIN)/python tools/notebooks.py badges --repo $(REPO) --ref $(REF)

claims: $(READY)  ## render the ledger of claims as docs/claims.md
	$(BIN)/python tools/claims.py

exercises: $(READY)  ## generate the student notebooks in exercises/ from solutions/
	$(BIN)/python -m grader exercises

bands: $(READY)  ## measure the exercises' bands over ten seeds (BASE=embedded)
	$(BIN)/python -m grader bands --base $(BASE)

sweep: $(READY)  ## sweep ranks and target modules over three seeds and draw the plots (SWEEP="--ranks 8 --methods lora,dora")
	$(BIN)/loralab sweep --base $(BASE) $(SWEEP)

bench: $(READY)  ## run the benchmarks and write docs/benchmarks.md (long; on a machine with nothing else to do)
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.training --base smollm2-135m
	$(BIN)/python -m benchmarks.dropout
	$(BIN)/python -m benchmarks.wait_policy
	$(BIN)/python -m benchmarks.cost
	$(BIN)/python -m benchmarks.ranks_and_targets
	$(BIN)/python -m benchmarks.start_up
	$(BIN)/python -m benchmarks.memory_cpu
	$(BIN)/python -m benchmarks.grading
	$(BIN)/python -m benchmarks.page

pairs: $(READY)  ## write data/pairs/ from the tables in data/desk/
	$(BIN)/python data/recipes/pairs.py

heldout: $(READY)  ## draw fresh pairs that no file has (SEED=7) into build/
	@mkdir -p build && $(BIN)/loralab heldout --seed $(SEED) --out build/heldout-$(SEED).jsonl

base: $(READY)  ## pretrain the embedded base from scratch, measure it and write its card (about an hour)
	$(BIN)/python data/recipes/pretrain.py && $(BIN)/python data/recipes/bars.py

clean:  ## delete scratch (not .venv, not runs/, and nothing of what was graded)
	rm -rf build/chapters build/class .mypy_cache .pytest_cache .ruff_cache
