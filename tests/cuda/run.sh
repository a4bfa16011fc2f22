#!/usr/bin/env bash
# Everything about the CUDA kernels that needs no GPU: each kernel on the host emulation against
# plain loops, in two schedules; planted mistakes that must be found; the stand-in driver; and
# each kernel compiled for each architecture, with a look at the machine code.
#
#   run.sh [habits | checks | plants | driver | compile]...   (all of them)
set -euo pipefail
cd "$(dirname "$0")/../.."
passed=0
failed=0

# Runs a stage and adds up its closing line `N passed, N failed`.
stage() {
    local name=$1 log=build/cuda/$1.log
    shift
    echo "== $name"
    "$@" >"$log" 2>&1 || true
    tail -n 3 "$log"
    local last
    last=$(tail -n 1 "$log")
    if [[ $last =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
        passed=$((passed + BASH_REMATCH[1]))
        failed=$((failed + BASH_REMATCH[2]))
        if [ "${BASH_REMATCH[2]}" != 0 ]; then grep -vE ' ok [0-9.]+ s$' "$log" | head -n 60; fi
    else
        failed=$((failed + 1))
        tail -n 40 "$log"
    fi
}

checks() {
    VRUST_EMU_TIGHT=1 VRUST_EMU_LAZY=0 build/cuda/kernel_checks \
        --cuda build/cuda/lib/libcuda.so.1 --nvrtc build/cuda/lib/libnvrtc.so.13 \
        --record build/cuda/recorded.bin
}

# The wheels that hold NVRTC and cuobjdump, once.
wheels() {
    local venv=build/cuda-venv stamp
    stamp=$(sha256sum tests/cuda/requirements.txt | cut -d' ' -f1)
    if [ "$(cat "$venv/stamp" 2>/dev/null)" != "$stamp" ]; then
        [ -d "$venv" ] || python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/cuda/requirements.txt
        echo "$stamp" >"$venv/stamp"
    fi
}

compile() {
    wheels || {
        echo "the wheels of tests/cuda/requirements.txt cannot be had"
        echo "0 passed, 1 failed"
        return
    }
    build/cuda-venv/bin/python tests/cuda/compile.py
}

# Kernels are the same text on a device and on the host: no conditional but include guards, inline
# PTX in one header, nothing included from elsewhere; short lines.
habits() {
    local bad=0
    complain() {
        if [ -n "$2" ]; then
            printf '%s:\n%s\n' "$1" "$2"
            bad=$((bad + 1))
        fi
    }
    complain "conditionals" "$(grep -nE '^ *# *(if|elif|else)' kernels/*.cu kernels/*.cuh |
        grep -vE '\.cuh:[0-9]+:#ifndef VRUST_[A-Z0-9_]+_CUH$' || true)"
    complain "PTX outside of ptx.cuh" "$(grep -nE '\basm\b' kernels/*.cu \
        $(ls kernels/*.cuh | grep -v /ptx.cuh) || true)"
    complain "includes" "$(grep -nE '# *include' kernels/*.cu kernels/*.cuh |
        grep -vE '#include "[a-z0-9_]+\.cuh"$' || true)"
    complain "lines of more than 100 characters" "$(grep -nE '^.{101}' kernels/*.cu \
        kernels/*.cuh tests/cuda/*/*.cu || true)"
    echo "$((4 - bad)) passed, $bad failed"
}

mkdir -p build/cuda
tests/cuda/build.sh >/dev/null
for what in ${*:-habits checks plants driver compile}; do
    case $what in
        habits) stage habits habits ;;
        checks) stage checks checks ;;
        plants) stage plants tests/cuda/plants.sh ;;
        driver) stage driver build/cuda/driver_checks build/cuda/lib ;;
        compile) stage compile compile ;;
        *) echo "run.sh: no stage $what"; exit 2 ;;
    esac
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
