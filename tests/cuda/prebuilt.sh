#!/usr/bin/env bash
# The cargo feature `prebuilt-kernels`, for one architecture: made by NVRTC, then by nvcc, both from
# the package registry; each time engines run on the stand-in driver with no NVRTC beside it. And
# what a build without a compiler says.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=build/cuda-venv
[ -d "$venv" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/cuda/requirements.txt \
    -r tests/cuda/requirements-nvcc.txt
toolkit=$(echo "$PWD/$venv"/lib/python3*/site-packages/nvidia/cu13)
export VRUST_PREBUILT_ARCHS=sm_90a
passed=0
failed=0

result() {
    if [ "$2" = 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
    echo "$1: $([ "$2" = 0 ] && echo ok || echo FAILED)"
}

# test_with WHO VARIABLE=VALUE: builds the tests with that compiler and runs those of the feature.
test_with() {
    local log=build/cuda/prebuilt-$1.log status=0
    env "$2" cargo test --features prebuilt-kernels --test it prebuilt_kernels >"$log" 2>&1 ||
        status=$?
    grep -q '^test result: ok. 1 passed' "$log" || status=1
    [ "$status" = 0 ] || tail -n 30 "$log"
    result "cubins by $1" "$status"
}

mkdir -p build/cuda
test_with nvrtc VRUST_NVRTC="$toolkit/lib/libnvrtc.so.13"
test_with nvcc NVCC="$toolkit/bin/nvcc"
# Cargo's own folder in the PATH, no nvcc.
tools="$(dirname "$(command -v cargo)"):/usr/bin:/bin"
status=1
if ! env -u NVCC -u VRUST_NVRTC -u CUDA_HOME PATH="$tools" cargo check --lib \
    --features prebuilt-kernels >build/cuda/prebuilt-none.log 2>&1; then
    grep -q 'prebuilt-kernels: no CUDA compiler: set NVCC' build/cuda/prebuilt-none.log && status=0
fi
result "no compiler is an error that says what to set" "$status"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
