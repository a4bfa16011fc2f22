#!/usr/bin/env bash
# Instruction counts against committed ones: no noise, whatever else the machine does.
# Usage: run.sh [update]
#   Callgrind counts pieces of the scheduler, of sampling and of the AVX2 kernels (counts.rs);
#   Valgrind hides AVX-512 and AMX, whose inner loops are counted in the built library (loops.py).
#   A count may be 3 % above expected.txt's, an inner loop may have 5 % more instructions for each
#   dot product. `update` writes expected.txt anew, for a change that is meant.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ "$(uname -m)" != x86_64 ]; then
    echo "skipped: expected.txt is for x86-64, this is $(uname -m)"
    exit 0
fi
out=build/counts
mkdir -p "$out"
cargo build --release --quiet --lib --example counts
program=target/release/examples/counts
isa=$(valgrind -q "$program" isa)
case $isa in
*avx2*) ;;
*) echo "under Valgrind the backend chooses '$isa', not avx2" >&2 && exit 1 ;;
esac
: >"$out/found.txt"
for work in $("$program"); do
    valgrind -q --tool=callgrind --toggle-collect='*counted_*' \
        --callgrind-out-file="$out/callgrind.out" "$program" "$work" 2>"$out/valgrind.log"
    awk -v work="$work" '/^summary:/ {print work, $2}' "$out/callgrind.out" >>"$out/found.txt"
done
# The inner loop of each kernel's widest tile: the first that loops.py prints.
for path in avx512 vnni; do
    python3 tests/counts/loops.py target/release/libvrust.so "kernels::$path" |
        awk '$1 ~ /linear|attend|::int[468]$/ && !seen[$1]++ {print "loop", $0}' >>"$out/found.txt"
done
# Those of AMX: tdp instructions, tile loads, and all else, prefetches too; and what scales them.
for prefix in linear::amx_tiles kernels::amx::linear; do
    python3 tests/counts/loops.py target/release/libvrust.so "$prefix" |
        awk '!seen[$1]++ {print "loop", $0}' >>"$out/found.txt"
done
if [ "${1:-}" = update ]; then
    cp "$out/found.txt" tests/counts/expected.txt
    exit 0
fi
awk '
    NR == FNR { if ($1 == "loop") loops[$2] = ($4 + $5) / $3; else counts[$1] = $2; next }
    $1 == "loop" { found = loops[$2]; want = ($4 + $5) / $3; limit = want * 1.05; name = $2 }
    $1 != "loop" { found = counts[$1]; want = $2; limit = want * 1.03; name = $1 }
    found == "" || found + 0 == 0 { print name ": not found"; failed = 1; next }
    { verdict = found > limit ? "TOO MANY" : "ok"
      if (found > limit) failed = 1
      printf "%-48s %14.2f, expected %14.2f  %s\n", name, found, want, verdict }
    END { if (failed) print "see tests/counts/run.sh; `run.sh update` takes the new counts"
          exit failed }
' "$out/found.txt" tests/counts/expected.txt
