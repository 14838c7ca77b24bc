# make demo: set up and run the pipeline on real images.   make test: set up and run the tests.
PYTHON ?= $(or $(shell command -v python3.11),$(shell command -v python3),python3)
BIN := .venv/bin
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python
unexport PYTHONDONTWRITEBYTECODE  # with it every process compiles all that it imports again: seconds for PyTorch alone

.PHONY: demo test lint golden requirements images sbom clean

demo: .venv/rankone.installed
	$(BIN)/rankone run --recipe digits

test: .venv/development.installed
	$(BIN)/python -m pytest -m "not engine" --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: .venv/development.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy pipeline.py components operations retrieval benchmarks

golden: .venv/development.installed  ## rewrite the compiled pipeline that the tests compare with; review its diff
	$(BIN)/rankone compile --unpinned --output tests/golden/pipeline.yaml

requirements: .venv/uv.installed  ## compile the pinned, hashed sets again from requirements/*.in
	for name in uv rankone development data torch training evaluation registry; do \
	  $(BIN)/uv pip compile --quiet --generate-hashes --python-version 3.11 --universal --no-emit-index-url \
	    --custom-compile-command "make requirements" --output-file requirements/$$name.txt requirements/$$name.in || exit 1; \
	done

images:  ## build what has changed and lock it: [REGISTRY=registry.example/team PUSH=1] [BASE_IMAGE=...] [BUILD_OPTIONS=...]
	$(PYTHON) -m operations.image_build $(IMAGES) $(if $(REGISTRY),--registry $(REGISTRY)) $(if $(PUSH),--push) \
	  $(if $(BASE_IMAGE),--base-image $(BASE_IMAGE)) $(if $(BUILD_OPTIONS),--build-options="$(BUILD_OPTIONS)") \
	  $(if $(DOCKER),--engine $(DOCKER))

sbom:  ## list what each locked image holds, with sizes, in build/sbom/
	$(PYTHON) -m operations.image_build $(IMAGES) --contents build/sbom $(if $(DOCKER),--engine $(DOCKER))

clean:
	rm -rf .venv

.venv/uv.installed: requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "Rankone needs Python 3.11; $(PYTHON) is another version. Name one: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@

.venv/rankone.installed: .venv/uv.installed requirements/rankone.txt pyproject.toml
	@echo "Installing the pinned packages (PyTorch is a large download) ..."
	$(INSTALL) --require-hashes -r requirements/rankone.txt
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/development.installed: .venv/rankone.installed requirements/development.txt
	$(INSTALL) --require-hashes -r requirements/development.txt
	@touch $@
