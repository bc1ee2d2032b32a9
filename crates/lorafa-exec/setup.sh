#!/bin/sh
# Prints the LIBTORCH to build lorafa-exec's feature `torch` with, installing libtorch into .libtorch first if it is not there:
#
#     export LIBTORCH="$(crates/lorafa-exec/setup.sh)"
#
# A LIBTORCH that is set is taken as it is; LIBTORCH_USE_PYTORCH=1 takes the torch of the python3 on the path.
set -eu
root="$(cd "$(dirname "$0")/../.." && pwd)"
version=2.11.0

if [ -n "${LIBTORCH:-}" ]; then
    printf '%s\n' "$LIBTORCH"
    exit
fi
if [ "${LIBTORCH_USE_PYTORCH:-}" = 1 ]; then
    exec python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))'
fi

torch="$root/.libtorch/torch"
if [ ! -f "$root/.libtorch/complete-$version" ]; then
    rm -rf "$root/.libtorch"
    # No dependencies but the two that libtorch_cpu.so itself names.
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$root/.libtorch" \
        "torch==$version" nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85 >&2
    : >"$root/.libtorch/complete-$version"
fi
printf '%s\n' "$torch"
