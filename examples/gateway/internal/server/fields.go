package server

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"mime"
	"net/http"
	"slices"
	"time"
	"unicode/utf8"
)

// fields is a request's body. What the server itself has no use for goes on to the engine as it
// came, and is checked there.
type fields map[string]json.RawMessage

// readFields reads and checks a body: its type, size, encoding and shape.
func (s *Server) readFields(w http.ResponseWriter, r *http.Request) (fields, error) {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		return nil, badRequest("Content-Type", "Content-Type must be application/json, got %q",
			r.Header.Get("Content-Type"))
	}
	if coding := r.Header.Get("Content-Encoding"); coding != "" && coding != "identity" {
		return nil, fail(http.StatusUnsupportedMediaType, "Content-Encoding",
			"Content-Encoding: only identity is supported, got %q", clip([]byte(coding)))
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(s.config.BodyPatience))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.config.MaxBodyBytes))
	if err != nil {
		if _, large := err.(*http.MaxBytesError); large {
			return nil, err
		}
		return nil, fail(http.StatusRequestTimeout, "", "The request's body did not arrive.")
	}
	_ = control.SetReadDeadline(time.Time{})
	if !utf8.Valid(body) {
		return nil, badRequest("", "The request's body is not valid UTF-8.")
	}
	var found fields
	decoder := json.NewDecoder(bytes.NewReader(body))
	if err := decoder.Decode(&found); err != nil {
		return nil, badRequest("", "The request's body is not a JSON object: %v", err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, badRequest("", "The request's body goes on after its JSON object.")
	}
	if found == nil {
		return nil, badRequest("", "The request's body is not a JSON object: it is null")
	}
	return found, nil
}

func (f fields) has(name string) bool {
	value, ok := f[name]
	return ok && string(value) != "null"
}

// get reads a field into a value, which stays as it was when the field is absent or null.
func (f fields) get(name string, into any) error {
	if !f.has(name) {
		return nil
	}
	if err := json.Unmarshal(f[name], into); err != nil {
		return badRequest(name, "1 validation error(s): %s: must be %s, got %s", name,
			kindName(into), clip(f[name]))
	}
	return nil
}

// getAll reads several fields.
func (f fields) getAll(into map[string]any) error {
	for _, name := range slices.Sorted(maps.Keys(into)) {
		if err := f.get(name, into[name]); err != nil {
			return err
		}
	}
	return nil
}

func kindName(into any) string {
	switch into.(type) {
	case *bool:
		return "a boolean"
	case *int:
		return "an integer"
	case *string:
		return "a string"
	case *[]json.RawMessage:
		return "an array"
	}
	return "an object"
}

// clip shortens a value for an error message.
func clip(value []byte) string {
	const most = 64
	if len(value) <= most {
		return string(value)
	}
	cut := value[:most]
	for !utf8.Valid(cut) {
		cut = cut[:len(cut)-1]
	}
	return string(cut) + ".."
}

// without is a copy of the fields that lacks some.
func (f fields) without(names ...string) fields {
	rest := maps.Clone(f)
	for _, name := range names {
		delete(rest, name)
	}
	return rest
}

// body is the fields as JSON.
func (f fields) body() []byte {
	body, err := json.Marshal(f)
	if err != nil { // Cannot be: each value was read from JSON.
		panic(err)
	}
	return body
}

// set gives a field a value of the server's own.
func (f fields) set(name string, value any) {
	encoded, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	f[name] = encoded
}
