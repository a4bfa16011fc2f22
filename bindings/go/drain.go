package vrust

/*
#cgo noescape vrust_queue_poll
#cgo nocallback vrust_queue_poll
#include <vrust/vrust.h>
*/
import "C"

import "unsafe"

const (
	drainEvents = 256
	drainArena  = 1 << 20
)

// batch is where one poll writes.
type batch struct {
	events []C.VrustEvent
	arena  []byte
	filled []byte
	// readers are the streams that got something.
	readers []*Stream
}

// drain is the goroutine of an engine that hands its events out. It waits in the network poller
// and holds no thread meanwhile.
func (c *core) drain() {
	into := &batch{events: make([]C.VrustEvent, drainEvents), arena: make([]byte, drainArena)}
	ended := C.VrustStatus(C.VRUST_CLOSED)
	conn, err := c.wake.SyscallConn()
	if err == nil {
		// The callback says false for "nothing there": only then does the poller wait.
		err = conn.Read(func(uintptr) bool {
			for {
				status, events := c.poll(into)
				switch {
				case status == C.VRUST_OK || status == C.VRUST_TRUNCATED:
					c.hand(events, into)
				case status == C.VRUST_TIMEOUT:
					return false
				default:
					ended = status
					return true
				}
			}
		})
	}
	c.ending.Store(true)
	c.endStreams(ended, err)
	c.wake.Close()
	C.vrust_queue_destroy(c.queue)
	c.endLoading()
	close(c.drained)
}

// poll takes what waits, growing the arena for an event that does not fit.
func (c *core) poll(into *batch) (C.VrustStatus, []C.VrustEvent) {
	for {
		var events, bytes C.size_t
		status := C.vrust_queue_poll(
			c.queue, &into.events[0], C.sizeof_VrustEvent, C.size_t(len(into.events)),
			(*C.uint8_t)(unsafe.Pointer(&into.arena[0])), C.size_t(len(into.arena)), 0,
			&events, &bytes, nil)
		if status == C.VRUST_ERROR_BUFFER_TOO_SMALL {
			into.arena = make([]byte, bytes)
			continue
		}
		if status != C.VRUST_OK && status != C.VRUST_TRUNCATED {
			return status, nil
		}
		into.filled = into.arena[:bytes]
		return status, into.events[:events]
	}
}

// hand gives events to their streams, and then wakes the readers: a step has an event for each
// stream, and readers that wake together cost Go's scheduler far less than one at a time.
// Neighbours of one stream go together, so that the last text of a choice and its end come as one
// delta.
func (c *core) hand(events []C.VrustEvent, into *batch) {
	for len(events) > 0 {
		first := &events[0]
		if first.request_id == 0 {
			c.engineEvent(first)
			events = events[1:]
			continue
		}
		count := 1
		for count < len(events) && events[count].request_id == first.request_id {
			count++
		}
		ended := events[count-1].flags&C.VRUST_EVENT_LAST != 0
		if stream := c.stream(uint64(first.user_data), ended); stream != nil {
			stream.push(events[:count], into.filled, ended)
			into.readers = append(into.readers, stream)
		}
		events = events[count:]
	}
	for i, reader := range into.readers {
		reader.wake()
		into.readers[i] = nil
	}
	into.readers = into.readers[:0]
}

// stream finds a stream, and forgets it if it ends here.
func (c *core) stream(key uint64, ended bool) *Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	found := c.streams[key]
	if ended {
		delete(c.streams, key)
	}
	return found
}

func (c *core) engineEvent(event *C.VrustEvent) {
	switch event.kind {
	case C.VRUST_EVENT_LOAD:
		if c.onLoad != nil {
			c.onLoad(float64(event.value))
		}
		if event.value >= 1 {
			c.endLoading()
		}
	case C.VRUST_EVENT_ENGINE_FAILED:
		c.endLoading()
	}
}

// endLoading lets WaitReady ask how loading went. Only the drainer calls it.
func (c *core) endLoading() {
	select {
	case <-c.loaded:
	default:
		close(c.loaded)
	}
}

// endStreams fails whatever can receive no more events.
func (c *core) endStreams(status C.VrustStatus, err error) {
	c.mu.Lock()
	rest := c.streams
	c.streams = map[uint64]*Stream{}
	c.mu.Unlock()
	if err == nil {
		err = errClosed()
		if status < 0 {
			err = &Error{Code: Code(status), Message: "the engine's events cannot be read"}
		}
	}
	for _, stream := range rest {
		stream.fail(err)
	}
}
