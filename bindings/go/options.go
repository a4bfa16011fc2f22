package vrust

/*
#include <stdlib.h>
#include <vrust/vrust.h>
*/
import "C"

import (
	"encoding/json"
	"fmt"
	"math"
	"unsafe"
)

// Options of an engine. The zero value of a field is its default.
type Options struct {
	// Model is the model's folder, in Hugging Face's layout. Required.
	Model string
	// Tokenizer is the tokenizer's folder; the model's when empty.
	Tokenizer string
	// ChatTemplate is a Jinja template to use instead of the checkpoint's.
	ChatTemplate string
	// Backend is "cpu" (default) or "reference", plain loops that serve as the oracle.
	Backend string
	// LoadFormat is "auto" (safetensors) or "dummy": seeded random weights, for benchmarks.
	LoadFormat string
	// DType is "auto" (the checkpoint's), "float32" or "bfloat16".
	DType string
	// SchedulingPolicy is "fcfs" (default) or "priority".
	SchedulingPolicy string
	// KVCacheMemoryBytes of the KV cache; 0: the smaller of 4 GiB and a quarter of what the
	// process may use.
	KVCacheMemoryBytes uint64
	// MaxUndrainedBytes of events past which requests wait for their consumers; 0: 64 MiB.
	MaxUndrainedBytes uint64
	// Seed of requests that bring none.
	Seed uint64
	// MaxModelLen is the most positions of a sequence; 0: the model's own limit.
	MaxModelLen int
	// MaxNumSeqs is the most sequences of a step; 0: 128.
	MaxNumSeqs int
	// MaxNumBatchedTokens is the most tokens of a step; 0: 2048.
	MaxNumBatchedTokens int
	// BlockSize is the positions of a KV block; 0: 16.
	BlockSize int
	// LongPrefillTokenThreshold is the longest part of a prompt in one step; 0: no such limit.
	LongPrefillTokenThreshold int
	// MaxNumQueuedReqs is the most requests waiting, past which ErrQueueFull; 0: 4096.
	MaxNumQueuedReqs int
	// MaxLogprobs is the most logprobs a request may ask for; nil: 20.
	MaxLogprobs *int
	// CPUThreads is the number of compute threads; 0: one for each core of the process.
	CPUThreads int
	// TensorParallelSize is the number of ranks; 0 or 1: this version has only one.
	TensorParallelSize int
	// NoPrefixCaching turns sharing of KV blocks off.
	NoPrefixCaching bool
	// NoChunkedPrefill keeps every prompt in one step.
	NoChunkedPrefill bool
	// NoGenerationConfig ignores the sampling defaults of generation_config.json.
	NoGenerationConfig bool
	// SkipTokenizer runs without a tokenizer: token prompts only, no text.
	SkipTokenizer bool
	// Extra holds rarer options by name, such as num_kv_blocks; see VrustEngineOptions.extra_json.
	Extra map[string]any
	// OnLoad, if set, hears the fraction of the weights that is loaded, 0 to 1. It is called on
	// the engine's own goroutine and must not block.
	OnLoad func(fraction float64)
}

var (
	backends = map[string]C.uint32_t{
		"": C.VRUST_BACKEND_AUTO, "auto": C.VRUST_BACKEND_AUTO, "cpu": C.VRUST_BACKEND_CPU,
		"reference": C.VRUST_BACKEND_REFERENCE,
	}
	loadFormats = map[string]C.uint32_t{
		"": C.VRUST_LOAD_AUTO, "auto": C.VRUST_LOAD_AUTO,
		"safetensors": C.VRUST_LOAD_AUTO, "dummy": C.VRUST_LOAD_DUMMY,
	}
	dtypes = map[string]C.uint32_t{
		"": C.VRUST_DTYPE_AUTO, "auto": C.VRUST_DTYPE_AUTO,
		"float32": C.VRUST_DTYPE_FLOAT32, "float": C.VRUST_DTYPE_FLOAT32,
		"bfloat16": C.VRUST_DTYPE_BFLOAT16,
	}
	policies = map[string]C.uint32_t{
		"": C.VRUST_SCHEDULING_FCFS, "fcfs": C.VRUST_SCHEDULING_FCFS,
		"priority": C.VRUST_SCHEDULING_PRIORITY,
	}
)

// rawOptions owns the C side of Options until freed.
type rawOptions struct {
	c     *C.VrustEngineOptions
	texts []unsafe.Pointer
	err   error
}

func newRawOptions(o *Options) (*rawOptions, error) {
	raw := &rawOptions{}
	raw.c = (*C.VrustEngineOptions)(C.calloc(1, C.sizeof_VrustEngineOptions))
	if raw.c == nil {
		return nil, ErrOutOfMemory
	}
	C.vrust_engine_options_init(raw.c, C.sizeof_VrustEngineOptions)
	raw.c.model, raw.c.model_len = raw.text(o.Model)
	raw.c.tokenizer, raw.c.tokenizer_len = raw.text(o.Tokenizer)
	raw.c.chat_template, raw.c.chat_template_len = raw.text(o.ChatTemplate)
	if len(o.Extra) > 0 {
		extra, err := json.Marshal(o.Extra)
		raw.note(err)
		raw.c.extra_json, raw.c.extra_json_len = raw.text(string(extra))
	}
	raw.choice(&raw.c.backend, "backend", o.Backend, backends)
	raw.choice(&raw.c.load_format, "load_format", o.LoadFormat, loadFormats)
	raw.choice(&raw.c.dtype, "dtype", o.DType, dtypes)
	raw.choice(&raw.c.scheduling_policy, "scheduling_policy", o.SchedulingPolicy, policies)
	raw.numbers(o)
	if raw.err != nil {
		raw.free()
		return nil, raw.err
	}
	return raw, nil
}

// numbers sets what is not text; zero leaves the library's default.
func (raw *rawOptions) numbers(o *Options) {
	raw.c.kv_cache_memory_bytes = C.uint64_t(o.KVCacheMemoryBytes)
	if o.MaxUndrainedBytes != 0 {
		raw.c.max_undrained_bytes = C.uint64_t(o.MaxUndrainedBytes)
	}
	raw.c.seed = C.uint64_t(o.Seed)
	raw.count(&raw.c.max_model_len, "max_model_len", o.MaxModelLen)
	raw.count(&raw.c.max_num_seqs, "max_num_seqs", o.MaxNumSeqs)
	raw.count(&raw.c.max_num_batched_tokens, "max_num_batched_tokens", o.MaxNumBatchedTokens)
	raw.count(&raw.c.block_size, "block_size", o.BlockSize)
	raw.count(&raw.c.long_prefill_token_threshold, "long_prefill_token_threshold",
		o.LongPrefillTokenThreshold)
	raw.count(&raw.c.max_num_queued_reqs, "max_num_queued_reqs", o.MaxNumQueuedReqs)
	raw.count(&raw.c.cpu_threads, "cpu_threads", o.CPUThreads)
	raw.count(&raw.c.tensor_parallel_size, "tensor_parallel_size", o.TensorParallelSize)
	if o.MaxLogprobs != nil {
		raw.c.max_logprobs = 0
		raw.count(&raw.c.max_logprobs, "max_logprobs", *o.MaxLogprobs)
	}
	flag := func(field *C.uint32_t, off bool, value C.uint32_t) {
		if off {
			*field = value
		}
	}
	flag(&raw.c.enable_prefix_caching, o.NoPrefixCaching, 0)
	flag(&raw.c.enable_chunked_prefill, o.NoChunkedPrefill, 0)
	flag(&raw.c.use_generation_config, o.NoGenerationConfig, 0)
	flag(&raw.c.skip_tokenizer, o.SkipTokenizer, 1)
}

func (raw *rawOptions) note(err error) {
	if raw.err == nil {
		raw.err = err
	}
}

func (raw *rawOptions) text(s string) (*C.char, C.size_t) {
	if s == "" {
		return nil, 0
	}
	copied := C.CBytes([]byte(s))
	raw.texts = append(raw.texts, copied)
	return (*C.char)(copied), C.size_t(len(s))
}

func (raw *rawOptions) count(field *C.uint32_t, name string, value int) {
	switch {
	case value < 0 || value > math.MaxUint32:
		raw.note(badOption(name, value, fmt.Sprintf("must be from 0 to %d", math.MaxUint32)))
	case value != 0:
		*field = C.uint32_t(value)
	}
}

func (raw *rawOptions) choice(
	field *C.uint32_t, name, value string, known map[string]C.uint32_t,
) {
	number, ok := known[value]
	if !ok {
		raw.note(badOption(name, value, "is none of those that this version has"))
	}
	*field = number
}

func badOption(name string, value any, problem string) error {
	detail, _ := json.Marshal(map[string]any{"field": name, "value": value})
	message := fmt.Sprintf("%s: %s, got %#v", name, problem, value)
	return &Error{Code: ErrInvalidArgument, Message: message, Detail: detail}
}

func (raw *rawOptions) free() {
	for _, text := range raw.texts {
		C.free(text)
	}
	C.free(unsafe.Pointer(raw.c))
}
