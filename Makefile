PYTHON ?= .venv/bin/python

.PHONY: lint test golden bench

lint:  ## ruff and mypy over everything
	$(PYTHON) -m ruff check .
	@# mypy wants the package under its name: a folder of links, so that build/ and the like stay outside.
	@work=$$(mktemp -d) && mkdir $$work/tokodec && python=$$(realpath -s $(PYTHON)) && \
	    for part in __init__.py codec tokenizers entropy train tests assets; do \
	        ln -s "$(CURDIR)/$$part" $$work/tokodec/; done && cd $$work && \
	    $$python -m mypy --config-file "$(CURDIR)/pyproject.toml" --cache-dir $$work/cache -p tokodec; code=$$?; \
	    rm -rf $$work; exit $$code

test:  ## all tests
	$(PYTHON) -m pytest -n 2 --dist worksteal

golden:  ## regenerate the golden files: a format change, write it into CHANGELOG.md under "Format"
	GENERATE_EXPECTED=1 $(PYTHON) -m pytest tests/test_golden.py

bench:  ## rate and distortion on a folder of pictures: make bench IMAGES=folder
	$(PYTHON) -m tokodec.codec.cli bench image $(IMAGES)
