#!/bin/sh
# Saves the examples' adapters and merged models, and loads them with PEFT and transformers: load.sh
#
# torch is the one that crates/lorafa-exec/setup.sh installs, which comes without NVIDIA's libraries. Python needs them to be
# there to import torch, but on a CPU calls nothing in them: empty ones, made here, do. What else PEFT needs is installed into
# .libtorch/peft (Python packages, no NVIDIA wheels) the first time, and again only when requirements.txt changes.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
# Whatever LIBTORCH says, this needs one with its Python.
torch=$(env -u LIBTORCH -u LIBTORCH_USE_PYTORCH "$root/crates/lorafa-exec/setup.sh")
packages=$root/.libtorch
peft=$packages/peft
stubs=$packages/stubs

if ! cmp -s "$here/requirements.txt" "$peft/requirements.txt"; then
    rm -rf "$peft"
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$peft" -r "$here/requirements.txt"
    cp "$here/requirements.txt" "$peft/requirements.txt"
fi

if [ ! -d "$stubs" ]; then
    mkdir -p "$stubs.tmp"
    # The libraries that torch's own name and that no wheel here brought; the driver is only opened on demand.
    for library in "$torch"/lib/*.so; do
        readelf -d "$library"
    done | sed -n 's/.*(NEEDED).*\[\(lib\(cu\|nv\|nccl\)[^]]*\)\].*/\1/p' | sort -u | grep -v '^libcuda\.so' |
        while read -r name; do
            if [ -z "$(find "$packages" -name "$name" -not -path "$stubs*" | head -n 1)" ]; then
                cc -shared -nostdlib -Wl,-soname,"$name" -o "$stubs.tmp/$name" -x c /dev/null
            fi
        done
    mv "$stubs.tmp" "$stubs"
fi

cargo build --quiet --locked -p lorafa-weights --example save
save=${CARGO_TARGET_DIR:-$root/target}/debug/examples/save
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export LD_LIBRARY_PATH="$stubs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export PYTHONPATH="$peft:$packages"
python3 "$here/load.py" "$save"
