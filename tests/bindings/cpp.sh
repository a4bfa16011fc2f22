#!/usr/bin/env bash
# The C++ binding's tests, against the library in build/ (or VRUST_BUILD): g++ and clang++, with
# and without exceptions, C++17 and C++20, sanitizers, and the example against an installed vrust.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$(realpath "${VRUST_BUILD:-build}")
model=examples/demo-model
tests=bindings/cpp/tests
mkdir -p build
out=$(mktemp -d build/cpp-tests.XXXXXX)
out=$(realpath "$out")
beside=
trap '[ -z "$beside" ] || kill $beside 2>/dev/null || true; rm -rf "$out"' EXIT
warnings="-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror"
includes="-I$build/include -Ibindings/cpp/include"
export LD_LIBRARY_PATH=$build/lib
passed=0
began=0

# build NAME COMPILER FLAGS...: both test programs as $out/NAME-shared and $out/NAME-cpp.
build() {
    local name=$1 first
    began=$SECONDS
    shift
    # shellcheck disable=SC2086
    "$@" $warnings $includes "$tests/shared.cpp" -o "$out/$name-shared" \
        -L"$build/lib" -lvrust -pthread &
    first=$!
    # shellcheck disable=SC2086
    "$@" $warnings $includes "$tests/cpp.cpp" "$tests/unit.cpp" "$tests/unit_plain.cpp" \
        -o "$out/$name-cpp" -L"$build/lib" -lvrust -pthread
    wait $first
}

# run NAME [TEST...]: runs them, or the tests named of the shared ones.
run() {
    local name=$1 count=0 program
    for program in shared cpp; do
        if ! timeout 120 "$out/$name-$program" "$model" >"$out/log" 2>&1; then
            echo "$name: $program FAILED"
            tail -n 60 "$out/log"
            exit 1
        fi
        [ "$name" = g++ ] && sed '$d' "$out/log"
        count=$((count + $(awk '/ passed$/ {print $1}' "$out/log")))
    done
    passed=$((passed + count))
    printf '%-28s %d passed, %d s\n' "$name" "$count" $((SECONDS - began))
}

# compile_only COMPILER STANDARD FLAGS AND SOURCES...: without a run.
compile_only() {
    # shellcheck disable=SC2086
    "$@" $warnings $includes -fsyntax-only
    printf '%-28s ok\n' "$1 $2, compiled"
}

# A sanitizer that does not find what it is for proves nothing: here, a leak and a race.
sanitizer_works() {
    local name=$1 flags=$2 code=$3
    printf '%s\n' "$code" >"$out/probe.cpp"
    # shellcheck disable=SC2086
    clang++ -std=c++17 -g $flags "$out/probe.cpp" -o "$out/probe" -pthread
    if "$out/probe" >/dev/null 2>&1; then
        echo "$name finds nothing here"
        exit 1
    fi
}

sanitizers() {
    sanitizer_works LeakSanitizer -fsanitize=address \
        '#include <cstdlib>
         void* volatile kept; int main() { kept = std::malloc(99); kept = nullptr; }'
    build clang++-asan-ubsan clang++ -std=c++17 -O0 -g1 -DVRUST_TEST_SANITIZED \
        -fsanitize=address,undefined -fno-sanitize-recover=all
    ASAN_OPTIONS=detect_leaks=1 run clang++-asan-ubsan

    sanitizer_works ThreadSanitizer -fsanitize=thread \
        '#include <thread>
         int n; int main() { std::thread a([] { n++; }), b([] { n++; }); a.join(); b.join(); }'
    build clang++-tsan clang++ -std=c++17 -O0 -g1 -DVRUST_TEST_SANITIZED -fsanitize=thread
    # libvrust is not instrumented: ThreadSanitizer cannot see how it orders its own accesses, nor
    # that its lock stands between the making, the calls and the end of a log callback.
    echo "race:vrust::*::detail::write_log" >"$out/suppressions"
    TSAN_OPTIONS="ignore_noninstrumented_modules=1 halt_on_error=1 suppressions=$out/suppressions" \
        run clang++-tsan
}

# The binding's README has the example; the repository's has a snippet, which compiles and runs.
readme() {
    local answer
    {
        printf '#include <iostream>\n#include <vrust/vrust.hpp>\nint main() {\n'
        tests/bindings/snippet.sh cpp vrust::Engine
        printf 'return 0;\n}\n'
    } >"$out/readme.cpp"
    # shellcheck disable=SC2086
    g++ -std=c++17 $warnings $includes "$out/readme.cpp" -o "$out/readme" -L"$build/lib" -lvrust
    answer=$("$out/readme")
    [[ $answer == *Paris* ]] || { echo "README.md: $answer" && exit 1; }
    sed -n '/^```cpp$/,/^```$/p' bindings/cpp/README.md | sed '1d;$d' |
        diff - examples/cpp/chat.cpp
    printf '%-28s ok\n' "README's snippets"
}

# The example against vrust installed by CMake, which moves after that.
install() {
    local answer
    {
        cmake -S . -B "$out/cmake" -DVRUST_LIBRARY_DIR="$build/lib" -DVRUST_BUILD_TESTS=OFF \
            -DVRUST_BUILD_EXAMPLES=OFF -DCMAKE_INSTALL_PREFIX="$out/first" &&
            cmake --install "$out/cmake" && mv "$out/first" "$out/prefix" &&
            cmake -S examples/cpp -B "$out/example" -DCMAKE_PREFIX_PATH="$out/prefix" &&
            cmake --build "$out/example"
    } >"$out/install.log" 2>&1 || { tail -n 40 "$out/install.log" && exit 1; }
    answer=$(env -u LD_LIBRARY_PATH "$out/example/chat" "$model")
    [[ $answer == *Paris* ]] || { echo "chat: $answer" && exit 1; }
    if env -u LD_LIBRARY_PATH "$out/example/chat" no/such/folder 2>"$out/install.log"; then
        echo "chat: no failure without a model" && exit 1
    fi
    grep -q '^NOT_FOUND: ' "$out/install.log"
    printf '%-28s ok\n' "installed, find_package"
}

# What needs no run of the tests, beside them.
beside() {
    readme
    compile_only g++ -std=c++20 "$tests/cpp20.cpp" "$tests/cpp.cpp"
    compile_only clang++ -std=c++20 "$tests/cpp20.cpp" "$tests/cpp.cpp"
    compile_only clang++ -std=c++17 "$tests/cpp.cpp" -DVRUST_NO_EXCEPTIONS
    install
}

beside >"$out/beside.log" 2>&1 &
beside=$!
build g++ g++ -std=c++17 -O1
run g++
build g++-no-exceptions g++ -std=c++17 -O0 -fno-exceptions
run g++-no-exceptions
build clang++ clang++ -std=c++17 -O0
run clang++
sanitizers
wait $beside || { cat "$out/beside.log" && exit 1; }
beside=
cat "$out/beside.log"
passed=$((passed + $(grep -c ' ok$' "$out/beside.log")))
echo "$passed passed"
