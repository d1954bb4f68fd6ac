#!/bin/sh
# Make the virtual environment and install the pinned packages. Says what failed and what to do.
set -u
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}

fail() {
    printf '\nset-up failed: %s\n' "$1" >&2
    exit 1
}

command -v "$PYTHON" >/dev/null 2>&1 ||
    fail "there is no $PYTHON; install Python 3.11 or newer, or give one: make PYTHON=/path/to/python3"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$PYTHON" --version) is too old; install Python 3.11 or newer, or give one: make PYTHON=/path/to/python3"
if ! "$VENV/bin/python" -c '' >/dev/null 2>&1; then
    echo "making $VENV"
    "$PYTHON" -m venv --clear "$VENV" ||
        fail "$PYTHON cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)"
fi
if ! "$VENV/bin/uv" --version >/dev/null 2>&1; then
    echo "installing uv"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check uv ||
        fail "pip cannot install uv; check the network and pip's settings, then run make again"
fi
echo "installing the packages of requirements.lock (about 6 GB on Linux: PyTorch brings CUDA); later runs skip this"
"$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" -r requirements.lock ||
    fail "uv cannot install requirements.lock; check the network and the free disk (8 GB), then run make again"
"$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" --no-deps -e . ||
    fail "uv cannot install this package; run make again, or rm -rf $VENV first"
