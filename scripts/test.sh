#!/usr/bin/env bash
# Checks everything: ruff, mypy and pytest, in .venv, which it makes if needed. Arguments go to pytest, which runs two
# processes; -n 0 for one, e.g. with --pdb.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare_environment dev
ruff check .
ruff format --check .
mypy
pytest -n 2 --dist loadfile "$@"
