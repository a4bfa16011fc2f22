#!/usr/bin/env bash
# The gateway's tests, against build/ (or VRUST_BUILD): its own in Go under the race detector,
# then the command as its users meet it, by the official OpenAI clients.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$(realpath "${VRUST_BUILD:-build}")
export PKG_CONFIG_PATH=$build/lib/pkgconfig VRUST_BUILD=$build PYTHONDONTWRITEBYTECODE=1
(
    cd examples/gateway
    unformatted=$(gofmt -l .)
    [ -z "$unformatted" ] || { echo "gofmt: $unformatted"; exit 1; }
    go vet ./...
    LD_LIBRARY_PATH=$build/lib go test -count=1 -race -v ./...
)
venv=build/venv
[ -x $venv/bin/python ] || python3 -m venv $venv
$venv/bin/pip -q install --disable-pip-version-check -r tests/gateway/requirements.txt
$venv/bin/python -m unittest discover -s tests/gateway -v
