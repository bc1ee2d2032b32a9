#!/bin/sh
# Prints the LD_PRELOAD with which a program that uses libtorch finds a GPU where there is none:
#
#     export LIBTORCH="$(crates/lorafa-exec/setup.sh)"
#     LD_PRELOAD="$(tests/cuda/standin.sh)" target/release/lorafa-opt bench … --device cuda:0
#
# NVIDIA's libraries are replaced by stand-ins, which are built into target/standin. libtorch's own code for CUDA runs on them:
# which kernel is called with what, every check of its arguments, and its allocator. Memory is address space that is not touched,
# and no kernel runs: what a step allocates is true, what it computes is not, and what it takes time for is the launching alone.
# STANDIN_MEMORY sets the bytes of the device. A function that no stand-in has ends the program with its name.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${CARGO_TARGET_DIR:-$here/../../target}/standin
libtorch=${LIBTORCH:?is not set; it is what crates/lorafa-exec/setup.sh prints}
lib=$libtorch/lib
include=$libtorch/../nvidia/cu13/include
[ -f "$lib/libtorch_cuda.so" ] || { echo "standin.sh: $lib has no libtorch_cuda.so" >&2; exit 1; }
[ -f "$include/cuda_runtime_api.h" ] || { echo "standin.sh: $include has no cuda_runtime_api.h" >&2; exit 1; }
rm -rf "$out"
mkdir -p "$out"

# Every function that libtorch asks NVIDIA's libraries for, with the version that it asks for, which is the library's name.
for name in c10_cuda torch_cuda torch_cuda_linalg torch_cpu torch_nvshmem torch_python caffe2_nvrtc; do
    [ ! -f "$lib/lib$name.so" ] || nm -D --undefined-only "$lib/lib$name.so"
done | awk '$2 ~ /^(__cuda|cu|nccl|nv)/ { sub("@", " ", $2); print $2 }' | sort -u >"$out/wanted"

# Builds library $1 of the stand-in $2, if there is one. It has what begins with $3, and what is asked for with version $4: what
# the stand-in has not ends the program, but for what has nothing to do and succeeds.
library() {
    has=$out/$1.has
    : >"$has"
    object=
    if [ -n "$2" ]; then
        object=$out/$2.o
        gcc -O1 -fPIC -Wall -Werror -I"$here/standin" -isystem "$include" -c "$here/standin/$2.c" -o "$object"
        nm -g --defined-only "$object" | awk '{ print $3 }' >"$has"
    fi
    awk -v start="^$3" -v version="${4:-}" -v has="$has" -v succeed="$here/standin/succeed.txt" '
        BEGIN {
            print "#include <stdio.h>\n#include <stdlib.h>"
            while ((getline name <has) > 0) done[name] = 1
            while ((getline name <succeed) > 0) succeeds[name] = 1
        }
        done[$1] || !(version == "" ? $2 == "" && $1 ~ start : $2 == version) { next }
        succeeds[$1] { print "int " $1 "(void) { return 0; }"; next }
        { print "void " $1 "(void) { fputs(\"the stand-in has no " $1 "\\n\", stderr); abort(); }" }
    ' "$out/wanted" >"$out/$1.c"
    version=
    if [ -n "${4:-}" ]; then
        version=$out/$1.map
        echo "$4 { global: *; };" >"$version"
    fi
    gcc -shared -fPIC -w "$out/$1.c" $object -Wl,-soname,"$1" ${version:+-Wl,--version-script="$version"} -o "$out/$1"
    libraries=${libraries:+$libraries:}$out/$1
}

libraries=
library libcudart.so.13 runtime - libcudart.so.13
library libcuda.so.1 driver 'cu[A-Z]'
library libcublas.so.13 cublas - libcublas.so.13
library libcublasLt.so.13 cublaslt - libcublasLt.so.13
library libcudnn.so.9 cudnn - libcudnn.so.9
library libcufft.so.12 '' - libcufft.so.12
library libcufile.so.0 '' cuFile
library libcurand.so.10 '' curand
library libcusolver.so.12 '' - libcusolver.so.12
library libcusparse.so.12 '' - libcusparse.so.12
library libcusparseLt.so.0 '' cusparseLt
library libnccl.so.2 '' nccl
library libnvrtc.so.13 '' - libnvrtc.so.13
library libnvshmem_host.so.3 '' nvshmem_ NVSHMEM
printf '%s\n' "$libraries"
