# Two commands set everything up: `make train` and `make test`. The environment lives in .venv of this folder.
PYTHON ?= python3
# Beside those that are installed already.
EXTRAS ?= metrics,video,log,dmlab,dev
# Processes that the tests are spread over; a file of tests stays in one of them, and files with slow tests come first.
JOBS ?= 2
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UV := $(shell command -v uv 2>/dev/null)
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))

# The environment is made, or added to, where it lacks an extra or is of another Python than the one that is named.
comma := ,
space := $(subst ,, )
INSTALLED := $(shell cat $(READY) 2>/dev/null)
WANTED := $(sort $(INSTALLED) $(subst $(comma), ,$(EXTRAS)))
ifeq ($(origin PYTHON),command line)
  version = $(shell command -v $(1) >/dev/null && $(1) -V 2>&1)
  ifneq ($(call version,$(PYTHON)),$(call version,$(BIN)/python))
    OTHER := another
  endif
endif
ifneq ($(OTHER)$(filter-out $(INSTALLED),$(WANTED)),)
.PHONY: $(READY)
endif

.PHONY: train test test-gpu lint types clean
# Scratch memory in large pages: a step on a CPU is up to a fifth faster. Read by Linux's C library when a process starts.
train: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
train: $(READY)
	$(BIN)/python -m experiments.train +exp=convs5_dmlab $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

# On a machine with an NVIDIA GPU and the extra cuda: the kernels themselves, which `test` runs in Pallas's interpreter.
test-gpu: $(READY)
	JAX_PLATFORMS=cuda JAX_DEFAULT_MATMUL_PRECISION=highest $(BIN)/python -m pytest -k pallas tests/ops $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyright

# uv is used where it is there (ten times faster), pip otherwise: the same packages either way. An environment whose
# making was broken off, or of a Python that is not supported, is made anew.
$(READY): pyproject.toml constraints.txt
	@{ [ -z "$(OTHER)" ] && $(BIN)/python -c '$(SUPPORTED)' && { [ -n "$(UV)" ] || $(BIN)/python -m pip -V; }; } \
	  >/dev/null 2>&1 || { \
	  if $(PYTHON) -c '$(SUPPORTED)' 2>/dev/null; then python='$(PYTHON)'; \
	  elif [ -n "$(UV)" ] && [ "$(origin PYTHON)" = file ]; then python='>=3.11,<3.14'; \
	  else \
	    echo "$(PYTHON) is $$($(PYTHON) -V 2>&1 | tail -n 1), and slotzoo needs Python 3.11, 3.12 or 3.13:" \
	      "name one, as in: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
	    exit 1; \
	  fi; \
	  rm -f $@; \
	  if [ -z "$(UV)" ]; then $$python -m venv --clear $(VENV); \
	  else uv venv -q --clear --python "$$python" $(VENV) 2>/dev/null || uv venv -q --python "$$python" $(VENV); fi; \
	}
	@if [ -n "$(UV)" ]; then install="uv pip install --python $(BIN)/python"; \
	else install="$(BIN)/python -m pip install"; fi; \
	$$install -q -c constraints.txt -e ".[$(subst $(space),$(comma),$(WANTED))]"
	@echo "$(WANTED)" >$@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
