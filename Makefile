# The two commands are `make book` and `make test`; `make help` lists the others.
# Everything happens in .venv: the system's Python is only used to create it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON ?= python3
PORT ?= 8000
SCALE ?= smoke
NEXT ?= 2
ALL := $(if $(filter all,$(EXECUTE)),--all)
ifeq ($(filter smoke laptop full,$(SCALE)),)
$(error SCALE is smoke, laptop or full, not '$(SCALE)')
endif

VENV := .venv
comma := ,
PY := $(VENV)/bin/python
STAMP := $(VENV)/.setup-complete
.PHONY: help setup data lint types test coverage probe verify book look pdf teaching wheel release serve bench reproduce notebooks colab live address clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## create .venv and install everything (PYTHON=python3.12: with that one)

# The stamp holds the folder it was made in, because a virtual environment does not survive a move.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif
OLD_ENOUGH := import sys, pip; sys.exit(sys.version_info < (3, 10))
$(STAMP): pyproject.toml
	@if ! $(PY) -c '$(OLD_ENOUGH)' 2>/dev/null; then \
	    command -v $(PYTHON) >/dev/null || { echo "No $(PYTHON) here: install Python 3.10 or newer, or name one: make PYTHON=python3.12 setup" >&2; exit 1; }; \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1). Name a newer one: make PYTHON=python3.12 setup" >&2; exit 1; }; \
	    $(PYTHON) -m venv --clear $(VENV) || { echo "The virtual environment could not be made; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	fi
	$(PY) -m pip install --no-compile -e '.[book,test,experiments]'
	@$(PY) -m compileall -qq -j 0 $(VENV)/lib || true  # on all cores; pip would use one
	@pwd -P > $@

data: $(STAMP)  ## find CIFAR-10, or download it; without it the textured shapes stand in
	$(PY) -m ersm_lab data

lint: $(STAMP)  ## check the style of code and notebooks
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(STAMP)  ## check the types of the core and the bench
	$(PY) -m mypy

test: lint data  ## lint, run the unit tests, run every notebook at smoke scale
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(PY) -m pytest -n logical --dist worksteal
	$(PY) tools/test_notebooks.py

coverage: data  ## run the unit tests and say how many lines of each room they run (TESTS=tests/results)
	mkdir -p _build
	$(PY) -m coverage erase
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(PY) -m coverage run -m pytest -q -n logical --dist worksteal $(TESTS)
	$(PY) -m coverage combine --quiet
	$(PY) tools/coverage_by_room.py

probe: $(STAMP)  ## does the code still do what the records say? tiny runs of their settings tell
	$(PY) -m ersm_lab probe

verify: $(STAMP)  ## run the next few laptop records again in full, compare, note it (NEXT=2)
	$(PY) -m ersm_lab verify --next $(NEXT)

book: data  ## execute the notebooks that have changed (EXECUTE=all: all), build the web book (ERSM_SCALE)
	$(PY) tools/execute_notebooks.py $(ALL)
	$(PY) tools/build_book.py

look:  ## look at the built book: its links and figures, and each page in a browser
	$(PY) tools/check_book.py
	@$(PY) tools/check_site.py || { status=$$?; [ $$status -eq 77 ] && echo "SKIPPED: nobody has looked at the pages in a browser."; }

pdf:  ## print the built book into _build/book.pdf (wants Chromium)
	$(PY) tools/print_pdf.py

teaching: $(STAMP)  ## slides, student copies and solutions for a course, in _build/teaching
	$(PY) tools/teaching.py

wheel: $(STAMP)  ## build the method alone, ersm_core and ersm_attach, as a wheel in _build/release
	rm -f _build/release/*.whl
	$(PY) -m pip wheel --no-deps --no-build-isolation --wheel-dir _build/release packaging/ersm-core

# The archives have the same bytes whenever they are made of the same files.
TAR := tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner
release: pdf teaching wheel  ## what is attached to a release, in _build/release: after `make book`
	cp _build/book.pdf _build/release/ersm-book.pdf
	$(TAR) -cf - data/checkpoints data/results data/probes.json | gzip -n > _build/release/ersm-checkpoints.tar.gz
	$(TAR) -C _build -cf - teaching | gzip -n > _build/release/ersm-teaching.tar.gz
	cd _build/release && sha256sum ersm* > SHA256SUMS

serve:  ## show the built book on localhost (PORT=8000)
	@[ -f _build/html/index.html ] || { echo "There is no book yet: run 'make book' first." >&2; exit 1; }
	@echo "The book is at http://127.0.0.1:$(PORT)/ (Ctrl-C ends this)"
	@$(PY) -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

# Training frees and asks for the same large blocks at every step; glibc is told to keep them instead of
# handing them back to the system each time.
bench reproduce: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184
bench: $(STAMP)  ## run the benchmarks
	@set -- benchmarks/*.py; [ -f "$$1" ] || { echo "benchmarks/ holds no benchmark." >&2; exit 1; }; \
	for script in "$$@"; do echo "== $$script"; $(PY) "$$script"; done

# Snakemake wants Python 3.11; with 3.10 the experiments run one after the other.
reproduce: data  ## run the experiments that have no valid record (SCALE=smoke, laptop or full; METHODS=dense,ersm)
	@if [ -x $(VENV)/bin/snakemake ]; then \
	    $(PY) workflow/reproduce.py --config scale=$(SCALE) $(if $(METHODS),methods=$(METHODS)); \
	else \
	    echo "No Snakemake here: one experiment after the other, without the cards."; \
	    $(PY) -m ersm_lab run --scale $(SCALE) $(if $(METHODS),--method $(subst $(comma), ,$(METHODS))); \
	fi

notebooks: data  ## execute the notebooks that have changed in place, to store their outputs (EXECUTE=all)
	ERSM_SCALE=laptop $(PY) tools/execute_notebooks.py --in-place $(ALL)

colab: $(STAMP)  ## run each notebook alone as Colab would, without the project (slow)
	$(PY) tools/try_colab.py

live: $(STAMP)  ## use the live figures as a reader does, in a running JupyterLab (wants Chromium)
	$(PY) -m pip install --quiet -e '.[live]'
	@$(PY) tools/try_live.py || { status=$$?; [ $$status -eq 77 ] && echo "SKIPPED: nobody has used the live figures."; }

address: $(STAMP)  ## lead Colab cells, buttons and citations to where this clone lives: for a fork
	$(PY) tools/address.py --write

clean:  ## remove what was built (.venv, data and records stay)
	rm -rf _build .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -print0 | xargs -0 -r rm -rf
