package server

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	vrust "github.com/vrust/vrust/bindings/go"
)

// chatChoice is a choice of /v1/chat/completions while it grows.
type chatChoice struct {
	content   strings.Builder
	reasoning strings.Builder
	calls     []toolCall
	splitter  splitter
	// hideReasoning leaves the model's thoughts out.
	hideReasoning bool
	ids           []uint32
	logprobs      *chatLogprobs
	begun         bool
	finish        *vrust.Finish
}

// toolCall is a call of a tool, as OpenAI's answers have it.
type toolCall struct {
	Index    *int         `json:"index,omitempty"`
	ID       string       `json:"id,omitempty"`
	Type     string       `json:"type,omitempty"`
	Function toolFunction `json:"function"`
}

type toolFunction struct {
	Name      string `json:"name,omitempty"`
	Arguments string `json:"arguments"`
}

// chatPart is a `delta` of a streamed chat.
type chatPart struct {
	Content   *string    `json:"content,omitempty"`
	Reasoning *string    `json:"reasoning,omitempty"`
	ToolCalls []toolCall `json:"tool_calls,omitempty"`
}

// splitter tells reasoning and tool calls from content, as the text arrives.
type splitter interface {
	Push(text string) (json.RawMessage, error)
	Finish() (json.RawMessage, error)
	Close()
}

type chatMessage struct {
	Role        string     `json:"role"`
	Content     *string    `json:"content"`
	Refusal     *string    `json:"refusal"`
	Annotations any        `json:"annotations"`
	Audio       any        `json:"audio"`
	ToolCalls   []toolCall `json:"tool_calls"`
	Reasoning   *string    `json:"reasoning"`
}

type chatAnswer struct {
	Index        int           `json:"index"`
	Message      chatMessage   `json:"message"`
	Logprobs     *chatLogprobs `json:"logprobs"`
	FinishReason string        `json:"finish_reason"`
	StopReason   any           `json:"stop_reason"`
	TokenIDs     []uint32      `json:"token_ids,omitempty"`
}

func (s *Server) chatCompletions(w http.ResponseWriter, r *http.Request) {
	f, err := s.readFields(w, r)
	if err != nil {
		writeError(w, err)
		return
	}
	g, err := s.newGeneration(r, f, "chatcmpl-")
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
		writeError(w, err)
		return
	}
	g.announce(w)
	if g.stream {
		g.streamChat(w, r, choices)
		return
	}
	g.answerChat(w, r, choices)
}

func closeSplitters(choices []chatChoice) {
	for i := range choices {
		if choices[i].splitter != nil {
			choices[i].splitter.Close()
		}
	}
}

// chatChoices reads what is particular to chats, and gives the engine's body.
func (g *generation) chatChoices() ([]chatChoice, fields, error) {
	f := g.fields
	if !f.has("messages") {
		return nil, nil, badRequest("messages", "1 validation error(s): messages: Field required")
	}
	if f.has("prompt") {
		return nil, nil, badRequest("prompt", "prompt: a chat has messages instead")
	}
	if g.echo {
		return nil, nil, badRequest("echo", "echo: chats cannot echo their prompt")
	}
	err := f.getAll(map[string]any{"logprobs": &g.logprobs, "top_logprobs": &g.numTop})
	if err != nil {
		return nil, nil, err
	}
	if g.tokenizer, err = g.server.withTemplate(f); err != nil {
		return nil, nil, err
	}
	choices := make([]chatChoice, g.n)
	keepSpecial, err := g.splitters(choices)
	if err != nil {
		return nil, nil, err
	}
	body, err := g.renderedChat(g.fields.without("tool_choice")) // Decided here.
	if err != nil {
		return nil, nil, err
	}
	if keepSpecial {
		body.set("skip_special_tokens", false)
	}
	return choices, body, nil
}

// split turns a delta's text into parts of the message. The last delta flushes what was held back.
func (c *chatChoice) split(d *vrust.Delta) ([]chatPart, error) {
	if c.splitter == nil {
		if d.Text == "" {
			return nil, nil
		}
		return []chatPart{{Content: &d.Text}}, nil
	}
	var parts []chatPart
	if d.Text != "" {
		raw, err := c.splitter.Push(d.Text)
		if err == nil {
			err = json.Unmarshal(raw, &parts)
		}
		if err != nil {
			return nil, err
		}
	}
	if d.Finish != nil {
		var rest []chatPart
		raw, err := c.splitter.Finish()
		if err == nil {
			err = json.Unmarshal(raw, &rest)
		}
		if err != nil {
			return nil, err
		}
		parts = append(parts, rest...)
	}
	if c.hideReasoning {
		parts = slices.DeleteFunc(parts, func(p chatPart) bool { return p.Reasoning != nil })
	}
	return parts, nil
}

// note adds a part to the whole message.
func (c *chatChoice) note(part chatPart) {
	if part.Content != nil {
		c.content.WriteString(*part.Content)
	}
	if part.Reasoning != nil {
		c.reasoning.WriteString(*part.Reasoning)
	}
	for _, call := range part.ToolCalls {
		if call.Index == nil {
			continue
		}
		for len(c.calls) <= *call.Index {
			c.calls = append(c.calls, toolCall{Type: "function"})
		}
		whole := &c.calls[*call.Index]
		if call.ID != "" {
			whole.ID = call.ID
		}
		whole.Function.Name += call.Function.Name
		whole.Function.Arguments += call.Function.Arguments
	}
}

// instead is what the reason "stop" is called for this choice.
func (c *chatChoice) instead() string {
	if len(c.calls) > 0 {
		return "tool_calls"
	}
	return ""
}

func (g *generation) answerChat(w http.ResponseWriter, r *http.Request, choices []chatChoice) {
	var prompt *vrust.Delta
	err := g.each(r.Context(), func(_ int, d *vrust.Delta) error {
		if d.IsPrompt {
			kept := *d
			prompt = &kept
			return nil
		}
		return g.growChat(&choices[d.Choice], d)
	})
	if err != nil {
		g.failed(w, r, err)
		return
	}
	answers := make([]chatAnswer, len(choices))
	for i := range choices {
		answers[i] = g.chatAnswer(i, &choices[i])
	}
	document := map[string]any{
		"id": g.id, "object": "chat.completion", "created": g.created, "model": g.model,
		"choices": answers, "service_tier": nil, "system_fingerprint": nil, "usage": g.counts,
		"prompt_logprobs": nil,
	}
	if logprobs := g.promptLogprobs(prompt); logprobs != nil {
		document["prompt_logprobs"] = logprobs
	}
	if g.returnTokenIDs {
		document["prompt_token_ids"] = g.chatPromptIDs()
	}
	writeJSON(w, http.StatusOK, document)
}

func (g *generation) growChat(c *chatChoice, d *vrust.Delta) error {
	parts, err := c.split(d)
	if err != nil {
		return err
	}
	for _, part := range parts {
		c.note(part)
	}
	if g.logprobs {
		if c.logprobs == nil {
			c.logprobs = &chatLogprobs{Content: []chatLogprobEntry{}}
		}
		c.logprobs.add(g, d)
	}
	if g.returnTokenIDs {
		c.ids = append(c.ids, d.TokenIDs...)
	}
	if d.Finish != nil {
		c.finish = d.Finish
		g.count(d.Choice, d.Finish)
	}
	return nil
}

func (g *generation) chatAnswer(index int, c *chatChoice) chatAnswer {
	answer := chatAnswer{
		Index: index, Logprobs: c.logprobs, FinishReason: finishReason(c.finish, c.instead()),
		StopReason: c.finish.StopReason, TokenIDs: c.ids,
		Message: chatMessage{Role: "assistant", ToolCalls: c.calls},
	}
	if c.calls == nil {
		answer.Message.ToolCalls = []toolCall{}
	}
	if content := c.content.String(); content != "" || len(c.calls) == 0 {
		answer.Message.Content = &content
	}
	if reasoning := c.reasoning.String(); reasoning != "" {
		answer.Message.Reasoning = &reasoning
	}
	return answer
}

func (g *generation) streamChat(w http.ResponseWriter, r *http.Request, choices []chatChoice) {
	out := g.newEvents(w)
	begin := g.chunkBegin("chat.completion.chunk")
	err := g.each(r.Context(), func(_ int, d *vrust.Delta) error {
		if d.IsPrompt {
			return nil
		}
		if err := g.chatChunks(out, begin, &choices[d.Choice], d); err != nil {
			return err
		}
		if len(out.buffer) == 0 {
			return nil
		}
		return out.send()
	})
	g.endStream(out, w, r, err)
}

// chatChunks appends the chunks of a delta: the role first of all, then each part. What belongs
// to the delta as a whole (logprobs, token ids, the end) goes with the last part.
func (g *generation) chatChunks(out *events, begin []byte, c *chatChoice, d *vrust.Delta) error {
	if !c.begun {
		c.begun = true
		g.chatChunk(out, begin, &vrust.Delta{Choice: d.Choice}, c, chatPart{}, true)
	}
	parts, err := c.split(d)
	if err != nil {
		return err
	}
	for i, part := range parts {
		c.note(part)
		carried := d
		if i < len(parts)-1 {
			carried = &vrust.Delta{Choice: d.Choice}
		}
		g.chatChunk(out, begin, carried, c, part, false)
	}
	owes := d.Finish != nil || (len(d.TokenIDs) > 0 && (g.logprobs || g.returnTokenIDs))
	if len(parts) == 0 && owes {
		g.chatChunk(out, begin, d, c, chatPart{}, false)
	}
	return nil
}

func (g *generation) chatChunk(
	out *events, begin []byte, d *vrust.Delta, c *chatChoice, part chatPart, first bool,
) {
	b := appendInt(append(out.buffer, begin...), d.Choice)
	b = append(b, `,"delta":`...)
	switch {
	case first:
		b = append(b, `{"role":"assistant","content":""}`...)
	case part.Content != nil && part.Reasoning == nil && part.ToolCalls == nil:
		b = append(b, `{"content":`...)
		b = append(appendString(b, *part.Content), '}')
	default:
		b = appendJSON(b, part, false)
	}
	b = append(b, `,"logprobs":`...)
	if g.logprobs && len(d.Logprobs) > 0 {
		logprobs := &chatLogprobs{}
		logprobs.add(g, d)
		b = appendJSON(b, logprobs, false)
	} else {
		b = append(b, "null"...)
	}
	b = appendFinish(b, d.Finish, c.instead())
	if g.returnTokenIDs && !first {
		b = appendJSON(append(b, `,"token_ids":`...), d.TokenIDs, d.TokenIDs == nil)
	}
	b = append(b, "}]"...)
	if g.returnTokenIDs && first {
		b = appendJSON(append(b, `,"prompt_token_ids":`...), g.chatPromptIDs(), false)
	}
	out.buffer = g.chunkEnd(b, d.Choice, d, func() int { return len(g.chatPromptIDs()) })
}
