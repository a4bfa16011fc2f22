package vrust

/*
#include <vrust/vrust.h>
*/
import "C"

import (
	"encoding/json"
	"unsafe"
)

// Code is a kind of failure. It is an error itself, for errors.Is:
//
//	if errors.Is(err, vrust.ErrQueueFull) { ... }
type Code int32

// The kinds of failure. Programs should treat one that they do not know as a plain error.
const (
	// ErrInvalidArgument: a parameter is out of range or malformed.
	ErrInvalidArgument Code = C.VRUST_ERROR_INVALID_ARGUMENT
	// ErrABIMismatch: the program was compiled against a header that the library cannot serve.
	ErrABIMismatch Code = C.VRUST_ERROR_ABI_MISMATCH
	// ErrUnsupported: well-formed, but this build or model cannot do it.
	ErrUnsupported Code = C.VRUST_ERROR_UNSUPPORTED
	// ErrNotFound: a file or a thing that does not exist.
	ErrNotFound Code = C.VRUST_ERROR_NOT_FOUND
	// ErrIO: the operating system refused an operation on a file.
	ErrIO Code = C.VRUST_ERROR_IO
	// ErrModelFormat: a checkpoint or its configuration is malformed.
	ErrModelFormat Code = C.VRUST_ERROR_MODEL_FORMAT
	// ErrTokenizer: the tokenizer is missing, malformed, or failed on this input.
	ErrTokenizer Code = C.VRUST_ERROR_TOKENIZER
	// ErrTemplate: the chat template is missing, or raised an error on these messages.
	ErrTemplate Code = C.VRUST_ERROR_TEMPLATE
	// ErrGrammar: a grammar for structured output is malformed.
	ErrGrammar Code = C.VRUST_ERROR_GRAMMAR
	// ErrContextLength: the prompt does not fit the model's context.
	ErrContextLength Code = C.VRUST_ERROR_CONTEXT_LENGTH
	// ErrQueueFull: the waiting queue is full. The one retryable error.
	ErrQueueFull Code = C.VRUST_ERROR_QUEUE_FULL
	// ErrOutOfMemory: host memory could not be had.
	ErrOutOfMemory Code = C.VRUST_ERROR_OUT_OF_MEMORY
	// ErrDeviceMemory: device memory could not be had.
	ErrDeviceMemory Code = C.VRUST_ERROR_DEVICE_MEMORY
	// ErrDevice: the device reported a failure.
	ErrDevice Code = C.VRUST_ERROR_DEVICE
	// ErrEngineFailed: the engine failed and serves no more requests. Close it.
	ErrEngineFailed Code = C.VRUST_ERROR_ENGINE_FAILED
	// ErrShuttingDown: the engine is draining or closed.
	ErrShuttingDown Code = C.VRUST_ERROR_SHUTTING_DOWN
	// ErrPanic: a bug in the library, caught at its boundary.
	ErrPanic Code = C.VRUST_ERROR_PANIC
	// ErrForked: the library was used before fork(2), and this is the child.
	ErrForked Code = C.VRUST_ERROR_FORKED
	// ErrCancelled: the operation was cancelled by the host.
	ErrCancelled Code = C.VRUST_ERROR_CANCELLED
)

// Error is the code's name, such as "QUEUE_FULL".
func (c Code) Error() string { return C.GoString(C.vrust_status_name(C.VrustStatus(c))) }

// Error is what went wrong in one call or request.
type Error struct {
	// Code is the kind of failure; errors.Is finds it.
	Code Code
	// Message is for people. It names the field, its limit and the value given.
	Message string
	// Detail is for programs: a JSON object such as {"field":"max_tokens","limit":1,"value":0}.
	Detail json.RawMessage
	// Retryable says that the same call may succeed later without a change.
	Retryable bool
}

// Error is the message.
func (e *Error) Error() string { return "vrust: " + e.Message }

// Unwrap gives the code to errors.Is.
func (e *Error) Unwrap() error { return e.Code }

// Field is the parameter that the error is about, or "".
func (e *Error) Field() string {
	var detail struct{ Field string }
	if json.Unmarshal(e.Detail, &detail) != nil {
		return ""
	}
	return detail.Field
}

// check turns what a call came to into an error, and frees the library's.
func check(status C.VrustStatus, raw *C.VrustError) error {
	if status >= 0 {
		return nil
	}
	if raw == nil {
		return &Error{Code: Code(status), Message: Code(status).Error()}
	}
	defer C.vrust_error_destroy(raw)
	var size C.size_t
	message := C.vrust_error_message(raw, &size)
	failure := &Error{Code: Code(status), Message: goText(message, size)}
	detail := C.vrust_error_detail_json(raw, &size)
	failure.Detail = json.RawMessage(goText(detail, size))
	failure.Retryable = C.vrust_error_is_retryable(raw) != 0
	return failure
}

// goText copies a string of the library's, which may hold a NUL.
func goText(data *C.char, size C.size_t) string {
	return string(unsafe.Slice((*byte)(unsafe.Pointer(data)), size))
}
