#!/usr/bin/env bash
# The C tests against the library in build/ (`make build`), a line per run with its time.
#   run.sh all            gcc and clang, C99 and C++17, shared and static
#   run.sh sanitize       AddressSanitizer and UndefinedBehaviorSanitizer
#   run.sh valgrind       Memcheck on the quick tests
#   run.sh valgrind-all   Memcheck on all of them
#   run.sh install        cmake --install, find_package, add_subdirectory, pkg-config, ctest
#   run.sh stress         1,000 requests from 64 threads, with aborts and destroys
# VRUST_LIB_DIR: folder of libvrust.so.0 and libvrust.a; VRUST_TEST_MODEL: a model folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
mode=${1:-all}
lib=$(realpath "${VRUST_LIB_DIR:-build/lib}")
model=${VRUST_TEST_MODEL:-tests/golden/llama3}
out=build/c-tests
mkdir -p "$out"
warnings="-Wall -Wextra -Wpedantic -Werror"
posix="-D_POSIX_C_SOURCE=200809L"
export LD_LIBRARY_PATH=$lib
jobs=$(nproc)
at_once=1

tests=(abi_layout version error arguments engine cuda generate stream queue poll races lifecycle
    failure tokenizer chat_parser stats log fork stress)
quick=(version error arguments engine generate queue poll failure tokenizer chat_parser stats
    log)

# The first of the named programs that is there.
first_of() {
    local name
    for name in "$@"; do command -v "$name" >/dev/null && echo "$name" && return; done
    return 1
}

# build NAME FLAGS...: compiles every test with COMPILER FLAGS into $out/NAME, several at a time.
# "static" among the flags links the archive, with exactly what rustc says it needs.
build() {
    local name=$1 link="-L$lib -lvrust -pthread"
    shift
    mkdir -p "$out/$name"
    if [[ " $* " == *" static "* ]]; then
        link="$lib/libvrust.a -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc"
    fi
    local flags="${*/#static/}"
    printf '%s\n' "${tests[@]}" | xargs -P "$jobs" -I{} sh -c \
        "$flags $warnings $posix -O1 -g -Iinclude tests/c/{}.c -o $out/$name/{} -x none $link"
}

# run_one NAME TEST COMMAND...: runs a test of build NAME under COMMAND.
run_one() {
    local name=$1 test=$2 log="$out/$1/$2.log"
    shift 2
    # A forked child has the memory of threads that it does not have: no leak of ours.
    local asan=detect_leaks=1 memcheck=--leak-check=full
    [ "$test" = fork ] && asan=detect_leaks=0 memcheck=--leak-check=no
    if ! ASAN_OPTIONS=$asan VALGRIND_OPTS=$memcheck timeout 600 "$@" \
        "$out/$name/$test" "$model" >"$log" 2>&1; then
        echo "$name: $test FAILED"
        tail -n 40 "$log"
        return 1
    fi
}

# run NAME COMMAND...: runs every selected test, $at_once at a time.
run() {
    local name=$1 began=$SECONDS test pids=() pid
    for test in "${selected[@]}"; do
        while [ "$(jobs -rp | wc -l)" -ge "$at_once" ]; do wait -n || true; done
        run_one "$name" "$test" "${@:2}" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || exit 1; done
    printf '%-28s %2d tests passed, %d s\n' "$name" ${#selected[@]} $((SECONDS - began))
}

# build_and_run NAME FLAGS...
build_and_run() {
    build "$@"
    run "$1" env
}

selected=("${tests[@]}")
clang=$(first_of clang clang-19 clang-18 clang-17 clang-16 clang-15 clang-14) || clang=
clangxx=$(first_of clang++ clang++-19 clang++-18 clang++-17 clang++-16 clang++-15 clang++-14) ||
    clangxx=

all() {
    build_and_run gcc-c99 gcc -std=c99
    build_and_run gcc-c99-static gcc -std=c99 static
    build_and_run g++-c++17 g++ -std=c++17 -x c++
    if [ -n "$clang" ]; then
        build_and_run clang-c99 "$clang" -std=c99
        build_and_run clang-c99-static "$clang" -std=c99 static
    else
        echo "clang is not installed: its runs are skipped"
    fi
    if [ -n "$clangxx" ]; then
        build_and_run clang++-c++17 "$clangxx" -std=c++17 -x c++
    fi
    build_and_run g++-c++17-static g++ -std=c++17 -x c++ static
    # A device of the emulation (tests/cuda): `cuda` asks for it, the others get it by default.
    selected=(cuda engine generate failure lifecycle races)
    echo "on the stand-in driver:"
    stand_in=$(tests/cuda/build.sh)
    run gcc-c99 env VRUST_CUDA_LIB_DIR="$stand_in" LD_LIBRARY_PATH="$lib:$stand_in" \
        XDG_CACHE_HOME="$PWD/$out/cache"
    # With heads of 64 in bfloat16, for the tensor cores of a device of compute capability 9.0.
    local wide=$out/wide report=$out/launches.json
    rm -rf "$wide" "$report"
    cp -rL tests/golden/llama3 "$wide"
    sed -i 's/"head_dim": [0-9]*/"head_dim": 64/' "$wide/config.json"
    selected=(cuda)
    run gcc-c99 env VRUST_CUDA_LIB_DIR="$stand_in" LD_LIBRARY_PATH="$lib:$stand_in" \
        XDG_CACHE_HOME="$PWD/$out/cache" VRUST_TEST_WIDE_MODEL="$wide" VRUST_EMU_REPORT="$report"
    grep -q prefill_attention_sm90_64 "$report" || { echo "no kernel for Hopper ran" && exit 1; }
    if [ -f examples/demo-model/config.json ] && [ -z "${VRUST_TEST_MODEL:-}" ]; then
        model=examples/demo-model
        selected=(generate lifecycle tokenizer chat_parser)
        echo "on the demo model:"
        run gcc-c99 env
    fi
}

sanitize() {
    export VRUST_TEST_UNDER_CHECKER=1
    local flags="-fsanitize=address,undefined -fno-sanitize-recover=all"
    # shellcheck disable=SC2086
    build_and_run gcc-asan-ubsan gcc -std=c99 $flags
    grep -q __asan_init <(nm "$out/gcc-asan-ubsan/engine") || {
        echo "the sanitizer is not in the program" && exit 1
    }
    # shellcheck disable=SC2086
    if [ -n "$clang" ] && echo 'int main(void){return 0;}' |
        "$clang" $flags -x c - -o "$out/probe" 2>/dev/null; then
        build_and_run clang-asan-ubsan "$clang" -std=c99 $flags
    else
        echo "clang's sanitizer runtime is not installed: its run is skipped"
    fi
}

valgrind_run() {
    export VRUST_TEST_UNDER_CHECKER=1
    at_once=$jobs # Under Valgrind a process has one core.
    build memcheck gcc -std=c99
    run memcheck valgrind --quiet --error-exitcode=9 --fair-sched=try \
        --show-leak-kinds=definite --errors-for-leak-kinds=definite
}

# A consumer of an installed or embedded vrust.
consumer() {
    local dir=$1 how=$2
    mkdir -p "$dir"
    cp tests/c/version.c tests/c/harness.h "$dir/"
    cat >"$dir/CMakeLists.txt" <<END
cmake_minimum_required(VERSION 3.18)
project(consumer LANGUAGES C)
$how
foreach(kind vrust vrust_static)
  add_executable(with_\${kind} version.c)
  target_link_libraries(with_\${kind} PRIVATE vrust::\${kind})
endforeach()
END
    cmake -S "$dir" -B "$dir/out" "${@:3}" >"$dir/log" 2>&1 &&
        cmake --build "$dir/out" >>"$dir/log" 2>&1 || { tail -n 30 "$dir/log" && exit 1; }
    env -u LD_LIBRARY_PATH "$dir/out/with_vrust"
    env -u LD_LIBRARY_PATH "$dir/out/with_vrust_static"
}

install() {
    local root=$out/install cargo_dir prefix moved began=$SECONDS
    rm -rf "$root"
    mkdir -p "$root"
    root=$(realpath "$root")
    prefix=$root/first moved=$root/moved cargo_dir=$PWD/target
    cmake -S . -B "$root/out" -DVRUST_CARGO_TARGET_DIR="$cargo_dir" \
        -DCMAKE_INSTALL_PREFIX="$prefix" -DCMAKE_INSTALL_LIBDIR=lib/multi >"$root/log" 2>&1
    cmake --build "$root/out" >>"$root/log" 2>&1 || { tail -n 30 "$root/log" && exit 1; }
    cmake --install "$root/out" >>"$root/log" 2>&1
    printf '%-28s %d s\n' "cmake build and install" $((SECONDS - began))

    began=$SECONDS
    ctest --test-dir "$root/out" --output-on-failure -j "$jobs" >"$root/ctest.log" 2>&1 ||
        { tail -n 40 "$root/ctest.log" && exit 1; }
    printf '%-28s %s, %d s\n' ctest "$(grep 'tests passed' "$root/ctest.log")" $((SECONDS - began))

    # The tree may be moved: config and .pc find everything from where they lie.
    mv "$prefix" "$moved"
    consumer "$root/package" "find_package(vrust 0.1 CONFIG REQUIRED)" \
        -Dvrust_DIR="$moved/lib/multi/cmake/vrust"
    echo "find_package                 ok"
    consumer "$root/subdirectory" "add_subdirectory($PWD vrust)" \
        -DVRUST_CARGO_TARGET_DIR="$cargo_dir"
    echo "add_subdirectory             ok"

    export PKG_CONFIG_PATH=$moved/lib/multi/pkgconfig
    mkdir "$root/examples"
    cp examples/c/*.c examples/c/Makefile "$root/examples/"
    make -s -C "$root/examples"
    env -u LD_LIBRARY_PATH "$root/examples/quickstart" "$model" >"$root/examples/log"
    # shellcheck disable=SC2046
    gcc -Iinclude tests/c/version.c -o "$root/examples/static" \
        $(pkg-config --cflags vrust) "$moved/lib/multi/libvrust.a" \
        $(pkg-config --libs --static vrust | sed 's/-lvrust//')
    "$root/examples/static"
    echo "pkg-config                   ok"
    [ "$(readlink "$moved/lib/multi/libvrust.so")" = libvrust.so.0 ]
    readlink "$moved/lib/multi/libvrust.so.0" | grep -q '^libvrust\.so\.0\.[0-9]*\.[0-9]*$'
}

case $mode in
all) all ;;
sanitize) sanitize ;;
valgrind)
    selected=("${quick[@]}")
    tests=("${quick[@]}")
    valgrind_run
    ;;
valgrind-all) valgrind_run ;;
install) install ;;
stress)
    tests=(stress)
    build stress gcc -std=c99
    "$out/stress/stress" "$model" 1000 64 3
    ;;
*)
    echo "usage: run.sh all|sanitize|valgrind|valgrind-all|install|stress" >&2
    exit 2
    ;;
esac
