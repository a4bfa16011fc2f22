// Package vrust runs large language models inside the Go program: an [Engine] serves one model,
// and [Engine.Generate] streams the output of one request.
//
//	engine, err := vrust.Open(ctx, vrust.Options{Model: "model-folder"})
//	...
//	defer engine.Close()
//	for delta, err := range engine.Generate(ctx, vrust.Request{Prompt: "Once upon"}) {
//		if err != nil {
//			return err
//		}
//		fmt.Print(delta.Text)
//	}
//
// All functions and methods may be called from any goroutine at any time. No stream holds a
// thread: one goroutine an engine waits for its events on Go's own network poller. The library
// prints nothing and installs no signal handler.
//
// The package links libvrust through pkg-config: set PKG_CONFIG_PATH to the folder of vrust.pc
// where that is not in its usual place.
package vrust

/*
#cgo pkg-config: vrust
#include <vrust/vrust.h>
*/
import "C"

import (
	"encoding/json"
	"runtime"
	"unsafe"
)

// Version is the version of the loaded library, such as "0.1.0".
func Version() string { return C.GoString(C.vrust_version_string()) }

// BuildInfo says how the loaded library was built: a JSON object with version, abi_version,
// target, profile, git_revision and backends.
func BuildInfo() json.RawMessage {
	return json.RawMessage(C.GoString(C.vrust_build_info_json()))
}

// ABIVersion is the version of the loaded library's ABI: major << 16 | minor.
func ABIVersion() uint32 { return uint32(C.vrust_abi_version()) }

// text gives a string to a call that copies it before it returns.
func text(s string) (*C.char, C.size_t) {
	return (*C.char)(unsafe.Pointer(unsafe.StringData(s))), C.size_t(len(s))
}

// textOf is text for bytes.
func textOf(b []byte) (*C.char, C.size_t) {
	return (*C.char)(unsafe.Pointer(unsafe.SliceData(b))), C.size_t(len(b))
}

// takeBytes copies what the library handed out and frees it.
func takeBytes(bytes *C.VrustBytes) []byte {
	data := unsafe.Slice((*byte)(C.vrust_bytes_data(bytes)), C.vrust_bytes_len(bytes))
	taken := append(make([]byte, 0, len(data)), data...)
	C.vrust_bytes_destroy(bytes)
	return taken
}

// keep holds an owner of handles alive until after the C call that used them.
func keep(owner any) { runtime.KeepAlive(owner) }
