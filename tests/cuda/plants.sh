#!/usr/bin/env bash
# Plants one mistake after another in a copy of the kernels (a barrier left out, a wrong stride, an
# early read) and wants the checks to find each. A mistake that nothing finds fails.
set -euo pipefail
cd "$(dirname "$0")/../.."
source tests/cuda/flags.sh
passed=0
failed=0

run_checks() {
    ulimit -c 0
    VRUST_EMU_TIGHT=1 VRUST_EMU_LAZY=0 "$out/kernel_checks" --cuda "$1/libcuda.so.1" \
        --nvrtc "$out/lib/libnvrtc.so.13" --only "$2" --seeds 0,7
}

# plant NAME FILE CHECK SED KERNEL_FILE: changes FILE by SED, builds KERNEL_FILE with it and runs
# CHECK.
plant() {
    local name=$1 file=$2 check=$3 change=$4 kernel=${5:-$2}
    local dir="$out/plants/${name// /_}" stem
    stem=$(basename "$kernel" .cu)
    rm -rf "$dir"
    mkdir -p "$dir/kernels" "$dir/obj"
    cp kernels/*.cu kernels/*.cuh "$dir/kernels/"
    sed -E -i "$change" "$dir/kernels/$file"
    if cmp -s "kernels/$file" "$dir/kernels/$file"; then
        echo "$name: the change does not apply to $file"
        return 1
    fi
    sed -e "s#\"../../../kernels/#\"kernels/#" -e "s#../../../tests#$PWD/tests#" \
        "$out/gen/$stem.cc" >"$dir/$stem.cc"
    "$cxx" "${flags[@]}" -O1 -x c++ -include "$emulation/ptx_twin.h" -c "$dir/$stem.cc" \
        -o "$dir/obj/kernel_$stem.o" >"$dir/log" 2>&1 || { cat "$dir/log"; return 1; }
    local objects=("$dir/obj/kernel_$stem.o") object
    for object in "$out"/obj/kernel_*.o; do
        [ "$(basename "$object")" = "kernel_$stem.o" ] || objects+=("$object")
    done
    "$cxx" -shared -Wl,-soname,libcuda.so.1 -o "$dir/libcuda.so.1" "${objects[@]}" \
        "$out/obj/emulation_fiber.o" "$out"/obj/standin_driver*.o -lpthread
    # A shell of its own, lest this one reports the abort of a process that found something.
    if (run_checks "$dir" "$check") &>"$dir/log"; then
        echo "$name: nothing found it"
        return 1
    fi
    # Found by a comparison, a deadlock or a fault, and not because there was nothing to run.
    grep -qE 'schedule [0-9]+ FAILED|^emulation: ' "$dir/log" || { cat "$dir/log"; return 1; }
    echo "$name: found: $(grep -m 1 -E '^    |^emulation: ' "$dir/log" | sed 's/^ *//')"
}

# The same, counted. Two at a time.
names=()
pids=()
try() {
    while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n || true; done
    plant "$@" >"$out/plants/${1// /_}.result" 2>&1 &
    names+=("$1")
    pids+=($!)
}

mkdir -p "$out/plants"

try "a barrier left out of the block's sum" reduce.cuh norms_of_rows \
    '/scratch\[warp\] = x;/{n;/__syncthreads/d}' norm.cu
try "a barrier left out between tiles of a product" gemm.cu gemm_tiled \
    '/^    __syncthreads\(\);$/{x;s/^/x/;/^xx$/{x;d};x}'
try "a wrong stride of a product's rows" gemm.cu gemm_tiled \
    's/static_cast<u64>\(row\) \* n \+ column/static_cast<u64>(row) * (n - 1) + column/'
try "a wrong stride between cache blocks" attention.cu attention_simple \
    's/(a.block_size\] \*) a.block_stride/\1 (a.block_stride \/ 2)/'
try "a head that reads its neighbour's cache" attention.cu attention_simple \
    's/head \/ \(a.heads \/ a.kv_heads\)/head % a.kv_heads/'
try "a tile read before it has come" decode.cu decode_variants \
    's/copy_async_wait<1>\(\)/copy_async_wait<2>()/'
try "results over a ring that is still read" decode.cu decode_variants \
    '/The rings become/{n;d}'
try "a tile overwritten while others read" prefill.cu prefill_variants \
    '/The stage is written again/{n;d}'
try "a window one position too wide" prefill.cu prefill_variants \
    's/own - other < a.window/own - other <= a.window/'
try "a barrier left out before warps are added" skinny.cu gemm_skinny \
    's/^  __syncthreads\(\);$//'
try "a row that runs past its end" elementwise.cu embeddings \
    's/i < width; i \+= blockDim.x\) \{/i <= width; i += blockDim.x) {/'
try "the last of equals instead of the first" sampling.cu argmax_rows \
    's/i < at\)/i > at)/'
try "a slot of padding that is written" rope.cu rope_and_cache_writes \
    's/ \&\& slot != NONE//'

for i in "${!names[@]}"; do
    if wait "${pids[$i]}"; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
    cat "$out/plants/${names[$i]// /_}.result"
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
