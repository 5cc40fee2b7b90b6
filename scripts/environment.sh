# Sourced by demo.sh and test.sh; defines `prepare_environment EXTRA`.
#
# It makes .venv in the repository if there is none (with $PYTHON, python3 by default), installs this project in
# it, editable, with the extra and the exact versions of requirements/constraints.txt, and activates it. The
# installation is skipped while pyproject.toml and the constraints are those of the last one.
# shellcheck shell=bash

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

stop() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

make_venv() {
    local python="${PYTHON:-python3}"
    command -v "$python" >/dev/null || stop "$python not found; install Python 3.10 or newer, or set PYTHON."
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        stop "$("$python" --version 2>&1) is too old; set PYTHON to Python 3.10 or newer, e.g. PYTHON=python3.11."
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        stop "$python has no venv module; install it (Debian, Ubuntu: apt install python3-venv)."
    echo "Making $repository/.venv with $("$python" --version)"
    if ! "$python" -m venv "$repository/.venv"; then
        rm -rf "$repository/.venv"
        stop "$python could not make a virtual environment in $repository/.venv."
    fi
}

prepare_environment() {
    local extra="$1" stamp digest
    [ -e "$repository/.venv" ] || make_venv
    [ -x "$repository/.venv/bin/python" ] || stop "$repository/.venv holds no Python; remove it and start again."
    # shellcheck disable=SC1091
    source "$repository/.venv/bin/activate"
    cd "$repository"
    stamp=".venv/installed_$extra"
    digest="$(cat pyproject.toml requirements/constraints.txt | sha256sum)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$digest" ]; then
        return
    fi
    echo "Installing nnunet-genesis[$extra] into $repository/.venv (the first time this downloads several GB)"
    python -m pip --version >/dev/null 2>&1 || python -m ensurepip >/dev/null
    python -m pip install --quiet --disable-pip-version-check -c requirements/constraints.txt -e ".[$extra]" ||
        stop "the installation failed; the lines above say why."
    echo "$digest" >"$stamp"
}
