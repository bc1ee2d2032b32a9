#!/bin/sh
# Runs the conformance suite: run.sh --bin target/release/lorafa-opt [...]
# Makes .venv in the repository root the first time, and again only when requirements.txt changes.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv=$here/../../.venv
if ! cmp -s "$here/requirements.txt" "$venv/conformance.txt"; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    cp "$here/requirements.txt" "$venv/conformance.txt"
fi
exec "$venv/bin/python" "$here/run.py" "$@"
