#!/usr/bin/env bash
# The library for aarch64, on a machine that is none: builds the unit tests and runs those of the
# CPU backend under qemu, on the NEON paths and on one without any extension. Usage: run.sh [long]
#   `long` runs engine tests as well, and a C program against the shared library.
#   What it needs is taken from the machine (rustup's target aarch64-unknown-linux-gnu,
#   aarch64-linux-gnu-gcc, qemu-aarch64) or, on Debian, unpacked from its packages into
#   target/aarch64/tools, with nothing installed. Where neither works it says so and passes.
set -euo pipefail
cd "$(dirname "$0")/../.."
mode=${1:-short}
triple=aarch64-unknown-linux-gnu
out=$PWD/target/aarch64
root=$out/tools
packages=(rustc-web libstd-rust-web-dev libstd-rust-web-dev:arm64 binutils-aarch64-linux-gnu
    gcc-12-aarch64-linux-gnu cpp-12-aarch64-linux-gnu libgcc-12-dev-arm64-cross
    libgcc-s1-arm64-cross libc6-arm64-cross libc6-dev-arm64-cross linux-libc-dev-arm64-cross
    qemu-user libcapstone4 liburing2)

skip() {
    echo "skipped: $1; it wants rustup's target $triple, gcc-aarch64-linux-gnu and qemu-user"
    exit 0
}

if [ "$(uname -m)" = aarch64 ]; then
    echo "skipped: every other test is one of aarch64 here"
    exit 0
fi

has_std() { [ -n "$(find "$1" -name 'libstd-*.rlib' 2>/dev/null)" ]; }

on_machine() {
    has_std "$(rustc --print target-libdir --target $triple 2>/dev/null)" &&
        command -v aarch64-linux-gnu-gcc qemu-aarch64 >/dev/null
}

# The package, of those that one depends on, whose name begins so.
depends() { apt-cache depends "$1" | sed -n "s/^ *Depends: \($2[^:]*\)\$/\1/p" | sort -u; }

# Unpacks Debian's packages. The lists of arm64 are read into a folder of its own, too.
unpack() {
    rm -rf "$root"
    mkdir -p "$root"/apt/{lists/partial,cache/archives/partial,debs}
    cat >"$root/apt/apt.conf" <<CONF
APT::Architectures { "amd64"; "arm64"; };
APT::Sandbox::User "$(id -un)";
Dir::State::lists "$root/apt/lists";
Dir::Cache "$root/apt/cache";
CONF
    (
        export APT_CONFIG=$root/apt/apt.conf
        cd "$root/apt/debs"
        timeout 60 apt-get -qq update || exit 1
        std=$(depends libstd-rust-web-dev libstd-rust-web-)
        llvm=$(depends "$std" libllvm)
        timeout 120 apt-get -qq download "${packages[@]}" "$std" "$llvm"
    ) || return 1
    local deb
    for deb in "$root"/apt/debs/*.deb; do
        dpkg-deb -x "$deb" "$root"
    done
    rm -rf "$root/apt" "$root"/usr/share
    touch "$root/whole"
}

# wrapper NAME COMMAND: a script that runs an unpacked program with the libraries unpacked with it.
wrapper() {
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s/%s "$@"\n' \
        "$root/usr/lib/x86_64-linux-gnu" "$root" "$2" >"$root/$1"
    chmod +x "$root/$1"
}

if on_machine; then
    gcc=aarch64-linux-gnu-gcc
    qemu=qemu-aarch64
    libraries=/usr/aarch64-linux-gnu
else
    if [ ! -f "$root/whole" ]; then
        # shellcheck disable=SC1091
        [ "$(. /etc/os-release 2>/dev/null && echo "${ID:-} $(uname -m)")" = "debian x86_64" ] ||
            skip "no tools for aarch64 are here"
        unpack || skip "Debian's packages could not be had"
    fi
    # Written each time: they name this folder, which may be a copy.
    wrapper rustc "usr/bin/rustc"
    wrapper gcc "usr/bin/aarch64-linux-gnu-gcc-12 --sysroot=$root -B$root/usr/aarch64-linux-gnu/bin"
    wrapper qemu "usr/bin/qemu-aarch64"
    gcc=$root/gcc
    qemu=$root/qemu
    libraries=$root/usr/aarch64-linux-gnu
    export RUSTC=$root/rustc
fi
echo "int main(void) { return 0; }" | "$gcc" -x c - -o "$out/probe" && "$qemu" -L "$libraries" \
    "$out/probe" || skip "gcc or qemu for aarch64 does not work"

# A target folder of its own, and dependencies built fast rather than well.
export CARGO_TARGET_DIR=$out CARGO_BUILD_TARGET=$triple CARGO_PROFILE_DEV_DEBUG=false
[ "$mode" != long ] || export CARGO_PROFILE_DEV_DEBUG_ASSERTIONS=true
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$gcc
fast=(--config 'profile.dev.package."*".opt-level=0')
# emulated CPU PROGRAM ARGUMENT...
emulated() {
    local cpu=$1
    shift
    "$qemu" -L "$libraries" -cpu "$cpu" "$@"
}
# The program of `cargo test --no-run ARGUMENT...`.
built() {
    cargo test "${fast[@]}" --no-run --message-format=json "$@" |
        python3 -c 'import json, sys
found = [m["executable"] for m in map(json.loads, sys.stdin)
         if m.get("executable") and m["profile"]["test"]]
print(found[-1])'
}

unit=$(built --lib)
export VRUST_TEST_ISA=neon-bf16,neon
slow=()
if [ "$mode" != long ]; then
    slow=(--skip chunks_batches_and_threads)
    export VRUST_TEST_SHORT=1 # Fewer positions where work grows with their square.
fi
emulated max "$unit" backend::cpu "${slow[@]}"
# What older cores run: no DotProd, no BF16.
emulated cortex-a72 "$unit" backend::cpu::simd backend::cpu::isa backend::cpu::tests::quantized::out
[ "$mode" = long ] || exit 0

unset VRUST_TEST_ISA
whole=$(built --test it)
for tests in backend_cpu:: engine_goldens:: engine_traffic:: quantization:: scheduler; do
    emulated max "$whole" "$tests"
done
cargo build "${fast[@]}" --lib
lib=$out/$triple/debug
ln -sf libvrust.so "$lib/libvrust.so.0"
"$gcc" -std=c99 -D_POSIX_C_SOURCE=200809L -O1 -Wall -Wextra -Iinclude examples/c/demo.c \
    -o "$out/demo" -L"$lib" -lvrust
emulated max -E "LD_LIBRARY_PATH=$lib" "$out/demo" examples/demo-model
