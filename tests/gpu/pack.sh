#!/usr/bin/env bash
# Gathers what tests/gpu/run needs into build/gpu (under 64 MiB), for a machine with a GPU and
# nothing but Python. Run `make build` and `tests/cuda/run.sh checks` before.
set -euo pipefail
cd "$(dirname "$0")/../.."
to=build/gpu
library=${VRUST_LIBRARY:-build/lib/libvrust.so.0}
for needed in "$library" build/cuda/{kernel_checks,kernel_bench,recorded.bin}; do
    [ -e "$needed" ] || {
        echo "$needed is missing: make build; tests/cuda/run.sh checks"
        exit 1
    }
done
rm -rf "$to"
mkdir -p "$to/build/cuda" "$to/build/lib" "$to/tests/cuda" "$to/bindings/python"
cp -L "$library" "$to/build/lib/libvrust.so.0"
strip --strip-unneeded "$to/build/lib/libvrust.so.0"
cp build/cuda/kernel_checks build/cuda/kernel_bench build/cuda/recorded.bin "$to/build/cuda/"
cp -r kernels "$to/"
cp -r tests/gpu tests/golden "$to/tests/"
mkdir -p "$to/tests/cuda/checks"
cp tests/cuda/checks/*.cu "$to/tests/cuda/checks/"
cp -r bindings/python/vrust "$to/bindings/python/"
find "$to" -name __pycache__ -prune -exec rm -rf {} +
size=$(du -sm "$to" | cut -f1)
echo "$to: $size MiB"
[ "$size" -lt 64 ]
