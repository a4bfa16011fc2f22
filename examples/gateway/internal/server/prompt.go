package server

import (
	"encoding/json"

	vrust "github.com/vrust/vrust/bindings/go"
)

// defaultMaxTokens is the engine's default of a completion's max_tokens.
const defaultMaxTokens = 16

// truncation is how a request has its prompts cut.
type truncation struct {
	limit int  // Most tokens to keep; 0: all of them.
	right bool // Keeps the beginning; else the end is kept.
}

// readTruncation reads `truncate_prompt_tokens`, of which -1 is what the model has room for beside
// the answer, and `truncation_side`.
func (g *generation) readTruncation(reserved int) error {
	var side string
	limit, most := 0, g.server.config.MaxModelLen
	err := g.fields.getAll(map[string]any{
		"truncate_prompt_tokens": &limit, "truncation_side": &side,
		"max_tokens": &reserved, "max_completion_tokens": &reserved,
	})
	if err != nil {
		return err
	}
	if side != "" && side != "left" && side != "right" {
		return badRequest("truncation_side",
			"truncation_side: must be \"left\" or \"right\", got \"%s\"", clip([]byte(side)))
	}
	g.cut.right = side == "right"
	if !g.fields.has("truncate_prompt_tokens") {
		return nil
	}
	if limit == 0 || limit < -1 || limit > most {
		return badRequest("truncate_prompt_tokens", "truncate_prompt_tokens: must be -1 or from 1 "+
			"to the model's limit of %d tokens, got %d", most, limit)
	}
	if g.cut.limit = limit; limit == -1 {
		g.cut.limit = max(1, most-max(1, reserved))
	}
	return nil
}

// apply cuts a prompt's tokens. It says whether there was something to cut.
func (c truncation) apply(ids []uint32) ([]uint32, bool) {
	switch {
	case c.limit == 0 || len(ids) <= c.limit:
		return ids, false
	case c.right:
		return ids[:c.limit], true
	}
	return ids[len(ids)-c.limit:], true
}

// truncate cuts the prompts of a completion that are too long, which then go on as tokens.
func (g *generation) truncate(prompts []json.RawMessage) error {
	if err := g.readTruncation(defaultMaxTokens); err != nil || g.cut.limit == 0 {
		return err
	}
	for i, prompt := range prompts {
		if ids, cut := g.cut.apply(g.promptIDs(prompt)); cut {
			prompts[i] = appendJSON(nil, ids, false)
		}
	}
	return nil
}

// withTemplate gives the tokenizer whose chat template a request is rendered by: the server's, or
// one that the request brings, where it may.
func (s *Server) withTemplate(f fields) (*vrust.Tokenizer, error) {
	if !f.has("chat_template") {
		return s.config.Tokenizer, nil
	}
	if !s.config.TrustRequestChatTemplate {
		return nil, badRequest("chat_template", "Chat template is passed with request, but "+
			"--trust-request-chat-template is not set. Refused request with untrusted chat template.")
	}
	var source string
	if err := f.get("chat_template", &source); err != nil {
		return nil, err
	}
	return s.config.Tokenizer.WithChatTemplate(source)
}

// chatFields are those that a chat's rendering uses up.
var chatFields = []string{"messages", "tools", "chat_template", "chat_template_kwargs",
	"add_generation_prompt", "continue_final_message", "truncate_prompt_tokens", "truncation_side"}

// renderedChat is the body of a chat that the engine cannot render itself: by a template of its
// own, or too long. The prompt goes on as tokens.
func (g *generation) renderedChat(body fields) (fields, error) {
	own := g.fields.has("chat_template")
	if err := g.readTruncation(1); err != nil {
		return nil, err
	}
	body = body.without("truncate_prompt_tokens", "truncation_side")
	if !own && g.cut.limit == 0 {
		return body, nil
	}
	ids, err := g.renderIDs()
	if err != nil {
		return nil, err
	}
	ids, cut := g.cut.apply(ids)
	if !own && !cut {
		return body, nil
	}
	g.rendered = ids
	if g.numTop != 0 && !g.logprobs {
		return nil, badRequest("top_logprobs", "top_logprobs: only with logprobs set to true")
	}
	body = body.without(append(chatFields, "logprobs", "top_logprobs")...)
	body.set("prompt", ids)
	if g.logprobs {
		body.set("logprobs", g.numTop)
	}
	if !body.has("max_tokens") && !body.has("max_completion_tokens") {
		body.set("max_tokens", max(1, g.server.config.MaxModelLen-len(ids)))
	}
	return body, nil
}

// renderIDs are the token ids of the request's chat.
func (g *generation) renderIDs() ([]uint32, error) {
	options := vrust.ChatOptions{
		Tools: g.fields["tools"], Kwargs: g.fields["chat_template_kwargs"],
		AddGenerationPrompt: true,
	}
	err := g.fields.getAll(map[string]any{
		"add_generation_prompt":  &options.AddGenerationPrompt,
		"continue_final_message": &options.ContinueFinalMessage,
	})
	if err != nil {
		return nil, err
	}
	text, err := g.tokenizer.RenderChat(g.fields["messages"], options)
	if err != nil {
		return nil, err
	}
	return g.tokenizer.Encode(text, false)
}

// chatPromptIDs are the token ids of the chat, where the answer shows them.
func (g *generation) chatPromptIDs() []uint32 {
	if g.rendered == nil {
		g.rendered, _ = g.renderIDs() // It rendered before, else there were no answer.
	}
	return g.rendered
}
