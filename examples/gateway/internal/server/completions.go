package server

import (
	"encoding/json"
	"net/http"
	"strings"

	vrust "github.com/vrust/vrust/bindings/go"
)

// maxPrompts is the most prompts of one request.
const maxPrompts = 2048

// completion is a choice of /v1/completions while it grows.
type completion struct {
	text     strings.Builder
	ids      []uint32
	logprobs *completionLogprobs
	prompt   *vrust.Delta
	offset   int
	begun    bool
	finish   *vrust.Finish
}

// completionChoice is a choice as it is answered.
type completionChoice struct {
	Index          int                        `json:"index"`
	Text           string                     `json:"text"`
	Logprobs       *completionLogprobs        `json:"logprobs"`
	FinishReason   string                     `json:"finish_reason"`
	StopReason     any                        `json:"stop_reason"`
	TokenIDs       []uint32                   `json:"token_ids,omitempty"`
	PromptTokenIDs []uint32                   `json:"prompt_token_ids,omitempty"`
	PromptLogprobs []map[string]promptLogprob `json:"prompt_logprobs,omitempty"`
}

func (s *Server) completions(w http.ResponseWriter, r *http.Request) {
	f, err := s.readFields(w, r)
	if err != nil {
		writeError(w, err)
		return
	}
	g, err := s.newGeneration(r, f, "cmpl-")
	if err != nil {
		writeError(w, err)
		return
	}
	prompts, err := g.prompts()
	if err == nil {
		err = g.truncate(prompts)
	}
	if err != nil {
		writeError(w, err)
		return
	}
	bodies := make([]fields, len(prompts))
	for i, prompt := range prompts {
		bodies[i] = g.fields.without("truncate_prompt_tokens", "truncation_side")
		bodies[i]["prompt"] = prompt
	}
	if err := g.submit(r.Context(), bodies); err != nil {
		writeError(w, err)
		return
	}
	defer g.close()
	g.announce(w)
	if g.stream {
		g.streamCompletions(w, r, prompts)
		return
	}
	g.answerCompletions(w, r, prompts)
}

// prompts reads `prompt` (a string, token ids, or a list of either), and what of the other fields
// is particular to completions.
func (g *generation) prompts() ([]json.RawMessage, error) {
	if !g.fields.has("prompt") {
		return nil, badRequest("prompt", "1 validation error(s): prompt: Field required")
	}
	g.logprobs = g.fields.has("logprobs")
	if g.echo && g.logprobs && !g.fields.has("prompt_logprobs") {
		g.fields = g.fields.without()
		g.fields["prompt_logprobs"] = g.fields["logprobs"]
	}
	prompt := g.fields["prompt"]
	var items []json.RawMessage
	if prompt[0] != '[' {
		return []json.RawMessage{prompt}, nil
	}
	if err := g.fields.get("prompt", &items); err != nil {
		return nil, err
	}
	if len(items) == 0 {
		return nil, badRequest("prompt", "prompt: the list is empty")
	}
	if first := items[0][0]; first != '"' && first != '[' {
		return []json.RawMessage{prompt}, nil // Token ids, which the engine checks.
	}
	if len(items)*g.n > maxPrompts {
		return nil, badRequest("prompt", "prompt: at most %d choices a request, got %d prompts of "+
			"%d", maxPrompts, len(items), g.n)
	}
	for i, item := range items {
		if item[0] != items[0][0] {
			return nil, badRequest("prompt", "prompt[%d]: must be of the kind of the first, got %s",
				i, clip(item))
		}
	}
	return items, nil
}

// promptIDs are a prompt's token ids, where the answer shows them.
func (g *generation) promptIDs(prompt json.RawMessage) []uint32 {
	var ids []uint32
	if prompt[0] == '[' {
		if json.Unmarshal(prompt, &ids) != nil {
			return nil
		}
		return ids
	}
	var text string
	special := true
	if json.Unmarshal(prompt, &text) != nil || g.fields.get("add_special_tokens", &special) != nil {
		return nil
	}
	ids, err := g.server.config.Tokenizer.Encode(text, special)
	if err != nil {
		return nil
	}
	return ids
}

func (g *generation) answerCompletions(
	w http.ResponseWriter, r *http.Request, prompts []json.RawMessage,
) {
	found := make([]completion, len(prompts)*g.n)
	err := g.each(r.Context(), func(prompt int, d *vrust.Delta) error {
		if d.IsPrompt {
			kept := *d
			for i := range g.n {
				found[prompt*g.n+i].prompt = &kept
			}
			return nil
		}
		return g.grow(&found[prompt*g.n+d.Choice], prompt*g.n+d.Choice, d)
	})
	if err != nil {
		g.failed(w, r, err)
		return
	}
	choices := make([]completionChoice, len(found))
	for i := range found {
		c := &found[i]
		choices[i] = completionChoice{
			Index: i, Text: c.text.String(), Logprobs: c.logprobs, FinishReason: c.finish.Reason,
			StopReason: c.finish.StopReason, PromptLogprobs: g.promptLogprobs(c.prompt),
		}
		if g.returnTokenIDs {
			choices[i].TokenIDs = c.ids
			choices[i].PromptTokenIDs = g.promptIDs(prompts[i/g.n])
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{
		"id": g.id, "object": "text_completion", "created": g.created, "model": g.model,
		"choices": choices, "service_tier": nil, "system_fingerprint": nil, "usage": g.counts,
	})
}

// grow adds a delta to its choice.
func (g *generation) grow(c *completion, index int, d *vrust.Delta) error {
	if !c.begun {
		c.begun = true
		if g.logprobs {
			c.logprobs = newCompletionLogprobs()
		}
		if c.prompt != nil && g.echo {
			c.text.WriteString(c.prompt.Text)
			if g.logprobs {
				c.offset = c.logprobs.add(g, c.prompt, c.offset)
			}
		}
	}
	c.text.WriteString(d.Text)
	if g.returnTokenIDs {
		c.ids = append(c.ids, d.TokenIDs...)
	}
	if g.logprobs {
		c.offset = c.logprobs.add(g, d, c.offset)
	}
	if d.Finish != nil {
		c.finish = d.Finish
		g.count(index, d.Finish)
	}
	return nil
}

func (g *generation) streamCompletions(
	w http.ResponseWriter, r *http.Request, prompts []json.RawMessage,
) {
	out := g.newEvents(w)
	found := make([]completion, len(prompts)*g.n)
	begin := g.chunkBegin("text_completion")
	err := g.each(r.Context(), func(prompt int, d *vrust.Delta) error {
		if d.IsPrompt {
			kept := *d
			for i := range g.n {
				found[prompt*g.n+i].prompt = &kept
			}
			return nil
		}
		index := prompt*g.n + d.Choice
		g.completionChunk(out, begin, &found[index], index, prompts[prompt], d)
		return out.send()
	})
	g.endStream(out, w, r, err)
}

// completionChunk appends one chunk. Most are plain text: no reflection, no garbage.
func (g *generation) completionChunk(
	out *events, begin []byte, c *completion, index int, prompt json.RawMessage, d *vrust.Delta,
) {
	text, first := d.Text, !c.begun
	c.begun = true
	var logprobs *completionLogprobs
	if g.logprobs {
		logprobs = newCompletionLogprobs()
	}
	if first && c.prompt != nil && g.echo {
		text = c.prompt.Text + text
		if g.logprobs {
			c.offset = logprobs.add(g, c.prompt, c.offset)
		}
	}
	if g.logprobs {
		c.offset = logprobs.add(g, d, c.offset)
	}
	b := append(out.buffer, begin...)
	b = appendInt(b, index)
	b = append(b, `,"text":`...)
	b = appendString(b, text)
	b = append(b, `,"logprobs":`...)
	b = appendJSON(b, logprobs, logprobs == nil)
	b = appendFinish(b, d.Finish, "")
	if g.returnTokenIDs {
		b = append(b, `,"token_ids":`...)
		b = appendJSON(b, d.TokenIDs, false)
		if first {
			b = append(b, `,"prompt_token_ids":`...)
			b = appendJSON(b, g.promptIDs(prompt), false)
		}
	}
	b = append(b, "}]"...)
	out.buffer = g.chunkEnd(b, index, d, func() int { return len(g.promptIDs(prompt)) })
}
