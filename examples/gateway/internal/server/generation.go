package server

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	vrust "github.com/vrust/vrust/bindings/go"
)

// generation is one HTTP request on its way through the engine: one stream for each prompt.
type generation struct {
	server  *Server
	id      string
	model   string
	created int64
	n       int
	fields  fields
	streams []*vrust.Stream
	// tokenizer is the server's, or that of the request's own chat template.
	tokenizer *vrust.Tokenizer
	cut       truncation
	rendered  []uint32 // The chat's tokens, once they are known.

	stream          bool
	usage           bool // A usage chunk ends the stream.
	continuousUsage bool // Every chunk carries usage.
	returnTokenIDs  bool
	tokensAsIDs     bool
	echo            bool
	logprobs        bool
	numTop          int
	ignored         []string
	counts          usage
	object          string
	running         map[int]int // Tokens of each choice so far, where every chunk carries usage.
	runningPrompt   int
}

// usage counts tokens as OpenAI does.
type usage struct {
	PromptTokens     int            `json:"prompt_tokens"`
	CompletionTokens int            `json:"completion_tokens"`
	TotalTokens      int            `json:"total_tokens"`
	Details          *promptDetails `json:"prompt_tokens_details,omitempty"`
}

type promptDetails struct {
	CachedTokens int `json:"cached_tokens"`
}

// newGeneration reads the fields that completions and chats share.
func (s *Server) newGeneration(r *http.Request, f fields, idPrefix string) (*generation, error) {
	g := &generation{
		server: s, fields: f, n: 1, created: time.Now().Unix(), tokenizer: s.config.Tokenizer,
	}
	var model, id string
	options := map[string]json.RawMessage{}
	err := f.getAll(map[string]any{
		"model": &model, "request_id": &id, "n": &g.n, "stream": &g.stream,
		"stream_options": &options, "return_token_ids": &g.returnTokenIDs,
		"return_tokens_as_token_ids": &g.tokensAsIDs, "echo": &g.echo,
	})
	if err != nil {
		return nil, err
	}
	if g.model, err = s.resolveModel(model); err != nil {
		return nil, err
	}
	if g.n < 1 || g.n > 16384 { // Before anything is made for each choice.
		return nil, badRequest("n", "n must be from 1 to 16384, got %d.", g.n)
	}
	if err := g.streamOptions(options); err != nil {
		return nil, err
	}
	if header := r.Header.Get("X-Request-Id"); header != "" {
		id = header
	}
	if g.id, err = requestID(id); err != nil {
		return nil, err
	}
	g.id = idPrefix + g.id
	if g.stream && f.has("prompt_logprobs") {
		return nil, badRequest("prompt_logprobs",
			"`prompt_logprobs` are not available when `stream=True`.")
	}
	for name := range f {
		if !serverFields[name] && !engineFields[name] {
			g.ignored = append(g.ignored, name)
			delete(f, name)
		}
	}
	slices.Sort(g.ignored)
	return g, nil
}

func (g *generation) streamOptions(options map[string]json.RawMessage) error {
	f := fields(options)
	err := f.getAll(map[string]any{
		"include_usage": &g.usage, "continuous_usage_stats": &g.continuousUsage,
	})
	if err != nil {
		return err
	}
	if !g.stream && g.fields.has("stream_options") {
		return badRequest("stream_options",
			"Stream options can only be defined when `stream=True`.")
	}
	g.continuousUsage = g.continuousUsage && g.usage
	if g.server.config.ForceIncludeUsage {
		g.usage, g.continuousUsage = true, true
	}
	return nil
}

// submit hands the bodies to the engine, all or none.
func (g *generation) submit(ctx context.Context, bodies []fields) error {
	for i, body := range bodies {
		if !g.stream { // Nobody need be woken for each token of what is gathered anyway.
			body["output_kind"] = json.RawMessage(`"final_only"`)
		}
		stream, err := g.server.config.Engine.SubmitJSON(ctx, body.body())
		if err != nil {
			g.close()
			return rephrase(err, i, len(bodies))
		}
		g.streams = append(g.streams, stream)
	}
	return nil
}

// rephrase says which prompt of several an error is about.
func rephrase(err error, index, count int) error {
	e := asAPIError(err)
	if count > 1 {
		e.Message = "prompt " + itoa(index) + ": " + e.Message
	}
	return e
}

func (g *generation) close() {
	for _, stream := range g.streams {
		stream.Close()
	}
	if g.tokenizer != g.server.config.Tokenizer && g.tokenizer != nil {
		g.tokenizer.Close()
	}
}

// each calls with every delta of every prompt, from one goroutine, until the streams end. A delta
// is the callee's until it returns: the next one may take its place.
func (g *generation) each(ctx context.Context, call func(prompt int, d *vrust.Delta) error) error {
	if len(g.streams) == 1 {
		return drainStream(ctx, g.streams[0], func(d *vrust.Delta) error { return call(0, d) })
	}
	type piece struct {
		prompt int
		delta  *vrust.Delta
		err    error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pieces := make(chan piece)
	give := func(p piece) error {
		select {
		case pieces <- p:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for i, stream := range g.streams {
		go func() {
			err := drainStream(ctx, stream, func(d *vrust.Delta) error {
				kept := *d
				return give(piece{prompt: i, delta: &kept})
			})
			_ = give(piece{prompt: i, err: err})
		}()
	}
	for open := len(g.streams); open > 0; {
		select {
		case p := <-pieces:
			switch {
			case p.delta == nil && p.err == nil:
				open--
			case p.err != nil:
				return rephrase(p.err, p.prompt, len(g.streams))
			default:
				if err := call(p.prompt, p.delta); err != nil {
					return err
				}
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func drainStream(ctx context.Context, s *vrust.Stream, call func(*vrust.Delta) error) error {
	var delta vrust.Delta // One for all: a delta for each token would be garbage for each token.
	for {
		var err error
		delta, err = s.Next(ctx)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := call(&delta); err != nil {
			return err
		}
	}
}

// count adds what a choice used. A prompt's tokens count once, whatever the number of choices.
func (g *generation) count(choice int, finish *vrust.Finish) {
	if choice%g.n == 0 {
		g.counts.PromptTokens += finish.PromptTokens
		if g.server.config.PromptTokensDetails {
			if g.counts.Details == nil {
				g.counts.Details = &promptDetails{}
			}
			g.counts.Details.CachedTokens += finish.CachedTokens
		}
	}
	g.counts.CompletionTokens += finish.CompletionTokens
	g.counts.TotalTokens = g.counts.PromptTokens + g.counts.CompletionTokens
}

// announce sets the headers that every answer to the request carries.
func (g *generation) announce(w http.ResponseWriter) {
	if len(g.ignored) > 0 {
		w.Header().Set("X-Vrust-Ignored-Fields", strings.Join(g.ignored, ", "))
	}
}

// failed answers a request that broke before its first byte was sent, unless its client is gone.
func (g *generation) failed(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() == nil {
		writeError(w, err)
	}
}

// resolveModel gives the name that answers carry. An absent one is the served model.
func (s *Server) resolveModel(name string) (string, error) {
	names := s.config.ModelNames
	if name != "" && !slices.Contains(names, name) {
		return "", fail(http.StatusNotFound, "model",
			"The model `%s` does not exist. Valid aliases: %s", clip([]byte(name)),
			strings.Join(names, ", "))
	}
	return names[0], nil
}

func set(names string) map[string]bool {
	found := map[string]bool{}
	for _, name := range strings.Fields(names) {
		found[name] = true
	}
	return found
}

var (
	// serverFields are read here, or are about OpenAI's own service and change nothing here.
	serverFields = set(`model stream stream_options request_id return_token_ids user metadata store
		return_tokens_as_token_ids session_id service_tier safety_identifier prompt_cache_key
		prompt_cache_retention parallel_tool_calls tool_choice include_reasoning verbosity
		truncate_prompt_tokens truncation_side`)
	// engineFields go on to the engine, which checks them and refuses what it lacks.
	engineFields = set(`prompt messages n echo presence_penalty frequency_penalty
		repetition_penalty temperature top_p min_p top_k seed max_tokens max_completion_tokens
		min_tokens logprobs prompt_logprobs stop stop_token_ids bad_words allowed_token_ids
		logit_bias include_stop_str_in_output ignore_eos skip_special_tokens priority deadline_ms
		spaces_between_special_tokens cache_salt add_special_tokens tools chat_template_kwargs
		add_generation_prompt continue_final_message best_of use_beam_search length_penalty
		early_stopping response_format structured_outputs guided_json guided_regex guided_choice
		guided_grammar guided_json_object guided_decoding_backend guided_whitespace_pattern suffix
		chat_template documents reasoning_effort modalities audio prediction top_logprobs
		logprob_token_ids thinking_token_budget repetition_detection stream_interval
		kv_transfer_params vllm_xargs`)
)
