package vrust

/*
#include <vrust/vrust.h>
*/
import "C"

import (
	"context"
	"encoding/json"
	"io"
	"iter"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// Delta is new output of one choice. Deltas that wait for a slow reader become one.
type Delta struct {
	// Choice is the choice's index, 0 to n - 1.
	Choice int
	// Text is whole UTF-8 characters; it may be empty while one is incomplete.
	Text string
	// TokenIDs are the tokens. Their text may come with a later delta.
	TokenIDs []uint32
	// Logprobs has one record list a token, if asked for: first the token itself, then the most
	// likely ones, best first. In the prompt's delta the first list is empty.
	Logprobs [][]Logprob
	// IsPrompt marks the delta about the prompt, which comes first, when prompt_logprobs or echo
	// ask for one.
	IsPrompt bool
	// Finish is set in the last delta of a choice.
	Finish *Finish
}

// Finish is how a choice ended.
type Finish struct {
	// Reason is "stop", "length", "abort" or "deadline".
	Reason string
	// StopReason is the stop string (string) or stop token id (uint32) that ended it, or nil.
	StopReason any
	// PromptTokens counts the prompt's tokens, CachedTokens those found in the prefix cache.
	PromptTokens, CachedTokens int
	// CompletionTokens counts the tokens generated for this choice.
	CompletionTokens int
	// CumulativeLogprob is the sum of the chosen tokens' logprobs, if asked for.
	CumulativeLogprob float64
	// Queued is the time from submission until the choice was first scheduled, FirstToken until
	// its first token, and Total until its last. 0 for what never happened.
	Queued, FirstToken, Total time.Duration
}

// Logprob is the log probability of one token at one place, before penalties and temperature.
type Logprob struct {
	// TokenID is the token.
	TokenID uint32
	// Value is the natural logarithm of its probability.
	Value float32
	// Rank is 1 for the most likely token.
	Rank uint32
}

// Stream is the output of one request. One goroutine reads it; any may Close it.
type Stream struct {
	core   *core
	id     uint64
	ended  atomic.Bool
	signal chan struct{}
	// watched is the end of Submit's context, which signals as well.
	watched <-chan struct{}
	stop    func() bool
	mu      sync.Mutex
	items   []item
	done    bool
	// ids is what is left of a piece of memory that deltas' token ids are cut from: an allocation
	// for each token would cost more than the token's way.
	ids []uint32
}

// idsPiece is how many token ids are allocated at once.
const idsPiece = 64

// item is a delta that may still grow, or the error that ended the stream.
type item struct {
	delta Delta
	text  []byte
	err   error
}

func newStream(c *core) *Stream {
	return &Stream{core: c, signal: make(chan struct{}, 1)}
}

// Submit hands a request over and returns the stream of its output. The context ends the request
// when it ends first; what it was given as cause is then the stream's error. Errors at once: bad
// parameters (ErrInvalidArgument, naming the field), ErrUnsupported, ErrContextLength,
// ErrQueueFull, ErrShuttingDown. What shows up later is the stream's error.
func (e *Engine) Submit(ctx context.Context, request Request) (*Stream, error) {
	defer keep(e)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	body, err := json.Marshal(&request)
	if err != nil {
		return nil, &Error{Code: ErrInvalidArgument, Message: err.Error()}
	}
	return e.SubmitJSON(ctx, body)
}

// SubmitJSON is Submit for the body of an OpenAI completions or chat completions request, with
// vLLM's further fields; see vrust_submit_json in vrust.h.
func (e *Engine) SubmitJSON(ctx context.Context, body []byte) (*Stream, error) {
	defer keep(e)
	stream, err := e.submit(body)
	if err != nil {
		return nil, err
	}
	if ctx.Done() != nil {
		stream.watched = ctx.Done()
		stream.watch(context.AfterFunc(ctx, func() {
			stream.abort()
			stream.wake()
		}))
	}
	return stream, nil
}

// Generate submits a request and yields its deltas. Leaving the loop, or the end of the context,
// aborts the request. An error, of the kinds that Submit and Next give, is the last thing yielded.
func (e *Engine) Generate(ctx context.Context, request Request) iter.Seq2[Delta, error] {
	return func(yield func(Delta, error) bool) {
		stream, err := e.Submit(ctx, request)
		if err != nil {
			yield(Delta{}, err)
			return
		}
		defer stream.Close()
		for {
			delta, err := stream.Next(ctx)
			if err == io.EOF {
				return
			}
			if !yield(delta, err) || err != nil {
				return
			}
		}
	}
}

// Next waits for the next delta. io.EOF after the last one; the context's cause when it ends
// first; else why the request failed.
func (s *Stream) Next(ctx context.Context) (Delta, error) {
	for {
		delta, err, found := s.take()
		if found {
			return delta, err
		}
		if done := ctx.Done(); done == nil || done == s.watched { // One channel is cheaper than two.
			<-s.signal
		} else {
			select {
			case <-s.signal:
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			return Delta{}, context.Cause(ctx)
		}
	}
}

// RequestID is the engine's number of the request.
func (s *Stream) RequestID() uint64 { return s.id }

// Close aborts the request if it has not ended. What came before can still be read.
func (s *Stream) Close() {
	s.watch(nil)
	s.abort()
}

// watch replaces what ends the watch over the context. The stream may have ended already.
func (s *Stream) watch(stop func() bool) {
	s.mu.Lock()
	if !s.done {
		s.stop, stop = stop, s.stop
	}
	s.mu.Unlock()
	if stop != nil {
		stop()
	}
}

func (s *Stream) abort() {
	if !s.ended.Load() {
		s.core.abort(s.id)
	}
}

func (s *Stream) take() (Delta, error, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.items) == 0 {
		if s.done {
			return Delta{}, io.EOF, true
		}
		return Delta{}, nil, false
	}
	first := &s.items[0]
	delta, err := first.delta, first.err
	delta.Text = string(first.text)
	*first = item{text: first.text[:0]}
	if len(s.items) == 1 {
		s.items = s.items[:0] // The slot, and its text buffer, are used again.
	} else {
		s.items = s.items[1:]
	}
	return delta, err, true
}

// push adds events, extending the newest delta where it can. The caller then wakes the reader.
func (s *Stream) push(events []C.VrustEvent, arena []byte, ended bool) {
	s.mu.Lock()
	for i := range events {
		s.add(&events[i], arena)
	}
	s.end(ended)
}

func (s *Stream) fail(err error) {
	s.mu.Lock()
	s.next().err = err
	s.end(true)
	s.wake()
}

// end unlocks the stream.
func (s *Stream) end(ended bool) {
	var stop func() bool
	if ended {
		s.done, stop, s.stop = true, s.stop, nil
	}
	s.mu.Unlock()
	if ended {
		s.ended.Store(true)
	}
	if stop != nil {
		stop()
	}
}

// wake has the reader look again.
func (s *Stream) wake() {
	select {
	case s.signal <- struct{}{}:
	default:
	}
}

// next is a fresh item at the end.
func (s *Stream) next() *item {
	if n := len(s.items); n < cap(s.items) {
		s.items = s.items[:n+1]
		s.items[n] = item{text: s.items[n].text[:0]}
	} else {
		s.items = append(s.items, item{})
	}
	return &s.items[len(s.items)-1]
}

// open is the newest item if it is an unfinished delta of the choice, else a fresh one.
func (s *Stream) open(choice int) *item {
	if n := len(s.items); n > 0 {
		tail := &s.items[n-1]
		plain := tail.err == nil && !tail.delta.IsPrompt && tail.delta.Finish == nil
		if plain && tail.delta.Choice == choice {
			return tail
		}
	}
	fresh := s.next()
	fresh.delta.Choice = choice
	return fresh
}

func (s *Stream) add(event *C.VrustEvent, arena []byte) {
	choice := int(event.choice)
	switch event.kind {
	case C.VRUST_EVENT_DELTA:
		s.extend(s.open(choice), event, arena)
	case C.VRUST_EVENT_PROMPT:
		prompt := s.next()
		prompt.delta.Choice, prompt.delta.IsPrompt = choice, true
		s.extend(prompt, event, arena)
	case C.VRUST_EVENT_FINISHED:
		s.open(choice).delta.Finish = finishOf(event, arena)
	case C.VRUST_EVENT_ERROR:
		s.next().err = &Error{
			Code: Code(event.status), Message: string(textAt(event, arena)),
			Detail:    json.RawMessage(detailAt(event, arena)),
			Retryable: event.status == C.VRUST_ERROR_QUEUE_FULL,
		}
	}
}

func (s *Stream) extend(it *item, event *C.VrustEvent, arena []byte) {
	it.text = append(it.text, textAt(event, arena)...)
	if event.num_tokens > 0 {
		ids := unsafe.Slice((*uint32)(unsafe.Pointer(&arena[event.tokens_offset])), event.num_tokens)
		it.delta.TokenIDs = s.appendIDs(it.delta.TokenIDs, ids)
	}
	if event.num_logprobs > 0 {
		first := (*C.VrustLogprob)(unsafe.Pointer(&arena[event.logprobs_offset]))
		it.addLogprobs(unsafe.Slice(first, event.num_logprobs))
	}
}

// appendIDs appends. A delta's first ids, most often its only one, are cut from the piece.
func (s *Stream) appendIDs(to, ids []uint32) []uint32 {
	if len(to) > 0 || len(ids) > idsPiece/4 {
		return append(to, ids...)
	}
	if len(ids) > len(s.ids) {
		s.ids = make([]uint32, idsPiece)
	}
	own := s.ids[:len(ids):len(ids)] // Full: what is appended later goes elsewhere.
	s.ids = s.ids[len(ids):]
	copy(own, ids)
	return own
}

// addLogprobs appends one list for each position, up to the last one that has records.
func (it *item) addLogprobs(records []C.VrustLogprob) {
	flat := make([]Logprob, len(records))
	base := len(it.delta.Logprobs)
	for i, record := range records {
		flat[i] = Logprob{uint32(record.token_id), float32(record.logprob), uint32(record.rank)}
		row := base + int(record.position)
		for len(it.delta.Logprobs) <= row {
			it.delta.Logprobs = append(it.delta.Logprobs, nil)
		}
		begin := i - len(it.delta.Logprobs[row])
		it.delta.Logprobs[row] = flat[begin : i+1 : i+1]
	}
}

func finishOf(event *C.VrustEvent, arena []byte) *Finish {
	finish := &Finish{
		PromptTokens: int(event.prompt_tokens), CachedTokens: int(event.cached_tokens),
		CompletionTokens:  int(event.completion_tokens),
		CumulativeLogprob: float64(event.value),
		Queued:            since(event.arrival_ns, event.scheduled_ns),
		FirstToken:        since(event.arrival_ns, event.first_token_ns),
		Total:             since(event.arrival_ns, event.last_token_ns),
	}
	switch event.finish_reason {
	case C.VRUST_FINISH_EOS:
		finish.Reason = "stop"
	case C.VRUST_FINISH_STOP_TOKEN:
		finish.Reason, finish.StopReason = "stop", uint32(event.stop_token_id)
	case C.VRUST_FINISH_STOP_STRING:
		finish.Reason, finish.StopReason = "stop", string(detailAt(event, arena))
	case C.VRUST_FINISH_LENGTH:
		finish.Reason = "length"
	case C.VRUST_FINISH_ABORT:
		finish.Reason = "abort"
	case C.VRUST_FINISH_DEADLINE:
		finish.Reason = "deadline"
	default:
		finish.Reason = "unknown"
	}
	return finish
}

func since(from, to C.uint64_t) time.Duration {
	if to < from {
		return 0
	}
	return time.Duration(to - from)
}

func textAt(event *C.VrustEvent, arena []byte) []byte {
	return arena[event.text_offset:][:event.text_len]
}

func detailAt(event *C.VrustEvent, arena []byte) []byte {
	return arena[event.detail_offset:][:event.detail_len]
}
