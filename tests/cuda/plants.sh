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
        --nvrtc "$out/lib/libnvrtc.so.13" --sources "$1/kernels,tests/cuda/checks" \
        --only "$2" --seeds 0,7
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
    # One head size shows what there is to see.
    local others='(80|96|128|192|256)'
    sed -E -i "/^INSTANCE\\($others, /d" "$dir/kernels/"{decode,prefill*}.cu
    sed -E -e "s#\"../../../kernels/#\"kernels/#" -e "s#../../../tests#$PWD/tests#" \
        -e "/(decode|prefill)_attention(_sm90)?_${others}_/d" "$out/gen/$stem.cc" >"$dir/$stem.cc"
    "$cxx" "${flags[@]}" -O1 -x c++ -include "$emulation/ptx_twin.h" -c "$dir/$stem.cc" \
        -o "$dir/obj/kernel_$stem.o" >"$dir/log" 2>&1 || { cat "$dir/log"; return 1; }
    local objects=("$dir/obj/kernel_$stem.o") object
    for object in "$out"/obj/kernel_*.o; do
        [ "$(basename "$object")" = "kernel_$stem.o" ] || objects+=("$object")
    done
    "$cxx" -shared -Wl,-soname,libcuda.so.1,-z,nodelete -o "$dir/libcuda.so.1" "${objects[@]}" \
        "$out"/obj/emulation_*.o "$out"/obj/standin_driver*.o -lpthread
    # A shell of its own, lest this one reports the abort of a process that found something.
    if (run_checks "$dir" "$check") &>"$dir/log"; then
        echo "$name: nothing found it"
        return 1
    fi
    # Found by a comparison, a deadlock or a fault, and not because there was nothing to run.
    local found
    found=$(grep -E '^    |^emulation: ' "$dir/log" | grep -m 1 -v 'no kernel') ||
        { cat "$dir/log"; return 1; }
    echo "$name: found: ${found#    }"
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
try "results of warps merged before they are there" decode.cu decode_variants \
    '/^      leave\(running\);/{n;d}'
try "a ring filled while its results are read" decode.cu decode_variants \
    '/The next piece.s queries/{n;d}'
try "queries taken before they are there" decode.cu decode_variants \
    '/put_queries\(carried\);/{n;d}'
try "a block that does not follow its share" decode.cu decode_variants \
    's/\|\| work.next == NONE;/|| true;/'
try "a block that takes one share alone" decode.cu decode_variants \
    's/left = !is_last \|\| share < count;/left = !is_last;/'
try "partials put together before they are there" decode.cu decode_merges \
    '/scales\[warp\] = /{n;d}'
try "a partial that two warps take" decode.cu decode_merges \
    's/i \+= kAhead \* turns/i += (kAhead - 1) * turns/'
try "a tile overwritten while others read" prefill.cu prefill_variants \
    '/The stage is written again/{n;d}'
try "a window one position too wide" prefill.cu prefill_variants \
    's/own - other < a.window/own - other <= a.window/'
try "positions that no sequence has" decode.cu decode_variants \
    's/position >= range.begin \&\& position < range.end;$/true;/'
hopper=(prefill_sm90.cu prefill_sm90_variants)
try "keys read before they have come" "${hopper[@]}" '/barrier_wait\(keys_come \+/d'
try "values read before they have come" "${hopper[@]}" '/barrier_wait\(values_come \+/d'
try "a stage filled that is still read" "${hopper[@]}" '/barrier_wait\(keys_free \+/d'
try "a stage that nobody sets free" "${hopper[@]}" '/release\(values_free \+ \(tile - 1\)/d'
try "fewer bytes announced than come" "${hopper[@]}" 's/\* box \* D \* 2;/* box * D;/'
try "scores taken before they are there" "${hopper[@]}" 's/wgmma_wait<1>/wgmma_wait<2>/'
try "sums scaled under a product" "${hopper[@]}" \
    '/running.take\(scores, shrink, unit\);/{n;s/ptx::wgmma_wait<0>\(running.mixed\);//}'
try "a product without its fence" "${hopper[@]}" 's/ptx::wgmma_fence\(\);//'
try "queries that products do not see" "${hopper[@]}" 's/ptx::async_fence\(\);//'
try "values of nobody left in a tile" "${hopper[@]}" 's/if \(before == 0 .*return;/return;/'
try "a matrix with a wrong stride" tensor.cuh prefill_sm90_variants \
    's/u64>\(R \/ 2\) << 32/u64>(R \/ 4) << 32/' prefill_sm90.cu
try "a matrix with another swizzle" tensor.cuh prefill_sm90_variants \
    's/R == 128 \? 1 :/R == 128 ? 2 :/' prefill_sm90.cu
try "a barrier left out before warps are added" skinny.cu gemm_skinny \
    '/^    __syncthreads\(\);$/{N;/row = threadIdx/s/^    __syncthreads\(\);//}'
try "a last ticket that is not taken back" skinny.cu gemm_skinny '/\*tickets = 0;/d'
try "a row that runs past its end" elementwise.cu embeddings \
    's/first < width;/first <= width;/; s/if \(i >= width\) continue;/if (i > width) continue;/'
try "the last of equals instead of the first" sampling.cu argmax_rows \
    's/i < at\)/i > at)/'
try "bins looked at before all masses are there" candidates.cuh sample_rows \
    '/tally\.flush\(\);/{n;d}' sample.cu
try "a carry of masses lost" histogram.cuh sample_last_token \
    's/ \+ \(before \+ part < part\)//' sample.cu
try "tokens passed over that may win" noise.cuh sample_rows \
    's/1\.001f, 1\.0f/0.9f, 1.0f/' sample.cu
try "a slot of padding that is written" rope.cu rope_and_cache_writes \
    's/ \|\| slot == NONE//'
try "pairs that are taken one place off" rope.cu rope_and_cache_writes \
    's/load_some<N>\(turn \+ half\)/load_some<N>(turn + half - N)/'

for i in "${!names[@]}"; do
    if wait "${pids[$i]}"; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
    cat "$out/plants/${names[$i]// /_}.result"
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
