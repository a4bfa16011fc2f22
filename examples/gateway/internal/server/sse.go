package server

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"
)

// events writes a stream of server-sent events, each in one write.
type events struct {
	w       http.ResponseWriter
	control *http.ResponseController
	// flush is the control's, looked up once and not for every token.
	flush  func() error
	begun  bool
	buffer []byte
	// patience is how long a write may take. The deadline is not moved for every token, but when
	// a quarter of it has passed.
	patience time.Duration
	extended time.Time
}

func (g *generation) newEvents(w http.ResponseWriter) *events {
	patience := g.server.config.WritePatience
	control := http.NewResponseController(w)
	return &events{w: w, control: control, flush: flusher(w, control), patience: patience}
}

// flusher finds what sends a writer's bytes on.
func flusher(w http.ResponseWriter, control *http.ResponseController) func() error {
	for {
		switch writer := w.(type) {
		case interface{ FlushError() error }:
			return writer.FlushError
		case interface{ Unwrap() http.ResponseWriter }:
			w = writer.Unwrap()
		default:
			return control.Flush
		}
	}
}

// send writes what stands in the buffer, which the caller has filled with whole events.
func (e *events) send() error {
	if !e.begun {
		e.begun = true
		header := e.w.Header()
		header.Set("Content-Type", "text/event-stream; charset=utf-8")
		header.Set("Cache-Control", "no-cache")
		header.Set("X-Accel-Buffering", "no") // nginx passes chunks on at once.
		e.w.WriteHeader(http.StatusOK)
	}
	if now := time.Now(); now.Sub(e.extended) > e.patience/4 {
		e.extended = now
		_ = e.control.SetWriteDeadline(now.Add(e.patience))
	}
	_, err := e.w.Write(e.buffer)
	e.buffer = e.buffer[:0]
	if err != nil {
		return err
	}
	return e.flush()
}

// add puts a document into the buffer as one event.
func (e *events) add(document any) {
	encoded, err := json.Marshal(document)
	if err != nil {
		encoded = []byte("{}")
	}
	e.buffer = append(e.buffer, "data: "...)
	e.buffer = append(e.buffer, encoded...)
	e.buffer = append(e.buffer, "\n\n"...)
}

// finish ends the stream, after an error that is sent as an event of its own, or none.
func (e *events) finish(err error) error {
	if err != nil {
		e.add(map[string]any{"error": asAPIError(err)})
	}
	e.buffer = append(e.buffer, "data: [DONE]\n\n"...)
	return e.send()
}

// appendString appends a JSON string. Plain text, most of it, is copied as it is.
func appendString(to []byte, s string) []byte {
	plain := true
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c >= utf8.RuneSelf || c == '"' || c == '\\' {
			plain = false
			break
		}
	}
	if plain {
		to = append(to, '"')
		to = append(to, s...)
		return append(to, '"')
	}
	encoded, err := json.Marshal(s)
	if err != nil {
		return append(to, `""`...)
	}
	return append(to, encoded...)
}

func appendInt(to []byte, n int) []byte { return strconv.AppendInt(to, int64(n), 10) }

func itoa(n int) string { return strconv.Itoa(n) }
