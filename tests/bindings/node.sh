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
place=$(mktemp -d)
trap 'rm -rf "$log" "$place"' EXIT

# README's snippet, as a program that has the binding as a dependency.
mkdir "$place/node_modules"
ln -s "$PWD" "$place/node_modules/vrust"
{
    echo '(async () => {'
    ../../tests/bindings/snippet.sh js Engine.create
    echo '})();'
} >"$place/readme.js"
test -n "$(cd ../.. && node "$place/readme.js")"
echo "README's snippet runs"

npm test | tee "$log"
passed=$(sed -n 's/^[^0-9a-z]*pass \([0-9]*\)$/\1/p' "$log")
test "${passed:-0}" -gt 0
echo "$passed passed"
