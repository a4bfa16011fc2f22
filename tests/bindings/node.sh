#!/usr/bin/env bash
# The Node binding: builds the addon, runs its tests, the type test (tsc) among them, against the
# library in build/ (or VRUST_BUILD).
set -euo pipefail
cd "$(dirname "$0")/../.."
VRUST_BUILD=$(realpath "${VRUST_BUILD:-build}")
export VRUST_BUILD
cd bindings/node
npm ci --no-audit --no-fund --ignore-scripts
npm run build
log=$(mktemp)
trap 'rm -f "$log"' EXIT
npm test | tee "$log"
passed=$(sed -n 's/^[^0-9a-z]*pass \([0-9]*\)$/\1/p' "$log")
test "${passed:-0}" -gt 0
echo "$passed passed"
