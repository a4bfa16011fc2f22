#!/usr/bin/env bash
# Every test, stage by stage, with the time of each. Usage: run.sh [long]
#   Stages run one after another, but for those of the second lane: these run in their order
#   beside the others, on what those leave of the machine (a last crate, a link, Valgrind and qemu
#   each use one core). A stage that fails ends the others and the run.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-all}
log_dir=build/test-logs
passed_dir=$log_dir/passed # A file for each stage that passed.
rm -rf "$passed_dir"
mkdir -p "$passed_dir"
limit=2700 # Seconds for a stage, twice the longest on slow cores: what hangs is to be seen.
running=   # The process group of this lane's stage.
second=    # The second lane's process.
timed='TIMEFORMAT="%U %S"; time "$@" 2>&1' # Its own stderr has the times alone.

# stage NAME COMMAND...: runs it, shows its output only where it fails, notes the time, and in
# brackets the seconds of the processor: stages of two lanes share the machine.
stage() {
    local name=$1 start=$SECONDS
    shift
    local log="$log_dir/${name// /-}.log"
    # A process group of its own, to be ended as a whole.
    set -m
    timeout -k 10 "$limit" bash -c "$timed" stage "$@" >"$log" 2>"$log.cpu" </dev/null &
    running=$!
    set +m
    if wait "$running"; then
        running=
        printf '%-34sok  %4d s [%.0f]%s\n' "$name" $((SECONDS - start)) \
            "$(awk 'END {print $1 + $2}' "$log.cpu")" "$(counts "$log")"
        : >"$passed_dir/${name// /-}"
    else
        printf '%-34sFAILED after %d s; the end of %s:\n' "$name" $((SECONDS - start)) "$log"
        tail -n 80 "$log"
        exit 1
    fi
}

# lane FUNCTION: its stages beside what follows.
lane() {
    (
        trap 'exit 1' TERM
        trap 'end $?' EXIT
        "$1"
    ) &
    second=$!
}

# after NAME: waits for a stage of the second lane.
after() {
    until [ -f "$passed_dir/${1// /-}" ]; do
        kill -0 "$second" 2>/dev/null || [ -f "$passed_dir/${1// /-}" ] || exit 1
        sleep 0.2
    done
}

# Ends what still runs, in this lane and, from the first, in the second. A second lane that failed
# has the first one end.
end() {
    trap '' TERM
    [ -z "$running" ] || kill -TERM -- "-$running" 2>/dev/null || true
    if [ "$BASHPID" != $$ ]; then
        [ "$1" = 0 ] || kill -TERM $$
        return
    fi
    [ -z "$second" ] || kill -TERM "$second" 2>/dev/null || true
    wait
    echo "total $SECONDS s"
    echo "$(find "$passed_dir" -type f | wc -l) passed, $(($1 != 0)) failed"
}
trap 'exit 1' TERM
trap 'exit 130' INT
trap 'end $?' EXIT

# Sums cargo's "N passed" lines of a log; says what the checks of the CUDA kernels ran.
counts() {
    awk '/^test result: ok/ {for (i = 1; i < NF; i++) if ($(i+1) ~ /^passed/) n += $i}
         /^Ran [0-9]+ tests? in/ {n += $2}
         /^--- PASS: / {n += 1}
         /^[0-9]+ kernels, [0-9]+ shapes, [0-9]+ schedules$/ {kernels = $0}
         END {if (n) printf "  (%d tests)", n; if (kernels) printf "  (%s)", kernels}' "$1"
}

# What needs little of what is before it; cargo locks each target folder and profile on its own.
# The lower priority keeps it from the first lane's tests of deadlines.
beside() {
    stage "build" make build
    stage "packages" nice make dist
    stage "c tests under valgrind" nice tests/c/run.sh valgrind
    stage "aarch64" nice tests/aarch64/run.sh
}

if [ "$mode" = long ]; then
    limit=14400
    stage "tests with assertions" env CARGO_PROFILE_DEV_DEBUG_ASSERTIONS=true \
        cargo test --lib --test it
    stage "long property runs" cargo test --release --test it -- --ignored --nocapture
    stage "build" make build
    stage "kernels in the library" tests/cuda/prebuilt.sh
    stage "c tests under valgrind" tests/c/run.sh valgrind-all
    stage "stress, 1000 requests" tests/c/run.sh stress
    stage "aarch64, engine and C" tests/aarch64/run.sh long
else
    stage "format" cargo fmt --check
    lane beside
    stage "clippy" cargo clippy --all-targets -- -D warnings
    stage "unit and integration tests" cargo test --lib --test it
    stage "decoding allocates nothing" cargo test --test alloc
    stage "documentation examples" cargo test --doc
    stage "documentation builds" env RUSTDOCFLAGS="-D warnings" cargo doc --no-deps
    # What counts are the interleavings: to optimize takes minutes, the tests less than a second.
    stage "schedules explored by shuttle" \
        cargo --config profile.dev.opt-level=0 test --features shuttle --lib models
    after "build"
    stage "instruction counts" tests/counts/run.sh
    stage "c tests" tests/c/run.sh all
    stage "c tests under sanitizers" tests/c/run.sh sanitize
    stage "cmake and pkg-config" tests/c/run.sh install
    stage "cuda kernels" tests/cuda/run.sh
    stage "go binding" tests/bindings/go.sh
    stage "gateway builds" make gateway
    stage "gateway" tests/gateway/run.sh
    stage "node binding" tests/bindings/node.sh
    stage "c++ binding" tests/bindings/cpp.sh
    stage "python binding" tests/bindings/python.sh
    after "packages"
    stage "packages work" packaging/test.sh
    stage "demo" make demo
    wait "$second"
fi
