# vrust. `make demo` and `make test` are the two promises; `make help` lists the rest.

SHELL := /bin/bash
CARGO ?= cargo
CC ?= cc
MODEL ?= examples/demo-model
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
BUILD := build

.PHONY: help setup build gateway dist demo test test-long bench header fmt clean

help:
	@echo "make build      build/lib/libvrust.{so,a}, build/include/vrust/vrust.h"
	@echo "make gateway    build/bin/vrust: the OpenAI server and its tools, in Go"
	@echo "make dist       build/dist: a C tarball and a Python wheel for glibc 2.28 or newer"
	@echo "make demo       build, stream from the demo model in C, then chat with vrust serve"
	@echo "make test       every test, with the time of each stage"
	@echo "make test-long  long property, stress and Valgrind runs"
	@echo "make bench      the benchmarks of BENCHMARKS.md; installs the peers, takes hours."
	@echo "                COMPARE='--tasks decode --engines vrust,openvino' for a part of them"
	@echo "make header     generate include/vrust/vrust.h"

# What building needs; says in one line what is missing.
setup:
	@tests/setup.sh build

build: setup
	@echo "building libvrust $(VERSION) (release; the first build takes a few minutes)"
	@$(CARGO) build --release --lib
	@mkdir -p $(BUILD)/lib/pkgconfig $(BUILD)/include/vrust $(BUILD)/bin
	@# Not written anew under a process that has it mapped.
	@cmp -s target/release/libvrust.so $(BUILD)/lib/libvrust.so.$(VERSION) || \
		cp -f target/release/libvrust.so $(BUILD)/lib/libvrust.so.$(VERSION)
	@ln -sf libvrust.so.$(VERSION) $(BUILD)/lib/libvrust.so.0
	@ln -sf libvrust.so.0 $(BUILD)/lib/libvrust.so
	@cp -f target/release/libvrust.a $(BUILD)/lib/
	@cp -f include/vrust/vrust.h $(BUILD)/include/vrust/
	@cp -rf bindings/cpp/include/vrust/. $(BUILD)/include/vrust/
	@sed -e 's/@VERSION@/$(VERSION)/' cmake/vrust.pc.in > $(BUILD)/lib/pkgconfig/vrust.pc

# Go's own cache knows what has changed, but not what pkg-config says: with the folder among the flags
# a checkout does not get a package that links another's library. The library is found beside the command.
gateway: build
	@tests/setup.sh gateway
	@cd examples/gateway && PKG_CONFIG_PATH="$(CURDIR)/$(BUILD)/lib/pkgconfig" \
		CGO_LDFLAGS='-L$(CURDIR)/$(BUILD)/lib -Wl,-rpath,$$ORIGIN/../lib' CGO_LDFLAGS_ALLOW='-Wl,-rpath,.*' \
		go build -trimpath -o "$(CURDIR)/$(BUILD)/bin/vrust" .

dist: build
	@packaging/build.sh

demo: gateway
	@$(CC) -std=c99 -D_POSIX_C_SOURCE=200809L -O2 -Wall -Wextra -I$(BUILD)/include \
		examples/c/demo.c -o $(BUILD)/bin/demo -L$(BUILD)/lib -lvrust \
		-Wl,-rpath,'$$ORIGIN/../lib'
	@$(BUILD)/bin/demo $(MODEL)
	@examples/openai/demo.sh $(BUILD) $(MODEL)

test:
	@tests/setup.sh test
	@tests/run.sh

test-long:
	@tests/setup.sh test
	@tests/run.sh long

bench: gateway
	@$(CARGO) bench --bench batching
	@$(CARGO) bench --bench overhead
	@$(CARGO) bench --bench loading
	@$(CARGO) bench --bench growth -- $(CURDIR)/benches/plots
	@benches/peers/setup.sh $(BUILD)/peers
	@benches/peers/compare.py machine
	@benches/peers/compare.py $(COMPARE)
	@benches/peers/compare.py report --markdown BENCHMARKS.md --plot benches/plots

header:
	@$(CARGO) run --quiet --manifest-path tests/tools/header/Cargo.toml -- include/vrust/vrust.h

fmt:
	@$(CARGO) fmt

clean:
	@rm -rf $(BUILD) target
