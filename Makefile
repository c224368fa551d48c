PYTHON ?= .venv/bin/python

.PHONY: lint test golden bench

lint:  ## ruff and mypy over everything
	$(PYTHON) -m ruff check .
	@work=$$(mktemp -d) && ln -s "$(CURDIR)" $$work/tokodec && python=$$(realpath -s $(PYTHON)) && cd $$work && \
	    $$python -m mypy --config-file tokodec/pyproject.toml --cache-dir $$work/cache -p tokodec; code=$$?; \
	    rm -rf $$work; exit $$code

test:  ## all tests
	$(PYTHON) -m pytest

golden:  ## regenerate the golden files: a format change, write it into CHANGELOG.md under "Format"
	GENERATE_EXPECTED=1 $(PYTHON) -m pytest tests/test_golden.py

bench:  ## rate and distortion on a folder of pictures: make bench IMAGES=folder
	$(PYTHON) -m tokodec.codec.cli bench image $(IMAGES)
