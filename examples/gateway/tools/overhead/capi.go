package main

/*
#cgo pkg-config: vrust
#include <stdlib.h>
#include <vrust/vrust.h>

static VrustEngine *engine;
static VrustQueue *queue;

static int open_capi(const char *model, size_t model_len) {
    VrustEngineOptions options;
    vrust_engine_options_init(&options, sizeof options);
    options.model = model;
    options.model_len = model_len;
    if (vrust_engine_create(&options, &engine, NULL) != VRUST_OK) return -1;
    if (vrust_engine_wait_ready(engine, -1, NULL) != VRUST_OK) return -1;
    return vrust_engine_default_queue(engine, &queue, NULL);
}

// run_capi submits `count` requests at once and polls until all have ended, as a C host does. It
// gives the number of tokens, or -1.
static int64_t run_capi(const char *body, size_t body_len, int count) {
    static VrustEvent events[256];
    static uint8_t arena[1 << 20];
    int64_t tokens = 0;
    int live = 0;
    for (int i = 0; i < count; i++) {
        uint64_t id;
        if (vrust_submit_json(engine, queue, body, body_len, i, &id, NULL) != VRUST_OK) return -1;
        live++;
    }
    while (live > 0) {
        size_t n = 0, bytes = 0;
        VrustStatus status = vrust_queue_poll(queue, events, sizeof events[0], 256, arena,
                                              sizeof arena, -1, &n, &bytes, NULL);
        if (status < 0 || status == VRUST_CLOSED) return -1;
        for (size_t i = 0; i < n; i++) {
            if (events[i].request_id == 0) continue;
            tokens += events[i].num_tokens;
            if (events[i].flags & VRUST_EVENT_LAST) live--;
        }
    }
    return tokens;
}
*/
import "C"

import (
	"fmt"
	"unsafe"
)

// openCAPI makes the engine that runCAPI uses.
func openCAPI(model string) error {
	path := (*C.char)(unsafe.Pointer(unsafe.StringData(model)))
	if C.open_capi(path, C.size_t(len(model))) != 0 {
		return fmt.Errorf("the C ABI could not open %s", model)
	}
	return nil
}

// runCAPI has a round by the C ABI alone, and gives its tokens.
func runCAPI(body string) (int, error) {
	text := (*C.char)(unsafe.Pointer(unsafe.StringData(body)))
	tokens := C.run_capi(text, C.size_t(len(body)), C.int(*count))
	if tokens < 0 {
		return 0, fmt.Errorf("the C ABI failed")
	}
	return int(tokens), nil
}
