package cli

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	vrust "github.com/vrust/vrust/bindings/go"
)

// count is a number that may be written as 32k (thousands) or 32K (1024s), 1m or 1M, and so on.
type count struct {
	value uint64
	auto  bool // "auto" or -1 is 0, the library's own choice.
	size  bool // In bytes: also 4GiB, 500MB.
}

// String is the value, for the help text.
func (c *count) String() string { return strconv.FormatUint(c.value, 10) }

// Type is what the help text calls it.
func (c *count) Type() string { return "number" }

var units = map[string]float64{
	"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12,
	"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40,
	"kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30,
}

// Set reads the value.
func (c *count) Set(text string) error {
	if c.auto && (text == "auto" || text == "-1") {
		c.value = 0
		return nil
	}
	digits := strings.TrimRight(text, "kKmMgGtTiIbB")
	unit := text[len(digits):]
	factor, known := units[unit]
	if !known && c.size {
		factor, known = units[strings.ToLower(unit)]
	}
	number, err := strconv.ParseFloat(digits, 64)
	value := number * factor
	if !known || err != nil || value < 0 || value > 1<<53 || value != math.Trunc(value) {
		return fmt.Errorf("must be a whole number such as 4096, 32k or 1M, got %q", text)
	}
	c.value = uint64(value)
	return nil
}

// quantization is how weights are rounded when they are loaded. vLLM's other values name formats of
// checkpoints.
type quantization string

func (q *quantization) String() string { return string(*q) }
func (q *quantization) Type() string   { return "string" }

func (q *quantization) Set(text string) error {
	switch text {
	case "", "none", "int8", "int4":
		*q = quantization(text)
		return nil
	}
	return fmt.Errorf("this version has none, int8 and int4")
}

// cacheDType is what keys and values are kept as: a flag's value.
type cacheDType string

func (c *cacheDType) String() string { return string(*c) }
func (c *cacheDType) Type() string   { return "string" }

func (c *cacheDType) Set(text string) error {
	switch text {
	case "auto", "float32", "bfloat16", "int8":
		*c = cacheDType(text)
		return nil
	}
	return fmt.Errorf("this version has auto, float32, bfloat16 and int8")
}

// device says where the engine runs: a flag's value.
type device string

func (d *device) String() string { return string(*d) }
func (d *device) Type() string   { return "string" }

func (d *device) Set(text string) error {
	ordinal, isCUDA := strings.CutPrefix(text, "cuda:")
	if _, err := strconv.ParseUint(ordinal, 10, 31); isCUDA && err == nil {
		*d = device(text)
		return nil
	}
	switch text {
	case "auto", "cpu", "cuda":
		*d = device(text)
		return nil
	}
	return fmt.Errorf("must be auto, cpu, cuda or cuda:N")
}

// share is a number above 0 and at most 1: a flag's value.
type share float64

func (s *share) String() string { return strconv.FormatFloat(float64(*s), 'g', -1, 64) }
func (s *share) Type() string   { return "float" }

func (s *share) Set(text string) error {
	value, err := strconv.ParseFloat(text, 64)
	if err != nil || !(value > 0 && value <= 1) {
		return fmt.Errorf("must be above 0 and at most 1")
	}
	*s = share(value)
	return nil
}

// fixedFlag is a flag of vLLM's of which vrust has only some values.
type fixedFlag struct {
	name, short, initial string
	allowed              []string
	// warning is printed when the flag is given and has no effect.
	warning string
	isBool  bool
}

var fixedFlags = []fixedFlag{
	{name: "tensor-parallel-size", initial: "1", allowed: []string{"1"}},
	{name: "pipeline-parallel-size", initial: "1", allowed: []string{"1"}},
	{name: "data-parallel-size", initial: "1", allowed: []string{"1"}},
	{name: "enable-expert-parallel", initial: "false", allowed: []string{"false"}, isBool: true},
	{name: "prefix-caching-hash-algo", initial: "sha256", allowed: []string{"sha256"}},
	{name: "cpu-offload-gb", initial: "0", allowed: []string{"0"}},
	{name: "speculative-config", allowed: []string{""}},
	{name: "enable-lora", initial: "false", allowed: []string{"false"}, isBool: true},
	{name: "lora-modules", allowed: []string{""}},
	{name: "logprobs-mode", initial: "raw_logprobs", allowed: []string{"raw_logprobs"}},
	{name: "stream-interval", initial: "1", allowed: []string{"1"}},
	{name: "hf-overrides", allowed: []string{"", "{}"}},
	{name: "override-generation-config", allowed: []string{"", "{}"}},
	{name: "tokenizer-mode", initial: "auto", allowed: []string{"auto"}},
	{name: "middleware", allowed: []string{""}},
	{name: "grpc-port", allowed: []string{""}},
	{name: "chat-template-content-format", initial: "auto", allowed: []string{"auto", "string"}},
	{name: "kv-transfer-config", allowed: []string{""}},
	{name: "kv-offloading-size", allowed: []string{"", "0"}},
	{name: "enable-log-outputs", initial: "false", allowed: []string{"false"}, isBool: true},
	{name: "sse-keep-alive-interval", initial: "0", allowed: []string{"0"}},
	{name: "trust-remote-code", initial: "false", isBool: true,
		warning: "vrust never runs a model's own code: its families are built in"},
	{name: "swap-space", initial: "0",
		warning: "preempted requests are computed again, not swapped"},
	{name: "optimization-level", short: "O", initial: "2", warning: "there is nothing to compile"},
	{name: "enable-server-load-tracking", initial: "true", isBool: true},
	{name: "enable-auto-tool-choice", initial: "true", isBool: true},
	{name: "disable-log-stats", initial: "false", isBool: true},
	{name: "disable-uvicorn-access-log", initial: "false", isBool: true},
}

func addFixedFlags(set *pflag.FlagSet) {
	for _, f := range fixedFlags {
		usage := "only " + strings.Join(f.allowed, " or ")
		switch {
		case f.warning != "":
			usage = "no effect: " + f.warning
		case f.allowed == nil:
			usage = "taken as vLLM's; always so"
		case f.initial == "" || f.isBool:
			usage = "not in this version"
		}
		if f.isBool {
			set.BoolP(f.name, f.short, f.initial == "true", usage)
			set.Bool("no-"+f.name, false, "the opposite")
			_ = set.MarkHidden("no-" + f.name)
		} else {
			set.StringP(f.name, f.short, f.initial, usage)
		}
	}
}

// checkFixedFlags refuses values that vrust cannot honour and gives the warnings of the rest.
func checkFixedFlags(set *pflag.FlagSet) ([]string, error) {
	var warnings []string
	for _, f := range fixedFlags {
		flag := set.Lookup(f.name)
		value := flag.Value.String()
		if f.allowed != nil && !slices.Contains(f.allowed, value) {
			return nil, usagef("--%s %s is not supported by this version of vrust", f.name, value)
		}
		if flag.Changed && f.warning != "" {
			warnings = append(warnings, fmt.Sprintf("--%s has no effect: %s", f.name, f.warning))
		}
	}
	return warnings, nil
}

// engineFlags are the flags about the engine, which several commands share.
type engineFlags struct {
	options                                      vrust.Options
	model, chatTemplate, generationConfig, extra string
	revision, downloadDir                        string
	maxModelLen, kvBytes, batchedTokens          count
	quantization                                 quantization
	kvCacheDType                                 cacheDType
	device                                       device
	gpuMemory                                    share
	enforceEager                                 bool
	names                                        []string
	maxLogprobs                                  int
	noPrefix, noChunked, noAsync                 bool
	prefix, chunked, async                       bool
}

func (e *engineFlags) add(set *pflag.FlagSet) {
	e.maxModelLen.auto, e.kvBytes.size = true, true
	e.device, e.gpuMemory, e.kvCacheDType = "auto", 0.92, "auto"
	o := &e.options
	set.StringVar(&e.model, "model", "", "the model, as the positional argument")
	set.StringVar(&o.Tokenizer, "tokenizer", "", "folder of the tokenizer; the model's by default")
	set.StringVar(&e.revision, "revision", "main", "branch, tag or commit of a model of the hub")
	set.StringVar(&e.downloadDir, "download-dir", "", "where models of the hub are kept")
	set.StringVar(&o.LoadFormat, "load-format", "auto", "auto, safetensors or dummy")
	set.StringVar(&o.DType, "dtype", "auto", "auto, float32 or bfloat16")
	set.VarP(&e.quantization, "quantization", "q",
		"int8 or int4: round the weights when they are loaded")
	set.Var(&e.kvCacheDType, "kv-cache-dtype",
		"auto: the model's precision; int8: keys and values in 8 bits, on a CPU")
	set.StringVar(&o.Backend, "backend", "auto", "auto: by --device; cpu or reference")
	set.Var(&e.device, "device", "auto: a GPU where one can be used; cpu; cuda or cuda:N")
	set.Var(&e.gpuMemory, "gpu-memory-utilization", "share of a GPU's memory; no effect on a CPU")
	set.BoolVar(&e.enforceEager, "enforce-eager", false, "no CUDA graphs; no effect on a CPU")
	set.BoolVar(&e.async, "async-scheduling", true,
		"prepare a step while a GPU runs the one before; no effect on a CPU")
	set.BoolVar(&e.noAsync, "no-async-scheduling", false, "the opposite")
	set.StringVar(&o.SchedulingPolicy, "scheduling-policy", "fcfs", "fcfs or priority")
	set.Var(&e.maxModelLen, "max-model-len", "most positions of a sequence; the model's by default")
	set.Var(&e.kvBytes, "kv-cache-memory-bytes", "bytes of the KV cache")
	set.Var(&e.batchedTokens, "max-num-batched-tokens", "most tokens of a step; 2048 by default")
	set.IntVar(&o.MaxNumSeqs, "max-num-seqs", 0, "most sequences of a step; 128 by default")
	set.IntVar(&o.BlockSize, "block-size", 16, "positions of a KV block")
	set.IntVar(&o.LongPrefillTokenThreshold, "long-prefill-token-threshold", 0,
		"longest part of a prompt in a step")
	set.IntVar(&o.MaxNumQueuedReqs, "max-num-queued-reqs", 0, "most requests waiting; 4096")
	set.IntVar(&e.maxLogprobs, "max-logprobs", 20, "most logprobs a request may ask for")
	set.IntVar(&o.CPUThreads, "cpu-threads", 0, "compute threads; one a core by default")
	set.Uint64Var(&o.Seed, "seed", 0, "seed of requests that bring none")
	set.BoolVar(&e.prefix, "enable-prefix-caching", true, "share the blocks of equal prefixes")
	set.BoolVar(&e.noPrefix, "no-enable-prefix-caching", false, "the opposite")
	set.BoolVar(&e.chunked, "enable-chunked-prefill", true, "cut long prompts to the step's budget")
	set.BoolVar(&e.noChunked, "no-enable-chunked-prefill", false, "the opposite")
	set.StringVar(&e.chatTemplate, "chat-template", "", "Jinja template: a file, or its text")
	set.StringVar(&e.generationConfig, "generation-config", "auto",
		"auto: sampling defaults from the model; vllm: none")
	set.StringVar(&e.extra, "engine-extra", "", "JSON object of rarer options of the engine")
}

// resolve turns the flags into the engine's options. The model's folder must be there by now.
func (e *engineFlags) resolve(folder string) (vrust.Options, error) {
	o := e.options
	o.Model = folder
	o.MaxModelLen = int(e.maxModelLen.value)
	o.KVCacheMemoryBytes = e.kvBytes.value
	o.MaxNumBatchedTokens = int(e.batchedTokens.value)
	o.MaxLogprobs = &e.maxLogprobs
	o.NoPrefixCaching = e.noPrefix || !e.prefix
	o.NoChunkedPrefill = e.noChunked || !e.chunked
	switch e.generationConfig {
	case "auto":
	case "vllm", "vrust", "none":
		o.NoGenerationConfig = true
	default:
		return o, usagef("--generation-config must be auto or vllm, got %q", e.generationConfig)
	}
	if e.chatTemplate != "" {
		template, err := os.ReadFile(e.chatTemplate)
		switch {
		case err == nil:
			o.ChatTemplate = string(template)
		case strings.ContainsAny(e.chatTemplate, "{}\n"):
			o.ChatTemplate = e.chatTemplate
		default:
			return o, usagef("--chat-template: %v", err)
		}
	}
	if e.extra != "" {
		if err := json.Unmarshal([]byte(e.extra), &o.Extra); err != nil {
			return o, usagef("--engine-extra must be a JSON object: %v", err)
		}
	}
	extra := map[string]any{
		"gpu_memory_utilization": float64(e.gpuMemory),
		"enforce_eager":          e.enforceEager,
		"async_scheduling":       e.async && !e.noAsync,
	}
	if e.quantization != "" {
		extra["quantization"] = string(e.quantization)
	}
	if e.kvCacheDType != "auto" {
		extra["kv_cache_dtype"] = string(e.kvCacheDType)
	}
	// A backend that is named needs no device.
	if o.Backend == "auto" {
		extra["device"] = string(e.device)
	}
	maps.Copy(extra, o.Extra)
	o.Extra = extra
	return o, nil
}
