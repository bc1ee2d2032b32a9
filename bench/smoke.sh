#!/bin/sh
# Checks the benchmark itself on the CPU, with tiny shapes: smoke.sh --bin PATH-OF-lorafa-opt [--with-hf]
# The binary is built with the cargo feature `torch`. Python 3.11 with nothing installed is enough for lorafa-opt's side: its
# result by the schema, and its planned peak allocated to the byte. --with-hf runs Hugging Face's side as well and needs
# bench/requirements.txt. PYTHON names the interpreter.
set -eu
bin= hf=
while [ $# -gt 0 ]; do
    case $1 in
        --bin) [ $# -gt 1 ] || { echo "smoke.sh: --bin needs a path" >&2; exit 2; }; bin=$2; shift 2 ;;
        --with-hf) hf=1; shift ;;
        *) echo "usage: smoke.sh --bin PATH [--with-hf]" >&2; exit 2 ;;
    esac
done
[ -n "$bin" ] || { echo "usage: smoke.sh --bin PATH [--with-hf]" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
graph=$here/../examples/llama-tiny-plain-dynamo-noopt-sdpa-fp32-eval-logits-dyn.onnx
"$python" "$here/test_results.py"
"$python" "$here/run.py" --preset cpu-tiny --quick --only lorafa-opt --bin "$bin" --graph "$graph"
if [ -n "$hf" ]; then
    "$python" "$here/test_hf.py"
    "$python" "$here/run.py" --preset cpu-tiny --quick --bin "$bin"
fi
