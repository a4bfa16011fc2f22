#!/usr/bin/env bash
# The Go binding's tests, against the library in build/ (or VRUST_BUILD): format, vet, the race
# detector, and cgo's own checks of pointers.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$(realpath "${VRUST_BUILD:-build}")
export PKG_CONFIG_PATH=$build/lib/pkgconfig LD_LIBRARY_PATH=$build/lib CGO_ENABLED=1
cd bindings/go
unformatted=$(gofmt -l .)
[ -z "$unformatted" ] || { echo "gofmt: $unformatted"; exit 1; }
go vet ./...
go test -count=1 -race -v ./...
GOEXPERIMENT=cgocheck2 go test -count=1 ./...
