package vrust

/*
#cgo noescape vrust_chat_parser_push
#cgo nocallback vrust_chat_parser_push
#include <vrust/vrust.h>
*/
import "C"

import (
	"encoding/json"
	"runtime"
)

// ChatParserOptions say what to look for in a chat model's output. Empty formats are "auto":
// detected from the chat template. "none" looks for nothing.
type ChatParserOptions struct {
	// ToolFormat is hermes, llama3_json, mistral, pythonic or qwen3_xml.
	ToolFormat string `json:"tool_format,omitempty"`
	// ReasoningFormat is think or mistral.
	ReasoningFormat string `json:"reasoning_format,omitempty"`
	// Tools is the request's JSON array of OpenAI tools; without any, no calls are looked for.
	Tools json.RawMessage `json:"tools,omitempty"`
	// Kwargs are the variables of the chat template that the request has set, a JSON object.
	Kwargs json.RawMessage `json:"chat_template_kwargs,omitempty"`
}

// ChatParserInfo is what a parser looks for.
type ChatParserInfo struct {
	// ToolFormat and ReasoningFormat are "" where nothing is looked for.
	ToolFormat      string `json:"tool_format"`
	ReasoningFormat string `json:"reasoning_format"`
	// StartsInReasoning: the prompt has opened the model's thoughts already.
	StartsInReasoning bool `json:"starts_in_reasoning"`
	// KeepSpecialTokens: a marker is a special token, so the request must set
	// skip_special_tokens to false.
	KeepSpecialTokens bool `json:"keep_special_tokens"`
}

// ChatParser tells reasoning and tool calls from content, in the text of one choice as it comes.
// It is for one goroutine at a time.
type ChatParser struct {
	handle  *C.VrustChatParser
	cleanup runtime.Cleanup
}

// NewChatParser makes a parser for one choice. ErrInvalidArgument names an unknown format.
func (t *Tokenizer) NewChatParser(options ChatParserOptions) (*ChatParser, error) {
	defer keep(t)
	encoded, err := json.Marshal(options)
	if err != nil {
		return nil, &Error{Code: ErrInvalidArgument, Message: err.Error()}
	}
	data, size := textOf(encoded)
	var handle *C.VrustChatParser
	var failure *C.VrustError
	status := C.vrust_chat_parser_create(t.handle, data, size, &handle, &failure)
	if err := check(status, failure); err != nil {
		return nil, err
	}
	p := &ChatParser{handle: handle}
	destroy := func(h *C.VrustChatParser) { C.vrust_chat_parser_destroy(h) }
	p.cleanup = runtime.AddCleanup(p, destroy, handle)
	return p, nil
}

// Info is what the parser looks for.
func (p *ChatParser) Info() (info ChatParserInfo, err error) {
	defer keep(p)
	var out *C.VrustBytes
	var failure *C.VrustError
	if err := check(C.vrust_chat_parser_info_json(p.handle, &out, &failure), failure); err != nil {
		return info, err
	}
	return info, json.Unmarshal(takeBytes(out), &info)
}

// Push takes the text that came next, and gives what is known by now: a JSON array of OpenAI's
// streaming deltas (content, reasoning, tool_calls), empty while a marker may be incomplete.
func (p *ChatParser) Push(s string) (json.RawMessage, error) {
	defer keep(p)
	data, size := text(s)
	var out *C.VrustBytes
	var failure *C.VrustError
	err := check(C.vrust_chat_parser_push(p.handle, data, size, &out, &failure), failure)
	if err != nil {
		return nil, err
	}
	return takeBytes(out), nil
}

// Finish gives what Push still held back. The text has ended.
func (p *ChatParser) Finish() (json.RawMessage, error) {
	defer keep(p)
	var out *C.VrustBytes
	var failure *C.VrustError
	if err := check(C.vrust_chat_parser_finish(p.handle, &out, &failure), failure); err != nil {
		return nil, err
	}
	return takeBytes(out), nil
}

// Close frees the parser. Closing again does nothing.
func (p *ChatParser) Close() {
	p.cleanup.Stop()
	C.vrust_chat_parser_destroy(p.handle)
}
