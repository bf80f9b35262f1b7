# Everything the project does is a target; `make` alone lists them.
SWEEP  ?=
GRADE  ?=
PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/ready
BASE   ?= embedded
REF    ?= main
REPO   ?= loralab/lora-course

SITE   := build/site-tools

.DEFAULT_GOAL := help
.PHONY: help setup lab grade class sweep test proof lint format generate chapters bands base bench site clean

help:  ## list the targets
	@awk -F ':.*## ' '/^# --/ {print "\n" substr($$0, 6)} /^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11 to 3.13 is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

# -- use the course
setup: $(READY)  ## create .venv with everything in it, at pinned versions

lab: $(READY)  ## open the chapters in JupyterLab
	$(BIN)/jupyter lab chapters/01_concept.ipynb

sweep: $(READY)  ## sweep ranks and target modules over three seeds and draw the plots (SWEEP="--ranks 8 --methods lora,dora")
	$(BIN)/loralab sweep --base $(BASE) $(SWEEP)

grade: $(READY)  ## grade the class in submitted/, or the solutions if there is none (GRADE="--artifacts-only")
	@$(BIN)/python -m grader grade --base $(BASE) $(GRADE)

# -- check a change
# Torch processes with many threads each slow each other down; with one thread each they fill the cores (1.5 GB each).
test: $(READY) lint  ## lint, then run the tests, chapters included (those that take minutes each: make proof)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal

proof: $(READY)  ## run the tests that take minutes each: true model shapes, every honest variant, the site, Colab
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow
	$(BIN)/python -m tools.colab

class: $(READY)  ## grade a class of honest and hostile submissions in build/class, and compare with what is expected
	$(BIN)/python -m tests.submissions --out build/class
	$(BIN)/python -m grader grade --course build/class --out build/class/grade --minutes 2 $(GRADE)
	$(BIN)/python -m tests.submissions.compare build/class $(filter --artifacts-only,$(GRADE))

lint: $(READY)  ## check style, format and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## format the code, notebooks included
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

# -- make what is committed
generate: $(READY)  ## write what is derived: pairs, exercises, docs/claims.md, Colab badges (REPO=owner/name REF=main)
	$(BIN)/python data/recipes/pairs.py
	$(BIN)/python tools/notebooks.py badges --repo $(REPO) --ref $(REF)
	$(BIN)/python -m grader exercises
	$(BIN)/python tools/claims.py
	$(BIN)/python -m tools.translations build

chapters: $(READY)  ## execute every chapter and keep the outputs (2, 3 and 5 on SmolLM2-135M)
	$(BIN)/python tools/notebooks.py execute

bands: $(READY)  ## measure the exercises' bands over ten seeds (BASE=embedded)
	$(BIN)/python -m grader bands --base $(BASE)

base: $(READY)  ## pretrain the embedded base from scratch, measure it and write its card (about an hour)
	$(BIN)/python data/recipes/pretrain.py && $(BIN)/python data/recipes/bars.py

bench: $(READY)  ## run the benchmarks and write docs/benchmarks.md (long; on an otherwise idle machine)
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.training --base smollm2-135m
	$(BIN)/python -m benchmarks.dropout
	$(BIN)/python -m benchmarks.wait_policy
	$(BIN)/python -m benchmarks.cost
	$(BIN)/python -m benchmarks.ranks_and_targets
	$(BIN)/python -m benchmarks.start_up
	$(BIN)/python -m benchmarks.memory_cpu
	$(BIN)/python -m benchmarks.without_regret
	$(BIN)/python -m benchmarks.learn_and_forget
	$(BIN)/python -m benchmarks.grading
	$(BIN)/python -m benchmarks.page

$(SITE): $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[site]"
	@mkdir -p build && touch $@

site: $(SITE)  ## build the course as a book in build/site
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -c site . build/site

clean:  ## delete scratch (not .venv, not runs/, and nothing of what was graded)
	rm -rf build/chapters build/class build/site .mypy_cache .pytest_cache .ruff_cache
