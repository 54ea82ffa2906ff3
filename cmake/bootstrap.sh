#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# From a bare Debian 12 or 13 to a running mnemo:
#   cmake/bootstrap.sh demo [ARGS]   installs what is missing, builds and runs the demo (ARGS go to it, see --help)
#   cmake/bootstrap.sh test [ARGS]   installs what is missing, builds everything and runs the tests (ARGS go to ctest)
#   cmake/bootstrap.sh deps          installs only
# LibTorch comes from Torch_DIR or CMAKE_PREFIX_PATH if set, else from the Python environment's torch, else from Debian.
# Every step can be repeated after an interruption; what is there already is not done again.
set -euo pipefail
cd "$(dirname "$0")/.."
usage() { sed -n '4,7s/^# *//p' "$0"; }
what=${1:-}
case $what in
demo | test | deps) shift ;;
-h | --help) usage; exit 0 ;;
*) usage >&2; exit 2 ;;
esac
say() { printf '\n== %s\n' "$*"; }
die() { echo "bootstrap: $*" >&2; exit 1; }

# ---- 1. LibTorch: whose? ------------------------------------------------------------------------------------------
torch_prefix=""
python_torch() {
    command -v python3 >/dev/null || return 1
    torch_prefix=$(python3 -c 'import importlib.util as u; s = u.find_spec("torch"); print(s.submodule_search_locations[0] if s else "")' 2>/dev/null)
    [ -n "$torch_prefix" ] && [ -f "$torch_prefix/share/cmake/Torch/TorchConfig.cmake" ]
}
prefix_torch() {
    local folder
    IFS=: read -ra folders <<<"${CMAKE_PREFIX_PATH:-}"
    for folder in "${folders[@]}"; do
        [ -f "$folder/share/cmake/Torch/TorchConfig.cmake" ] && return 0
    done
    return 1
}
torch_package=""
configure=()
if [ -n "${Torch_DIR:-}" ]; then
    torch_from="Torch_DIR=$Torch_DIR"
    configure+=("-DTorch_DIR=$Torch_DIR")
elif prefix_torch; then
    torch_from="CMAKE_PREFIX_PATH=$CMAKE_PREFIX_PATH"
elif python_torch; then
    torch_from="the Python environment ($torch_prefix)"
    configure+=("-DCMAKE_PREFIX_PATH=$torch_prefix")
else
    torch_from="Debian's libtorch-dev"
    torch_package=libtorch-dev
fi

# ---- 2. Packages --------------------------------------------------------------------------------------------------
# OpenBLAS in its OpenMP build: the pthread build, Debian's default, fights with the OpenMP threads of FAISS and LibTorch.
packages=(g++ cmake ninja-build pkg-config libopenblas-openmp-dev libfaiss-dev libeigen3-dev nlohmann-json3-dev libfmt-dev libcli11-dev libutf8proc-dev $torch_package)
[ "$what" = demo ] || packages+=(clang catch2 libbenchmark-dev libstemmer-dev libsentencepiece-dev ${torch_package:+libgloo-dev})
missing=()
for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
root=()
if [ "$(id -u)" -ne 0 ]; then root=(sudo); fi
if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || die "needs these packages, and no apt-get is here to install them: ${missing[*]}"
    if [ ${#root[@]} -gt 0 ] && ! command -v sudo >/dev/null; then die "needs root or sudo to install: ${missing[*]}"; fi
    say "Installing: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    "${root[@]}" dpkg --configure -a # an earlier run may have been interrupted
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 "${missing[@]}" >/dev/null
fi
triplet=$(gcc -print-multiarch 2>/dev/null || true)
for library in libblas.so.3 liblapack.so.3 libopenblas.so.0; do
    choice=/usr/lib/$triplet/openblas-openmp/$library
    link=$library-$triplet
    current=$(update-alternatives --query "$link" 2>/dev/null | sed -n 's/^Value: //p') || continue
    if [ -e "$choice" ] && [ -n "$current" ] && [ "$current" != "$choice" ]; then
        "${root[@]}" update-alternatives --set "$link" "$choice" >/dev/null
    fi
done
[ "$what" = deps ] && exit 0

# ---- 3. Build -----------------------------------------------------------------------------------------------------
cores=$(nproc)
memory=$(awk '/^MemAvailable/ {print int($2 / 2500000)}' /proc/meminfo) # eight of the tests' files and LibTorch's headers take 2.3 GB
jobs=$((memory < 1 ? 1 : memory < cores ? memory : cores))
command -v ccache >/dev/null && configure+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
# The programs use every core unless told otherwise; LibTorch 1.13 would take one.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cores}
log=build/bootstrap.log
mkdir -p build
# OpenBLAS multiplies without AVX where it does not know the processor, as Debian 12's does not know Intel's of 2023.
if [ -z "${OPENBLAS_CORETYPE:-}" ] && grep -qm1 '^flags.* avx2 ' /proc/cpuinfo; then
    core=$(echo 'char* openblas_get_corename(void); int puts(const char*); int main() { puts(openblas_get_corename()); }' |
        gcc -x c - -o build/openblas_core -lopenblas 2>/dev/null && build/openblas_core || true)
    if [ "$core" = Prescott ]; then
        OPENBLAS_CORETYPE=$(grep -qm1 '^flags.* avx512bw ' /proc/cpuinfo && echo SkylakeX || echo Haswell)
        export OPENBLAS_CORETYPE
    fi
fi
step() { "$@" >"$log" 2>&1 || { tail -n 40 "$log"; die "failed: $* (all of its output is in $log)"; }; }
if [ "$what" = demo ]; then
    say "Building the demo with LibTorch from $torch_from ($jobs jobs)"
    step cmake --preset release -DMNEMO_NN=ON -DMNEMO_FAISS=ON -DMNEMO_TESTS=OFF -DMNEMO_BENCHMARKS=OFF "${configure[@]}"
    step cmake --build --preset release --target knn_lm -j "$jobs"
    say "Running: build/release/examples/knn_lm $*"
    exec build/release/examples/knn_lm "$@"
fi
say "Building everything with LibTorch from $torch_from ($jobs jobs)"
# Several of the tests' files at a time: half of the work is what they include.
step cmake --preset dev -DMNEMO_NN=ON -DMNEMO_FAISS=ON -DCMAKE_UNITY_BUILD=ON -DCMAKE_UNITY_BUILD_BATCH_SIZE=8 "${configure[@]}"
step cmake --build --preset dev -j "$jobs"
say "Testing: build/dev"
exec ctest --preset dev -j "$cores" "$@"
