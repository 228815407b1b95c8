# make demo   the whole way on the embedded corpus: about five minutes on two cores
# make test   the tests
# make sample ask the newest model
# Set-up happens once, in .venv; it is done again when the requirements change.

ifeq ($(origin PYTHON), undefined)
PYTHON := $(shell command -v python3.11 || command -v python3)
endif
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test sample lint corpus clean

demo: $(VENV)/ready
	$(RUN) demo.py

test: $(VENV)/ready-dev
	$(RUN) -m pytest

sample: $(VENV)/ready
	$(RUN) sample.py

lint: $(VENV)/ready-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

corpus: $(VENV)/ready
	$(RUN) data/make_sample.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready: requirements.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/ready-dev: requirements-dev.txt $(VENV)/ready
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) out data/processed* .pytest_cache .ruff_cache
