package vrust

import (
	"encoding/json"
	"errors"
	"time"
)

// Request is what to generate. Exactly one of Prompt, PromptTokenIDs and Messages is set.
// Nil and empty fields are unset: the model's generation_config.json decides where it can, and
// the library's default, given here, where it does not.
type Request struct {
	// Prompt is text to continue.
	Prompt string `json:"-"`
	// PromptTokenIDs are tokens to continue.
	PromptTokenIDs []uint32 `json:"-"`
	// Messages is a chat, rendered by the model's chat template.
	Messages []Message `json:"messages,omitempty"`
	// Tools is a JSON array of OpenAI tools for the chat template.
	Tools json.RawMessage `json:"tools,omitempty"`
	// ChatTemplateKwargs are further variables of the chat template.
	ChatTemplateKwargs map[string]any `json:"chat_template_kwargs,omitempty"`
	// MaxTokens to generate; 16 for prompts, the rest of the context for chats.
	MaxTokens *int `json:"max_tokens,omitempty"`
	// MinTokens before an end-of-text or stop token may be chosen; 0.
	MinTokens *int `json:"min_tokens,omitempty"`
	// N is the number of choices; 1.
	N *int `json:"n,omitempty"`
	// Temperature from 0 (greedy) to 2; 1.
	Temperature *float64 `json:"temperature,omitempty"`
	// TopP keeps the most likely tokens up to this sum of probability; 1.
	TopP *float64 `json:"top_p,omitempty"`
	// TopK keeps this many of the most likely tokens; off.
	TopK *int `json:"top_k,omitempty"`
	// MinP drops tokens below this share of the most likely one's probability; 0.
	MinP *float64 `json:"min_p,omitempty"`
	// RepetitionPenalty above 1 discourages tokens seen before; 1.
	RepetitionPenalty *float64 `json:"repetition_penalty,omitempty"`
	// FrequencyPenalty is subtracted for each earlier occurrence in the output, -2 to 2; 0.
	FrequencyPenalty *float64 `json:"frequency_penalty,omitempty"`
	// PresencePenalty is subtracted once from tokens already in the output, -2 to 2; 0.
	PresencePenalty *float64 `json:"presence_penalty,omitempty"`
	// Seed of the noise; drawn from the engine's seed.
	Seed *int64 `json:"seed,omitempty"`
	// Stop holds up to 4 strings that end a choice.
	Stop []string `json:"stop,omitempty"`
	// StopTokenIDs are tokens that end a choice.
	StopTokenIDs []uint32 `json:"stop_token_ids,omitempty"`
	// IgnoreEOS goes on past end-of-text tokens.
	IgnoreEOS bool `json:"ignore_eos,omitempty"`
	// Logprobs asks for this many most likely tokens beside each one chosen; off.
	Logprobs *int `json:"-"`
	// PromptLogprobs asks for the same of the prompt's tokens; off.
	PromptLogprobs *int `json:"prompt_logprobs,omitempty"`
	// Echo puts the prompt's text and tokens before the output.
	Echo bool `json:"echo,omitempty"`
	// Priority: lower runs earlier under the "priority" policy.
	Priority int `json:"priority,omitempty"`
	// CacheSalt: only requests with an equal salt share cached blocks.
	CacheSalt string `json:"cache_salt,omitempty"`
	// Deadline after which the request ends with "deadline", counted from its submission.
	Deadline time.Duration `json:"-"`
	// Extra holds any further field that vrust_submit_json knows, such as logit_bias.
	Extra map[string]any `json:"-"`
}

// Message is one turn of a chat.
type Message struct {
	// Role is "system", "user", "assistant" or "tool".
	Role string `json:"role"`
	// Content is its text.
	Content string `json:"content"`
}

// Ptr is a pointer to a value, for the optional fields of a Request.
func Ptr[T any](value T) *T { return &value }

// MarshalJSON writes the body that SubmitJSON takes.
func (r *Request) MarshalJSON() ([]byte, error) {
	type plain Request
	body := struct {
		*plain
		Prompt      any   `json:"prompt,omitempty"`
		Logprobs    any   `json:"logprobs,omitempty"`
		TopLogprobs *int  `json:"top_logprobs,omitempty"`
		DeadlineMS  int64 `json:"deadline_ms,omitempty"`
	}{plain: (*plain)(r), DeadlineMS: int64((r.Deadline + time.Millisecond - 1) / time.Millisecond)}
	isChat := r.Messages != nil
	switch {
	case r.Prompt != "" && (r.PromptTokenIDs != nil || isChat), r.PromptTokenIDs != nil && isChat:
		return nil, errors.New("prompt: set one of Prompt, PromptTokenIDs and Messages")
	case r.PromptTokenIDs != nil:
		body.Prompt = r.PromptTokenIDs
	case !isChat:
		body.Prompt = r.Prompt
	}
	switch {
	case r.Logprobs == nil:
	case isChat:
		body.Logprobs, body.TopLogprobs = true, r.Logprobs
	default:
		body.Logprobs = *r.Logprobs
	}
	encoded, err := json.Marshal(body)
	if err != nil || len(r.Extra) == 0 {
		return encoded, err
	}
	extra, err := json.Marshal(r.Extra)
	if err != nil {
		return nil, err
	}
	encoded[len(encoded)-1] = ','
	return append(encoded, extra[1:]...), nil
}
