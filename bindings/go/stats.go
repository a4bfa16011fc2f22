package vrust

/*
#include <vrust/vrust.h>
*/
import "C"

// Stats is a snapshot of an engine's figures. Counters count from its start.
type Stats struct {
	// NumRequestsRunning counts sequences that are being computed, NumRequestsWaiting those that
	// wait for their turn, LiveRequests the requests accepted and not ended.
	NumRequestsRunning, NumRequestsWaiting, LiveRequests uint64
	// KVBlocksTotal counts KV blocks; used, cached and free ones add up to it.
	KVBlocksTotal, KVBlocksUsed, KVBlocksCached, KVBlocksFree uint64
	// KVCacheUsage is used / total, 0 to 1.
	KVCacheUsage float64
	// PrefixCacheQueries and PrefixCacheHits count tokens looked up and found.
	PrefixCacheQueries, PrefixCacheHits uint64
	// NumPreemptions counts sequences that lost their blocks to others.
	NumPreemptions uint64
	// PromptTokens counts tokens of prompts computed, PromptTokensCached those of them that came
	// from the prefix cache, GenerationTokens the tokens generated.
	PromptTokens, PromptTokensCached, GenerationTokens uint64
	// Choices that ended, by how they did.
	FinishedStop, FinishedLength, FinishedAbort, FinishedDeadline, FinishedError uint64
	// RejectedQueueFull counts requests turned away because the waiting queue was full.
	RejectedQueueFull uint64
	// UndrainedBytes of events that have not reached the streams.
	UndrainedBytes uint64
	// Steps done, and the seconds of all of them.
	Steps       uint64
	StepSeconds float64
}

// Stats takes a snapshot, without waiting for a step. All zero after Close.
func (e *Engine) Stats() Stats {
	defer keep(e)
	var s C.VrustStats
	C.vrust_stats_get(e.engine, &s, C.sizeof_VrustStats, nil)
	return Stats{
		NumRequestsRunning: uint64(s.num_requests_running),
		NumRequestsWaiting: uint64(s.num_requests_waiting),
		LiveRequests:       uint64(s.live_requests),
		KVBlocksTotal:      uint64(s.kv_blocks_total),
		KVBlocksUsed:       uint64(s.kv_blocks_used),
		KVBlocksCached:     uint64(s.kv_blocks_cached),
		KVBlocksFree:       uint64(s.kv_blocks_free),
		KVCacheUsage:       float64(s.kv_cache_usage),
		PrefixCacheQueries: uint64(s.prefix_cache_queries),
		PrefixCacheHits:    uint64(s.prefix_cache_hits),
		NumPreemptions:     uint64(s.num_preemptions),
		PromptTokens:       uint64(s.prompt_tokens),
		PromptTokensCached: uint64(s.prompt_tokens_cached),
		GenerationTokens:   uint64(s.generation_tokens),
		FinishedStop:       uint64(s.finished_stop),
		FinishedLength:     uint64(s.finished_length),
		FinishedAbort:      uint64(s.finished_abort),
		FinishedDeadline:   uint64(s.finished_deadline),
		FinishedError:      uint64(s.finished_error),
		RejectedQueueFull:  uint64(s.rejected_queue_full),
		UndrainedBytes:     uint64(s.undrained_bytes),
		Steps:              uint64(s.steps),
		StepSeconds:        float64(s.step_seconds),
	}
}
