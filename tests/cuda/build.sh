#!/usr/bin/env bash
# Builds the stand-ins for libcuda, libcublasLt and libnvrtc, and the kernels' checks, into
# build/cuda; prints the libraries' folder. Nothing is done that is newer than its sources.
set -euo pipefail
cd "$(dirname "$0")/../.."
source tests/cuda/flags.sh
mkdir -p "$out/gen" "$out/obj" "$out/lib"
# One at a time: several tests may ask at once.
exec 9>"$out/lock"
flock 9
answer() { case $out in /*) echo "$out/lib" ;; *) echo "$PWD/$out/lib" ;; esac; }

# Every test asks, and to look at each source takes seconds: most find that none is newer than the
# last build.
stamp=$out/stamp
made=("$out"/lib/lib{cuda,cublasLt,nvrtc}.so "$out"/{kernel_checks,kernel_bench,driver_checks})
if [ "$(cat "$stamp" 2>/dev/null)" = "$cxx" ] && ls "${made[@]}" &>/dev/null &&
    [ -z "$(find kernels tests/cuda -newer "$stamp" -print -quit)" ]; then
    answer
    exit
fi
echo "$cxx" >"$stamp.new"

# The source that registers the kernels of one .cu: found where the preprocessor left its mark.
generate() {
    local source=$1 name
    name=$(basename "$source" .cu)
    {
        echo "#include \"../../../$source\""
        echo "#include \"../../../$emulation/registry.h\""
        "$cxx" -E -P -std=c++20 -D__CUDACC_RTC__ "-D__global__=KERNEL_MARK" \
            "-D__launch_bounds__(...)=" "-D__device__=" "-D__forceinline__=" "-D__shared__=" \
            "-D__align__(n)=" -Ikernels -x c++ "$source" 2>/dev/null |
            tr '\n' ' ' | grep -oE 'extern "C" KERNEL_MARK void +[A-Za-z0-9_]+\(' |
            sed -E 's/.* ([A-Za-z0-9_]+)\($/\1/' | while read -r kernel; do
            echo "static bool registered_$kernel ="
            echo "    emu::register_kernel(\"$kernel\", \"$name.cu\", $kernel);"
        done
    } >"$out/gen/$name.cc.new"
    if ! cmp -s "$out/gen/$name.cc.new" "$out/gen/$name.cc"; then
        mv "$out/gen/$name.cc.new" "$out/gen/$name.cc"
    else
        rm "$out/gen/$name.cc.new"
    fi
}

# Compiles $1 to $2 unless that is newer than every source it names; `jobs` at a time.
compile() {
    local source=$1 object=$2
    shift 2
    if [ -f "$object" ] && [ -f "$object.d" ]; then
        local newer
        newer=$(sed -e 's/^[^:]*://' -e 's/\\$//' "$object.d" | tr ' ' '\n' | sed '/^$/d' |
            while read -r f; do [ -f "$f" ] && [ ! "$f" -nt "$object" ] || echo "$f"; done)
        [ -n "$newer" ] || return 0
    fi
    while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n || failed=1; done
    "$cxx" "${flags[@]}" "$@" -MMD -MF "$object.d" -c "$source" -o "$object.new" &&
        mv "$object.new" "$object" &
}

failed=0
kernel_objects=()
for source in kernels/*.cu tests/cuda/checks/*.cu; do
    name=$(basename "$source" .cu)
    generate "$source"
    compile "$out/gen/$name.cc" "$out/obj/kernel_$name.o" -x c++ \
        -include "$emulation/ptx_twin.h"
    kernel_objects+=("$out/obj/kernel_$name.o")
done
for source in tests/cuda/emulation/*.cpp tests/cuda/standin/*.cpp tests/cuda/checks/*.cpp \
    tests/cuda/driver/*.cpp tests/cuda/bench/*.cpp; do
    [ -f "$source" ] || continue
    compile "$source" "$out/obj/$(basename "$(dirname "$source")")_$(basename "$source" .cpp).o"
done
while [ "$(jobs -rp | wc -l)" -gt 0 ]; do wait -n || failed=1; done
[ "$failed" = 0 ] || { echo "the emulation does not compile" >&2; exit 1; }

# Links $1 from the rest unless it is newer.
link() {
    local target=$1
    shift
    local object
    for object in "$@"; do
        case $object in *.o) [ "$object" -nt "$target" ] || continue ;; *) continue ;; esac
        "$cxx" -o "$target.new" "$@" -lpthread && mv "$target.new" "$target"
        return
    done
}
object() { echo "$out/obj/$1.o"; }
# Its host threads wait for work in it for as long as the process lives.
link "$out/lib/libcuda.so.1" -shared -Wl,-soname,libcuda.so.1,-z,nodelete \
    "${kernel_objects[@]}" \
    "$out"/obj/emulation_*.o "$out"/obj/standin_driver*.o
link "$out/lib/libcublasLt.so.13" -shared -Wl,-soname,libcublasLt.so.13 \
    "$(object standin_cublaslt)" -L"$out/lib" -l:libcuda.so.1 -Wl,-rpath,'$ORIGIN'
link "$out/lib/libnvrtc.so.13" -shared -Wl,-soname,libnvrtc.so.13 "$(object standin_nvrtc)"
for library in libcuda.so.1 libcublasLt.so.13 libnvrtc.so.13; do
    ln -sf "$library" "$out/lib/${library%.so*}.so"
done
link "$out/kernel_checks" "$out"/obj/checks_*.o -ldl -static-libstdc++ -static-libgcc
link "$out/kernel_bench" "$(object bench_kernel_bench)" "$(object checks_device)" \
    "$(object checks_check)" -ldl \
    -static-libstdc++ -static-libgcc
link "$out/driver_checks" "$(object driver_driver_checks)" -ldl
mv "$stamp.new" "$stamp" # As old as the beginning: what changed meanwhile is newer.
answer
