# Everything that a fresh machine with Python, git and make needs: `make demo` shows it, `make test` proves it.
PYTHON ?= python3
BIN = .venv/bin
# Where this is set, as in many containers, each of the tests' processes would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo up test lessons proofs prove settings check rabbitmq constraints clean

demo: rabbitmq  ## the tutorial, live: a private RabbitMQ, two workers, Flower, five messages; ends by itself
	@$(BIN)/celery -A proj demo

up: rabbitmq  ## the same on the usual ports, until Ctrl+C
	@$(BIN)/celery -A proj demo --stay

test: rabbitmq  ## all tests, on a real RabbitMQ
	@$(BIN)/pytest -n 6 --dist worksteal -m "not proof" $(ARGS)

lessons: rabbitmq  ## the tutorial's lessons only; PROJ_RABBITMQ=FOLDER runs them on another RabbitMQ
	@$(BIN)/pytest -n 6 --dist worksteal -m lesson $(ARGS)

proofs: rabbitmq  ## the quick proofs, and what stock Celery loses, as tests
	@$(BIN)/pytest -n 6 --dist worksteal -m proof $(ARGS)

prove: rabbitmq  ## all proofs: a fault each, and a count of what became of every message
	@$(BIN)/celery -A proj prove $(ARGS)

settings: rabbitmq  ## remove each setting in turn and see the test fail that needs it; some minutes
	@$(BIN)/python -m tests.without_settings

check: .venv/ready  ## formatting, lint, types
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --diff .; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy

rabbitmq: .venv/ready  ## RabbitMQ, where it is missing
	@$(BIN)/python -m proj.installation

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "expected Python 3.11 or newer, got " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	@$(PYTHON) -m venv .venv || { echo "python3 -m venv failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing the dependencies into .venv"
	@$(BIN)/pip install --quiet --upgrade --constraint constraints.txt pip
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable . --group dev
	@touch $@

constraints: .venv/ready  ## pin what is installed now
	@$(BIN)/pip freeze --all --exclude-editable | { echo "# The exact versions that the tests pass with; \`make constraints\` writes this file anew."; cat; } >constraints.txt

clean:  ## all that make made, but not the data in var/
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
