package vrust

/*
#cgo noescape vrust_submit_json
#cgo nocallback vrust_submit_json
#include <vrust/vrust.h>
*/
import "C"

import (
	"context"
	"encoding/json"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
)

// Engine is a model being served. Close it to give its memory back; an engine that is no longer
// reachable is closed too, some time later.
type Engine struct {
	*core
	cleanup runtime.Cleanup
}

// State is what an engine is doing.
type State uint32

// The states of an engine.
const (
	// Loading: reading weights; requests are accepted and wait.
	Loading State = C.VRUST_STATE_LOADING
	// Ready: serving.
	Ready State = C.VRUST_STATE_READY
	// Draining: finishing what it has; new requests are refused.
	Draining State = C.VRUST_STATE_DRAINING
	// Failed: every request was ended with an error.
	Failed State = C.VRUST_STATE_FAILED
	// Closed: shut down.
	Closed State = C.VRUST_STATE_CLOSED
)

// core is what the engine's own goroutine shares with it, so that an Engine that is no longer
// reachable can be collected.
type core struct {
	engine *C.VrustEngine
	queue  *C.VrustQueue
	onLoad func(float64)
	wake   *os.File
	// loaded is closed when loading has ended, well or not; drained when no event can come.
	loaded  chan struct{}
	drained chan struct{}
	once    sync.Once
	closed  atomic.Bool
	ending  atomic.Bool // The queue is about to be destroyed: it has no more events.
	nextKey atomic.Uint64
	mu      sync.Mutex
	streams map[uint64]*Stream
}

// Start makes an engine and returns while it loads its weights. Requests may be submitted at
// once; they wait. Errors: the options and the model's folder.
func Start(options Options) (*Engine, error) {
	raw, err := newRawOptions(&options)
	if err != nil {
		return nil, err
	}
	defer raw.free()
	c := &core{
		onLoad: options.OnLoad, loaded: make(chan struct{}), drained: make(chan struct{}),
		streams: map[uint64]*Stream{},
	}
	var failure *C.VrustError
	status := C.vrust_engine_create(raw.c, &c.engine, &failure)
	if err := check(status, failure); err != nil {
		return nil, err
	}
	if err := c.listen(); err != nil {
		C.vrust_engine_destroy(c.engine)
		return nil, err
	}
	go c.drain()
	engine := &Engine{core: c}
	engine.cleanup = runtime.AddCleanup(engine, func(c *core) { go c.close() }, c)
	return engine, nil
}

// Open makes an engine and waits until it is ready, as Start and WaitReady do.
func Open(ctx context.Context, options Options) (*Engine, error) {
	engine, err := Start(options)
	if err != nil {
		return nil, err
	}
	if err := engine.WaitReady(ctx); err != nil {
		engine.Close()
		return nil, err
	}
	return engine, nil
}

// listen puts the default queue's descriptor under Go's network poller.
func (c *core) listen() error {
	var failure *C.VrustError
	status := C.vrust_engine_default_queue(c.engine, &c.queue, &failure)
	if err := check(status, failure); err != nil {
		return err
	}
	var fd C.int32_t
	if err := check(C.vrust_queue_fd(c.queue, &fd, &failure), failure); err != nil {
		return err
	}
	// Go's poller asks for both directions, and every read of the descriptor by the library is an
	// event "writable", which would wake a thread for nothing at each step. An epoll descriptor of
	// our own in between passes on only "readable". It is also what may be closed: the other one is
	// the queue's.
	only, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	event := syscall.EpollEvent{Events: syscall.EPOLLIN}
	err = syscall.EpollCtl(only, syscall.EPOLL_CTL_ADD, int(fd), &event)
	if err == nil {
		err = syscall.SetNonblock(only, true)
	}
	if err != nil {
		_ = syscall.Close(only)
		return err
	}
	c.wake = os.NewFile(uintptr(only), "vrust queue")
	return nil
}

// WaitReady waits until the engine has loaded. The reason, when loading failed; ErrShuttingDown
// when it was closed meanwhile; the context's cause when that ends first.
func (e *Engine) WaitReady(ctx context.Context) error {
	select {
	case <-e.loaded:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if e.closed.Load() {
		return errClosed()
	}
	defer keep(e)
	var failure *C.VrustError
	return check(C.vrust_engine_wait_ready(e.engine, -1, &failure), failure)
}

// State is what the engine is doing.
func (e *Engine) State() State {
	defer keep(e)
	var state C.uint32_t
	if C.vrust_engine_state(e.engine, &state, nil) < 0 {
		return Closed
	}
	return State(state)
}

// Info is a JSON object of facts about the loaded engine: model, max_model_len, vocab_size,
// dtype, KV blocks, backend and others.
func (e *Engine) Info() (json.RawMessage, error) {
	defer keep(e)
	var bytes *C.VrustBytes
	var failure *C.VrustError
	if err := check(C.vrust_engine_info_json(e.engine, &bytes, &failure), failure); err != nil {
		return nil, err
	}
	return takeBytes(bytes), nil
}

// Metrics is the engine's figures in Prometheus' text format, under vLLM's names.
func (e *Engine) Metrics() ([]byte, error) {
	defer keep(e)
	var bytes *C.VrustBytes
	var failure *C.VrustError
	if err := check(C.vrust_stats_prometheus(e.engine, &bytes, &failure), failure); err != nil {
		return nil, err
	}
	return takeBytes(bytes), nil
}

// Drain refuses new requests from now on and waits until the live ones have ended, or until the
// context ends: then they go on, and Drain may be called again. Close the engine afterwards.
func (e *Engine) Drain(ctx context.Context) error {
	defer keep(e)
	const sliceMS = 50
	for {
		if e.closed.Load() {
			return nil
		}
		var failure *C.VrustError
		status := C.vrust_engine_shutdown(e.engine, C.VRUST_SHUTDOWN_DRAIN, sliceMS, &failure)
		if err := check(status, failure); err != nil || status == C.VRUST_OK {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// AbortAll aborts every request that has not ended.
func (e *Engine) AbortAll() error {
	defer keep(e)
	var failure *C.VrustError
	return check(C.vrust_abort_all(e.engine, &failure), failure)
}

// Close aborts what runs, ends the engine, and waits until its memory is given back. Streams that
// are still being read end with an error. Closing again does nothing.
func (e *Engine) Close() error {
	e.cleanup.Stop()
	e.close()
	return nil
}

func (c *core) close() {
	c.once.Do(func() {
		c.closed.Store(true)
		C.vrust_engine_destroy(c.engine)
	})
	<-c.drained
}

func errClosed() error {
	return &Error{Code: ErrShuttingDown, Message: "the engine is closed"}
}

// submit registers the stream under a key of its own, since its first events may come before the
// library's call returns.
func (c *core) submit(body []byte) (*Stream, error) {
	if c.closed.Load() {
		return nil, errClosed()
	}
	key := c.nextKey.Add(1)
	stream := newStream(c)
	c.mu.Lock()
	c.streams[key] = stream
	c.mu.Unlock()
	var failure *C.VrustError
	var id C.uint64_t
	data, size := textOf(body)
	status := C.vrust_submit_json(c.engine, c.queue, data, size, C.uint64_t(key), &id, &failure)
	if err := check(status, failure); err != nil {
		c.forget(key)
		return nil, c.whyEnded(err)
	}
	stream.id = uint64(id)
	return stream, nil
}

// whyEnded is what a refused request should hear once the queue is gone: that the engine is closed
// or has failed, not that a handle is stale.
func (c *core) whyEnded(err error) error {
	if c.closed.Load() {
		return errClosed()
	}
	if !c.ending.Load() {
		return err
	}
	var state C.uint32_t
	if C.vrust_engine_state(c.engine, &state, nil) >= 0 && state == C.VRUST_STATE_FAILED {
		return &Error{Code: ErrEngineFailed, Message: "the engine has failed"}
	}
	return errClosed()
}

func (c *core) forget(key uint64) {
	c.mu.Lock()
	delete(c.streams, key)
	c.mu.Unlock()
}

// abort ends a request. It may have ended already, with its engine even: both are fine.
func (c *core) abort(id uint64) { C.vrust_abort(c.engine, C.uint64_t(id), nil) }
