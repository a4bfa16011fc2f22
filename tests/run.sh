#!/usr/bin/env bash
# Every test, stage by stage, with the time of each. Usage: run.sh [long]
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-all}
log_dir=build/test-logs
mkdir -p "$log_dir"
times=()
passed=0

# stage NAME COMMAND...: runs it, shows its output only where it fails, notes the time.
stage() {
    local name=$1 start=$SECONDS
    shift
    local log="$log_dir/${name// /-}.log"
    printf '%-34s' "$name"
    if "$@" >"$log" 2>&1; then
        passed=$((passed + 1))
        times+=("$name $((SECONDS - start)) s")
        printf 'ok  %4d s%s\n' $((SECONDS - start)) "$(counts "$log")"
    else
        printf 'FAILED after %d s; the end of %s:\n' $((SECONDS - start)) "$log"
        tail -n 80 "$log"
        echo "$passed passed, 1 failed"
        exit 1
    fi
}

# Sums cargo's "N passed" lines of a log; says what the checks of the CUDA kernels ran.
counts() {
    awk '/^test result: ok/ {for (i = 1; i < NF; i++) if ($(i+1) ~ /^passed/) n += $i}
         /^Ran [0-9]+ tests? in/ {n += $2}
         /^--- PASS: / {n += 1}
         /^[0-9]+ kernels, [0-9]+ shapes, [0-9]+ schedules$/ {kernels = $0}
         END {if (n) printf "  (%d tests)", n; if (kernels) printf "  (%s)", kernels}' "$1"
}

began=$SECONDS
if [ "$mode" = long ]; then
    stage "long property runs" cargo test --release --test it -- --ignored --nocapture
    stage "build" make build
    stage "kernels in the library" tests/cuda/prebuilt.sh
    stage "c tests under valgrind" tests/c/run.sh valgrind-all
    stage "stress, 1000 requests" tests/c/run.sh stress
    stage "aarch64, engine and C" tests/aarch64/run.sh long
else
    stage "format" cargo fmt --check
    stage "clippy" cargo clippy --all-targets -- -D warnings
    stage "unit and integration tests" cargo test --lib --test it
    stage "decoding allocates nothing" cargo test --test alloc
    stage "documentation examples" cargo test --doc
    stage "documentation builds" env RUSTDOCFLAGS="-D warnings" cargo doc --no-deps
    stage "schedules explored by shuttle" cargo test --features shuttle --lib models
    stage "build" make build
    stage "instruction counts" tests/counts/run.sh
    stage "c tests" tests/c/run.sh all
    stage "c tests under sanitizers" tests/c/run.sh sanitize
    stage "c tests under valgrind" tests/c/run.sh valgrind
    stage "cmake and pkg-config" tests/c/run.sh install
    stage "cuda kernels" tests/cuda/run.sh
    stage "aarch64" tests/aarch64/run.sh
    stage "go binding" tests/bindings/go.sh
    stage "gateway builds" make gateway
    stage "gateway" tests/gateway/run.sh
    stage "node binding" tests/bindings/node.sh
    stage "c++ binding" tests/bindings/cpp.sh
    stage "python binding" tests/bindings/python.sh
    stage "packages" make dist
    stage "packages work" packaging/test.sh
    stage "demo" make demo
fi
echo "total $((SECONDS - began)) s"
echo "$passed passed, 0 failed"
