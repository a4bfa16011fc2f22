package server

import (
	"encoding/json"
	"net/http"
	"strings"

	vrust "github.com/vrust/vrust/bindings/go"
)

// responseStream sends a response as the events of OpenAI's Responses API: one item after another,
// each added, grown and done.
type responseStream struct {
	*response
	out    *events
	number int
	// kind is that of the item that grows: "message", "reasoning", or "" before the first one.
	kind   string
	text   strings.Builder
	output []any
}

func (a *response) stream(w http.ResponseWriter, r *http.Request) {
	s := &responseStream{response: a, out: a.g.newEvents(w), output: []any{}}
	err := a.g.each(r.Context(), func(_ int, d *vrust.Delta) error {
		s.begin()
		if err := s.grow(d); err != nil || len(s.out.buffer) == 0 {
			return err
		}
		return s.out.send()
	})
	switch {
	case err != nil && !s.out.begun:
		a.g.failed(w, r, asResponse(err))
		return
	case r.Context().Err() != nil:
		return
	case err != nil:
		e := asAPIError(err)
		failure := map[string]string{"code": "server_error", "message": e.Message}
		s.event("response.failed", map[string]any{
			"response": a.document("failed", s.output, nil, failure),
		})
	default:
		if s.kind == "" {
			s.open("message") // An answer without text is an empty message.
		}
		s.done()
		status := a.status()
		s.event("response."+status, map[string]any{
			"response": a.document(status, s.output, a.usage(), nil),
		})
	}
	_ = s.out.send()
}

// begin announces the response, once.
func (s *responseStream) begin() {
	if s.number > 0 {
		return
	}
	for _, name := range []string{"response.created", "response.in_progress"} {
		s.event(name, map[string]any{
			"response": s.document("in_progress", []any{}, nil, nil),
		})
	}
}

// grow adds a delta's parts.
func (s *responseStream) grow(d *vrust.Delta) error {
	parts, err := s.choice.split(d)
	if err != nil {
		return err
	}
	for _, part := range parts {
		s.choice.note(part)
		switch {
		case part.Reasoning != nil:
			s.open("reasoning")
			s.delta("response.reasoning_text.delta", *part.Reasoning)
		case part.Content != nil:
			s.open("message")
			s.delta("response.output_text.delta", *part.Content)
		}
	}
	if d.Finish != nil {
		s.choice.finish = d.Finish
		s.g.count(0, d.Finish)
	}
	return nil
}

// open begins an item, unless one of its kind grows.
func (s *responseStream) open(kind string) {
	if s.kind == kind {
		return
	}
	s.done()
	s.kind = kind
	item := map[string]any{
		"id": s.itemID(len(s.output)), "type": kind, "status": "in_progress", "content": []any{},
	}
	if kind == "message" {
		item["role"] = "assistant"
	} else {
		item["summary"] = []any{}
	}
	s.event("response.output_item.added", map[string]any{
		"output_index": len(s.output), "item": item,
	})
	s.event("response.content_part.added", s.place(map[string]any{"part": s.part("")}))
}

// part is the content of the item that grows.
func (s *responseStream) part(text string) any {
	if s.kind == "message" {
		return textPart(text)
	}
	return map[string]string{"type": "reasoning_text", "text": text}
}

// place says which part of the response an event is about.
func (s *responseStream) place(fields map[string]any) map[string]any {
	fields["item_id"] = s.itemID(len(s.output))
	fields["output_index"], fields["content_index"] = len(s.output), 0
	return fields
}

// delta appends a piece of text: for each token, hence without reflection.
func (s *responseStream) delta(name, text string) {
	s.text.WriteString(text)
	b := append(s.out.buffer, "event: "...)
	b = append(b, name...)
	b = append(b, "\ndata: {\"type\":\""...)
	b = append(b, name...)
	b = append(b, `","sequence_number":`...)
	b = appendInt(b, s.number)
	b = append(b, `,"item_id":`...)
	b = appendString(b, s.itemID(len(s.output)))
	b = append(b, `,"output_index":`...)
	b = appendInt(b, len(s.output))
	b = append(b, `,"content_index":0,"delta":`...)
	b = appendString(b, text)
	if s.kind == "message" {
		b = append(b, `,"logprobs":[]`...)
	}
	s.out.buffer = append(b, "}\n\n"...)
	s.number++
}

// done ends the item that grows.
func (s *responseStream) done() {
	if s.kind == "" {
		return
	}
	text, id := s.text.String(), s.itemID(len(s.output))
	s.text.Reset()
	var item map[string]any
	if s.kind == "message" {
		item = s.messageItem(id, text)
		s.event("response.output_text.done", s.place(map[string]any{
			"text": text, "logprobs": []any{},
		}))
	} else {
		item = reasoningItem(id, text)
		s.event("response.reasoning_text.done", s.place(map[string]any{"text": text}))
	}
	s.event("response.content_part.done", s.place(map[string]any{"part": s.part(text)}))
	s.event("response.output_item.done", map[string]any{
		"output_index": len(s.output), "item": item,
	})
	s.output = append(s.output, item)
	s.kind = ""
}

// event appends one event.
func (s *responseStream) event(name string, fields map[string]any) {
	fields["type"], fields["sequence_number"] = name, s.number
	s.number++
	encoded, err := json.Marshal(fields)
	if err != nil { // Cannot be: its raw parts were read from JSON.
		encoded = []byte("{}")
	}
	b := append(s.out.buffer, "event: "...)
	b = append(b, name...)
	b = append(b, "\ndata: "...)
	b = append(b, encoded...)
	s.out.buffer = append(b, "\n\n"...)
}
