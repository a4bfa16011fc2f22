package vrust

/*
#cgo noescape vrust_tokenizer_encode
#cgo nocallback vrust_tokenizer_encode
#cgo noescape vrust_tokenizer_decode
#cgo nocallback vrust_tokenizer_decode
#cgo noescape vrust_tokenizer_token_bytes
#cgo nocallback vrust_tokenizer_token_bytes
#include <vrust/vrust.h>
*/
import "C"

import (
	"encoding/json"
	"runtime"
	"unsafe"
)

// Tokenizer turns text into tokens and back, and chats into text. It outlives its engine. Close
// frees it early; else that happens some time after it is no longer reachable.
type Tokenizer struct {
	handle  *C.VrustTokenizer
	cleanup runtime.Cleanup
}

func newTokenizer(handle *C.VrustTokenizer) *Tokenizer {
	t := &Tokenizer{handle: handle}
	destroy := func(h *C.VrustTokenizer) { C.vrust_tokenizer_destroy(h) }
	t.cleanup = runtime.AddCleanup(t, destroy, handle)
	return t
}

// OpenTokenizer opens the tokenizer and chat template of a model's folder. It needs no engine and
// no weights. ErrNotFound, ErrIO or ErrTokenizer.
func OpenTokenizer(folder string) (*Tokenizer, error) {
	var handle *C.VrustTokenizer
	var failure *C.VrustError
	path, size := text(folder)
	if err := check(C.vrust_tokenizer_open(path, size, &handle, &failure), failure); err != nil {
		return nil, err
	}
	return newTokenizer(handle), nil
}

// Tokenizer is the engine's. ErrInvalidArgument before the engine is ready, ErrUnsupported when
// it runs without one.
func (e *Engine) Tokenizer() (*Tokenizer, error) {
	defer keep(e)
	var handle *C.VrustTokenizer
	var failure *C.VrustError
	if err := check(C.vrust_engine_tokenizer(e.engine, &handle, &failure), failure); err != nil {
		return nil, err
	}
	return newTokenizer(handle), nil
}

// WithChatTemplate is the same tokenizer with another chat template, in Jinja. It outlives the
// first one. A malicious template can burn time, though it reaches nothing: take it only from those
// whom you trust. ErrTemplate when it cannot be parsed.
func (t *Tokenizer) WithChatTemplate(template string) (*Tokenizer, error) {
	defer keep(t)
	var handle *C.VrustTokenizer
	var failure *C.VrustError
	source, size := text(template)
	status := C.vrust_tokenizer_with_template(t.handle, source, size, &handle, &failure)
	if err := check(status, failure); err != nil {
		return nil, err
	}
	return newTokenizer(handle), nil
}

// Close frees the tokenizer. Closing again does nothing.
func (t *Tokenizer) Close() {
	t.cleanup.Stop()
	C.vrust_tokenizer_destroy(t.handle)
}

// Encode gives the token ids of text, with the model's special tokens (bos) if asked.
func (t *Tokenizer) Encode(s string, addSpecialTokens bool) ([]uint32, error) {
	defer keep(t)
	var flags C.uint32_t
	if addSpecialTokens {
		flags = C.VRUST_ENCODE_SPECIAL_TOKENS
	}
	data, size := text(s)
	ids := make([]uint32, len(s)/3+16)
	for {
		var count C.size_t
		var failure *C.VrustError
		into := (*C.uint32_t)(unsafe.SliceData(ids))
		status := C.vrust_tokenizer_encode(t.handle, data, size, flags, into,
			C.size_t(len(ids)), &count, &failure)
		err := check(status, failure)
		if status == C.VRUST_ERROR_BUFFER_TOO_SMALL {
			ids = make([]uint32, count)
			continue
		}
		if err != nil {
			return nil, err
		}
		return ids[:count], nil
	}
}

// Decode gives the text of token ids, without special tokens if asked.
func (t *Tokenizer) Decode(ids []uint32, skipSpecialTokens bool) (string, error) {
	defer keep(t)
	var flags C.uint32_t
	if skipSpecialTokens {
		flags = C.VRUST_DECODE_SKIP_SPECIAL_TOKENS
	}
	from := (*C.uint32_t)(unsafe.SliceData(ids))
	out, err := fill(func(into unsafe.Pointer, size C.size_t, n *C.size_t) error {
		var failure *C.VrustError
		return check(C.vrust_tokenizer_decode(t.handle, from, C.size_t(len(ids)), flags,
			(*C.char)(into), size, n, &failure), failure)
	}, 8*len(ids)+16)
	return string(out), err
}

// TokenBytes gives the bytes that one token stands for, which need not be whole characters.
// ErrNotFound for an id outside the vocabulary.
func (t *Tokenizer) TokenBytes(id uint32) ([]byte, error) {
	defer keep(t)
	return fill(func(into unsafe.Pointer, size C.size_t, n *C.size_t) error {
		var failure *C.VrustError
		return check(C.vrust_tokenizer_token_bytes(t.handle, C.uint32_t(id), (*C.uint8_t)(into),
			size, n, &failure), failure)
	}, 32)
}

// fill calls with a buffer, and again with a larger one when that is too small.
func fill(call func(unsafe.Pointer, C.size_t, *C.size_t) error, size int) ([]byte, error) {
	for {
		buffer := make([]byte, size)
		var n C.size_t
		err := call(unsafe.Pointer(&buffer[0]), C.size_t(size), &n)
		if failure, ok := err.(*Error); ok && failure.Code == C.VRUST_ERROR_BUFFER_TOO_SMALL {
			size = int(n)
			continue
		}
		if err != nil {
			return nil, err
		}
		return buffer[:n], nil
	}
}

// ChatOptions say how to render a chat.
type ChatOptions struct {
	// Tools is a JSON array of OpenAI tools, or nil.
	Tools json.RawMessage
	// Kwargs is a JSON object of further variables of the template, or nil.
	Kwargs json.RawMessage
	// AddGenerationPrompt ends with the opening of an assistant turn.
	AddGenerationPrompt bool
	// ContinueFinalMessage leaves the last message open, so that the model goes on with it.
	ContinueFinalMessage bool
}

// RenderChat renders OpenAI messages, a JSON array, by the model's chat template. ErrTemplate
// when there is none or it raises an error.
func (t *Tokenizer) RenderChat(messages json.RawMessage, options ChatOptions) (string, error) {
	defer keep(t)
	var flags C.uint32_t
	if options.AddGenerationPrompt {
		flags |= C.VRUST_CHAT_GENERATION_PROMPT
	}
	if options.ContinueFinalMessage {
		flags |= C.VRUST_CHAT_CONTINUE_FINAL
	}
	chat, chatSize := textOf(messages)
	tools, toolsSize := textOf(options.Tools)
	kwargs, kwargsSize := textOf(options.Kwargs)
	var out *C.VrustBytes
	var failure *C.VrustError
	err := check(C.vrust_chat_render(t.handle, chat, chatSize, tools, toolsSize, kwargs, kwargsSize,
		flags, &out, &failure), failure)
	if err != nil {
		return "", err
	}
	return string(takeBytes(out)), nil
}
