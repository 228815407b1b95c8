# make demo   the whole way on the embedded corpus: until it answers its trained questions
# make test   the tests
# make test-avx2   those of the arithmetic, as on an x86 processor without AVX-512
# make soak   the long ones among them, at their full counts (kills, load, gigabytes)
# make peers  those with llama.cpp's server, lm-eval, LangChain, LiteLLM and peft, which it installs first (0.8 GB)
# make docs   the site of docs/, the course among it, into site/
# make sample ask the newest model
# make serve  serve it at http://127.0.0.1:5000: a page, and OpenAI's API
# make arena  compare models, your own and your friends', at http://127.0.0.1:7860
# Set-up happens once, in .venv; it is done again when the requirements change.

ifeq ($(origin PYTHON), undefined)
PYTHON := $(shell command -v python3.11 || command -v python3)
endif
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test test-avx2 soak peers docs sample serve arena lint corpus clean

demo: $(VENV)/ready
	$(RUN) demo.py

# Two files of tests at a time.
test: $(VENV)/ready-dev
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not peers"

# Includes those of `make peers` where that has been run; the others are listed as skipped.
soak: $(VENV)/ready-dev
	$(RUN) -m pytest -rs --soak -m "soak or soak_only or peers"

peers: $(VENV)/ready-peers
	$(RUN) -m pytest -rs tests/peers tests/adapters

# Such a processor has other kernels in torch, oneDNN and MKL, which sum in another order and lack bfloat16; numba
# compiles for it.
test-avx2: $(VENV)/ready-dev
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 OMP_NUM_THREADS=1 \
		NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES=+avx2,+fma,+bmi,+bmi2,+popcnt,+f16c \
		$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m numeric

# A link that leads nowhere is an error.
docs: $(VENV)/ready-docs
	$(VENV)/bin/mkdocs build --quiet --strict
	@echo "open site/index.html"

sample: $(VENV)/ready
	$(RUN) sample.py

serve: $(VENV)/ready
	$(RUN) server.py

arena: $(VENV)/ready
	$(RUN) sample_gradio.py

lint: $(VENV)/ready-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-logo

corpus: $(VENV)/ready
	$(RUN) data/make_sample.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/ready: requirements.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/ready-dev: requirements-dev.txt $(VENV)/ready
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(VENV)/ready-peers: requirements-peers.txt $(VENV)/ready-dev
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-peers.txt
	@touch $@

$(VENV)/ready-docs: requirements-docs.txt $(VENV)/ready
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

# Models of your own, under out/, stay.
clean:
	rm -rf $(VENV) site out/demo* out/course* out/correction* out/experiments out/tuning data/processed_demo* data/processed_correction* data/processed_course* .pytest_cache .ruff_cache
