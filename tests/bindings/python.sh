#!/usr/bin/env bash
# The Python binding's tests, against the library in build/ (or VRUST_BUILD).
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$(realpath "${VRUST_BUILD:-build}")
export VRUST_LIBRARY=$build/lib/libvrust.so.0 PYTHONPATH=bindings/python PYTHONDONTWRITEBYTECODE=1
answer=$(python3 -c "$(tests/bindings/snippet.sh python SamplingParams)")
[[ $answer == *Paris* ]] || { echo "README.md: $answer" && exit 1; }
echo "README's snippet runs"
python3 -m unittest discover -s bindings/python/tests -v
