#!/usr/bin/env bash
# The Go binding's tests, against the library in build/ (or VRUST_BUILD): format, vet, the race
# detector, and cgo's own checks of pointers.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$(realpath "${VRUST_BUILD:-build}")
export PKG_CONFIG_PATH=$build/lib/pkgconfig LD_LIBRARY_PATH=$build/lib CGO_ENABLED=1

# README's snippet, as the body of a function.
program=$(mktemp -d bindings/go/readme.XXXXXX)
trap 'rm -rf "$program"' EXIT
{
    printf 'package main\n\nimport (\n"context"\n"fmt"\n"log"\n\n'
    printf 'vrust "github.com/vrust/vrust/bindings/go"\n)\n'
    printf 'func main() {\nif err := run(context.Background()); err != nil {\n'
    printf 'log.Fatal(err)\n}\n}\n'
    printf 'func run(ctx context.Context) error {\n'
    tests/bindings/snippet.sh go vrust.Open
    printf 'return nil\n}\n'
} >"$program/main.go"
(cd "$program" && go build -o readme .)
test -n "$("$program/readme")"
rm -r "$program"
echo "README's snippet runs"

cd bindings/go
unformatted=$(gofmt -l .)
[ -z "$unformatted" ] || { echo "gofmt: $unformatted"; exit 1; }
go vet ./...
go test -count=1 -race -v ./...
GOEXPERIMENT=cgocheck2 go test -count=1 ./...
