#!/usr/bin/env bash
# Runs the whole workflow on a small cohort, in .venv, which it makes if needed. Options: scripts/demo.sh --help
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare_environment demo
python scripts/demo.py "$@"
