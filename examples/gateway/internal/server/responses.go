package server

import (
	"encoding/json"
	"net/http"
	"strings"

	vrust "github.com/vrust/vrust/bindings/go"
)

// response is one answer of /v1/responses: text in, text out, and nothing is stored.
type response struct {
	g      *generation
	fields fields // As they came, for the answer repeats many.
	choice *chatChoice
}

// responseOnly are the fields of /v1/responses that the chat behind it does not get.
var responseOnly = strings.Fields(`input instructions max_output_tokens previous_response_id
	conversation background include max_tool_calls text truncation reasoning prompt top_logprobs
	stream_options tools tool_choice`)

// refusedHere are what a chat has and a response has not.
var refusedHere = []string{"messages", "n", "echo", "logprobs", "max_tokens",
	"max_completion_tokens", "prompt_logprobs", "return_token_ids"}

func (s *Server) responses(w http.ResponseWriter, r *http.Request) {
	f, err := s.readFields(w, r)
	if err != nil {
		writeError(w, err)
		return
	}
	chat, err := chatOfResponse(f)
	if err != nil {
		writeError(w, err)
		return
	}
	g, err := s.newGeneration(r, chat, "resp_")
	if err != nil {
		writeError(w, err)
		return
	}
	defer g.close()
	choices, body, err := g.chatChoices()
	if err != nil {
		writeError(w, err)
		return
	}
	defer closeSplitters(choices)
	if err := g.submit(r.Context(), []fields{body}); err != nil {
		writeError(w, asResponse(err))
		return
	}
	g.announce(w)
	a := &response{g: g, fields: f, choice: &choices[0]}
	if g.stream {
		a.stream(w, r)
		return
	}
	err = g.each(r.Context(), func(_ int, d *vrust.Delta) error {
		return g.growChat(a.choice, d)
	})
	if err != nil {
		g.failed(w, r, asResponse(err))
		return
	}
	writeJSON(w, http.StatusOK, a.ended())
}

// asResponse names the fields of an error about the chat as this route does.
func asResponse(err error) error {
	e := *asAPIError(err)
	if e.Param != nil {
		name := *e.Param
		switch name {
		case "prompt", "messages":
			name = "input"
		case "max_tokens":
			name = "max_output_tokens"
		}
		e.Param = &name
	}
	return &e
}

// storedResponse answers what asks for a response by its id.
func (s *Server) storedResponse(w http.ResponseWriter, r *http.Request) {
	writeError(w, fail(http.StatusNotFound, "",
		"Response with id '%s' not found: responses are not stored.", clip([]byte(r.PathValue("id")))))
}

// chatOfResponse is the body of the chat that a response stands for.
func chatOfResponse(f fields) (fields, error) {
	if err := checkResponse(f); err != nil {
		return nil, err
	}
	messages, err := responseMessages(f)
	if err != nil {
		return nil, err
	}
	chat := f.without(responseOnly...)
	chat.set("messages", messages)
	if f.has("max_output_tokens") {
		most := 0
		if err := f.get("max_output_tokens", &most); err != nil {
			return nil, err
		}
		if most < 1 {
			return nil, badRequest("max_output_tokens",
				"max_output_tokens: must be at least 1, got %d", most)
		}
		chat.set("max_tokens", most)
	}
	return chat, nil
}

// checkResponse refuses what this server's responses do not have.
func checkResponse(f fields) error {
	for _, name := range refusedHere {
		if f.has(name) {
			return badRequest(name, "%s: /v1/responses has no such field", name)
		}
	}
	// The values that ask for nothing.
	for name, nothing := range map[string]string{
		"previous_response_id": "", "conversation": "", "prompt": "", "max_tool_calls": "",
		"background": "false", "include": "[]", "tools": "[]", "top_logprobs": "0",
		"truncation": `"disabled"`, "reasoning": "{}",
	} {
		if value := compact(f[name]); f.has(name) && value != nothing {
			return badRequest(name, "%s: not supported in /v1/responses here, got %s", name,
				clip(f[name]))
		}
	}
	if choice := compact(f["tool_choice"]); f.has("tool_choice") && choice != `"auto"` &&
		choice != `"none"` {
		return badRequest("tool_choice", "tool_choice: there are no tools here, got %s",
			clip(f["tool_choice"]))
	}
	var text struct {
		Format *struct{ Type string }
	}
	if err := f.get("text", &text); err != nil {
		return err
	}
	if text.Format != nil && text.Format.Type != "text" {
		return badRequest("text", "text.format: only type \"text\" is supported, got \"%s\"",
			clip([]byte(text.Format.Type)))
	}
	return nil
}

// compact is a value without spaces; "" for none.
func compact(raw json.RawMessage) string {
	return strings.Map(func(c rune) rune {
		if strings.ContainsRune(" \t\r\n", c) {
			return -1
		}
		return c
	}, string(raw))
}

// inputItem is an item of `input`.
type inputItem struct {
	Type    string          `json:"type"`
	Role    string          `json:"role"`
	Content json.RawMessage `json:"content"`
}

type plainMessage struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// responseMessages are the chat's messages: the instructions, then the input. Earlier reasoning is
// left out, as chat templates do.
func responseMessages(f fields) ([]plainMessage, error) {
	var found []plainMessage
	var instructions string
	if err := f.get("instructions", &instructions); err != nil {
		return nil, err
	}
	if instructions != "" {
		found = append(found, plainMessage{"system", instructions})
	}
	if !f.has("input") {
		return nil, badRequest("input", "1 validation error(s): input: Field required")
	}
	if f["input"][0] == '"' {
		var text string
		err := f.get("input", &text)
		return append(found, plainMessage{"user", text}), err
	}
	var items []inputItem
	if json.Unmarshal(f["input"], &items) != nil {
		return nil, badRequest("input", "input: must be a string or an array of messages, got %s",
			clip(f["input"]))
	}
	if len(items) == 0 {
		return nil, badRequest("input", "input: the list is empty")
	}
	for i, item := range items {
		at := "input[" + itoa(i) + "]"
		switch item.Type {
		case "reasoning":
			continue
		case "", "message":
		default:
			return nil, badRequest("input", "%s.type: only messages are supported, got \"%s\"", at,
				clip([]byte(item.Type)))
		}
		switch item.Role {
		case "developer":
			item.Role = "system"
		case "user", "assistant", "system":
		default:
			return nil, badRequest("input", "%s.role: must be user, assistant, system or developer, "+
				"got \"%s\"", at, clip([]byte(item.Role)))
		}
		text, err := contentText(at+".content", item.Content)
		if err != nil {
			return nil, err
		}
		found = append(found, plainMessage{item.Role, text})
	}
	return found, nil
}

// contentText is the text of a message's content: a string, or parts of text.
func contentText(at string, content json.RawMessage) (string, error) {
	var text string
	if json.Unmarshal(content, &text) == nil && len(content) > 0 && content[0] == '"' {
		return text, nil
	}
	var parts []struct {
		Type string
		Text *string
	}
	if json.Unmarshal(content, &parts) != nil || parts == nil {
		return "", badRequest("input", "%s: must be a string or an array of parts, got %s", at,
			clip(content))
	}
	for i, part := range parts {
		known := part.Type == "input_text" || part.Type == "output_text" || part.Type == "text"
		if !known || part.Text == nil {
			return "", badRequest("input", "%s[%d]: only parts of text are supported, got type \"%s\"",
				at, i, clip([]byte(part.Type)))
		}
		text += *part.Text
	}
	return text, nil
}

// raw is a field as it came, or `otherwise`.
func (a *response) raw(name, otherwise string) json.RawMessage {
	if a.fields.has(name) {
		return a.fields[name]
	}
	return json.RawMessage(otherwise)
}

// document is the response object. The usage is null until the end.
func (a *response) document(status string, output []any, usage, failure any) map[string]any {
	var incomplete any
	if status == "incomplete" {
		reason := "max_output_tokens"
		if a.choice.finish.Reason != "length" {
			reason = a.choice.finish.Reason
		}
		incomplete = map[string]string{"reason": reason}
	}
	return map[string]any{
		"id": a.g.id, "object": "response", "created_at": a.g.created, "model": a.g.model,
		"status": status, "output": output, "usage": usage, "error": failure,
		"incomplete_details": incomplete, "background": false, "store": false,
		"previous_response_id": nil, "prompt": nil, "max_tool_calls": nil,
		"instructions":        a.raw("instructions", "null"),
		"max_output_tokens":   a.raw("max_output_tokens", "null"),
		"metadata":            a.raw("metadata", "{}"),
		"parallel_tool_calls": a.raw("parallel_tool_calls", "true"),
		"temperature":         a.raw("temperature", "null"), "top_p": a.raw("top_p", "null"),
		"text": a.raw("text", `{"format":{"type":"text"}}`), "tools": []any{},
		"tool_choice": a.raw("tool_choice", `"auto"`), "reasoning": a.raw("reasoning", "null"),
		"truncation": "disabled", "top_logprobs": 0, "user": a.raw("user", "null"),
		"service_tier": a.raw("service_tier", `"auto"`),
	}
}

// ended is the whole response.
func (a *response) ended() map[string]any {
	output := []any{}
	if reasoning := a.choice.reasoning.String(); reasoning != "" {
		output = append(output, reasoningItem(a.itemID(0), reasoning))
	}
	if text := a.choice.content.String(); text != "" || len(output) == 0 {
		output = append(output, a.messageItem(a.itemID(len(output)), text))
	}
	return a.document(a.status(), output, a.usage(), nil)
}

// status is how the response ended.
func (a *response) status() string {
	if a.choice.finish != nil && a.choice.finish.Reason == "stop" {
		return "completed"
	}
	return "incomplete"
}

func (a *response) itemID(index int) string {
	return "item_" + itoa(index) + "_" + strings.TrimPrefix(a.g.id, "resp_")
}

func reasoningItem(id, text string) map[string]any {
	return map[string]any{
		"id": id, "type": "reasoning", "summary": []any{}, "status": "completed",
		"content": []any{map[string]string{"type": "reasoning_text", "text": text}},
	}
}

func textPart(text string) map[string]any {
	return map[string]any{
		"type": "output_text", "text": text, "annotations": []any{}, "logprobs": []any{},
	}
}

func (a *response) messageItem(id, text string) map[string]any {
	status := "completed"
	if a.choice.finish != nil {
		status = a.status()
	}
	return map[string]any{
		"id": id, "type": "message", "role": "assistant", "status": status,
		"content": []any{textPart(text)},
	}
}

// usage counts tokens as this route names them. Those of the reasoning are its text's.
func (a *response) usage() map[string]any {
	counts, cached, reasoning := a.g.counts, 0, 0
	if a.choice.finish != nil {
		cached = a.choice.finish.CachedTokens
	}
	if text := a.choice.reasoning.String(); text != "" {
		ids, _ := a.g.tokenizer.Encode(text, false)
		reasoning = len(ids)
	}
	return map[string]any{
		"input_tokens": counts.PromptTokens, "output_tokens": counts.CompletionTokens,
		"total_tokens":          counts.TotalTokens,
		"input_tokens_details":  map[string]int{"cached_tokens": cached},
		"output_tokens_details": map[string]int{"reasoning_tokens": reasoning},
	}
}
