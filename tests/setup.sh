#!/usr/bin/env bash
# Makes sure that the tools are there: installs what it can (Debian, as root), and says in one
# line what is missing otherwise. Usage: setup.sh build|gateway|test
set -euo pipefail

missing=()
need() { command -v "$1" >/dev/null 2>&1 || missing+=("$2"); }

if ! command -v cargo >/dev/null 2>&1 && [ -f "$HOME/.cargo/env" ]; then
    # shellcheck disable=SC1091
    . "$HOME/.cargo/env"
fi
if ! command -v cargo >/dev/null 2>&1; then
    echo "missing: cargo (Rust 1.95 or newer); get it with rustup" >&2
    exit 1
fi
need cc gcc
need make make
if [ "${1:-build}" != build ]; then
    if ! command -v go >/dev/null 2>&1; then
        echo "missing: go (1.25 or newer); get it from https://go.dev/dl" >&2
        exit 1
    fi
    need pkg-config pkg-config
    need python3 python3
    if ! python3 -c "import ensurepip" 2>/dev/null; then
        missing+=(python3-venv)
    fi
fi
if [ "${1:-build}" = test ]; then
    need gcc gcc
    need g++ g++
    need clang clang
    # Clang's sanitizers come in a package of their own.
    version=$(clang -dumpversion 2>/dev/null | cut -d. -f1 || true)
    if ! echo 'int main(void){return 0;}' | clang -fsanitize=address -x c - -o /dev/null 2>/dev/null
    then
        missing+=("libclang-rt-${version:-14}-dev")
    fi
    need cmake cmake
    need valgrind valgrind
    need nm binutils
    need openssl openssl
    need unzip unzip
    need node nodejs
    need node libnode-dev
    need npm npm
    need chromium chromium
    [ -x /usr/sbin/nginx ] || need nginx nginx
    for component in rustfmt clippy; do
        cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1 ||
            rustup component add "$component"
    done
fi
[ ${#missing[@]} -eq 0 ] && exit 0
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    echo "installing: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update >/dev/null
    apt-get -qq install -y "${missing[@]}" >/dev/null
else
    echo "missing: ${missing[*]}; get them from your distribution's packages" >&2
    exit 1
fi
