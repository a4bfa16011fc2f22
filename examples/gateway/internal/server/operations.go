package server

import (
	"encoding/json"
	"net/http"

	vrust "github.com/vrust/vrust/bindings/go"
)

// modelCard is an entry of /v1/models.
type modelCard struct {
	ID          string       `json:"id"`
	Object      string       `json:"object"`
	Created     int64        `json:"created"`
	OwnedBy     string       `json:"owned_by"`
	Root        string       `json:"root"`
	Parent      *string      `json:"parent"`
	MaxModelLen int          `json:"max_model_len"`
	Permission  []permission `json:"permission"`
}

type permission struct {
	ID                 string  `json:"id"`
	Object             string  `json:"object"`
	Created            int64   `json:"created"`
	AllowCreateEngine  bool    `json:"allow_create_engine"`
	AllowSampling      bool    `json:"allow_sampling"`
	AllowLogprobs      bool    `json:"allow_logprobs"`
	AllowSearchIndices bool    `json:"allow_search_indices"`
	AllowView          bool    `json:"allow_view"`
	AllowFineTuning    bool    `json:"allow_fine_tuning"`
	Organization       string  `json:"organization"`
	Group              *string `json:"group"`
	IsBlocking         bool    `json:"is_blocking"`
}

func (s *Server) card(name string) modelCard {
	return modelCard{
		ID: name, Object: "model", Created: s.created, OwnedBy: "vrust",
		Root: s.config.ModelRoot, MaxModelLen: s.config.MaxModelLen,
		Permission: []permission{{
			ID: "modelperm-" + name, Object: "model_permission", Created: s.created,
			AllowSampling: true, AllowLogprobs: true, AllowView: true, Organization: "*",
		}},
	}
}

func (s *Server) models(w http.ResponseWriter, _ *http.Request) {
	cards := []modelCard{}
	for _, name := range s.config.ModelNames {
		cards = append(cards, s.card(name))
	}
	writeJSON(w, http.StatusOK, map[string]any{"object": "list", "data": cards})
}

func (s *Server) model(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("model")
	if _, err := s.resolveModel(name); err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, http.StatusOK, s.card(name))
}

// health is 200 while requests are served. While the server drains, load balancers should look
// elsewhere; once the engine has failed, somebody should start it again.
func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	status, word := http.StatusOK, "ok"
	switch state := s.config.Engine.State(); {
	case state == vrust.Loading:
		status, word = http.StatusServiceUnavailable, "loading"
	case state == vrust.Failed:
		status, word = http.StatusServiceUnavailable, "failed"
	case s.draining.Load() || state != vrust.Ready:
		status, word = http.StatusServiceUnavailable, "draining"
	}
	writeJSON(w, status, map[string]string{"status": word})
}

func (s *Server) version(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]string{"version": vrust.Version()})
}

func (s *Server) serverLoad(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]int64{"server_load": s.load.Load()})
}

// tokenize answers with the token ids of a text or of a rendered chat.
func (s *Server) tokenize(w http.ResponseWriter, r *http.Request) {
	f, err := s.readFields(w, r)
	if err != nil {
		writeError(w, err)
		return
	}
	ids, strings, err := s.encode(f)
	if err != nil {
		writeError(w, err)
		return
	}
	document := map[string]any{
		"count": len(ids), "max_model_len": s.config.MaxModelLen, "tokens": ids,
		"token_strs": nil,
	}
	if strings {
		words := make([]string, len(ids))
		for i, id := range ids {
			words[i] = s.vocabulary.text(id, false)
		}
		document["token_strs"] = words
	}
	writeJSON(w, http.StatusOK, document)
}

func (s *Server) encode(f fields) ([]uint32, bool, error) {
	var model, prompt string
	strings := false
	err := f.getAll(map[string]any{
		"model": &model, "prompt": &prompt, "return_token_strs": &strings,
	})
	if err != nil {
		return nil, false, err
	}
	if _, err := s.resolveModel(model); err != nil {
		return nil, false, err
	}
	special := !f.has("messages")
	if err := f.get("add_special_tokens", &special); err != nil {
		return nil, false, err
	}
	switch {
	case f.has("messages"):
		chat := vrust.ChatOptions{
			Tools: f["tools"], Kwargs: f["chat_template_kwargs"], AddGenerationPrompt: true,
		}
		err := f.getAll(map[string]any{
			"add_generation_prompt":  &chat.AddGenerationPrompt,
			"continue_final_message": &chat.ContinueFinalMessage,
		})
		if err != nil {
			return nil, false, err
		}
		tokenizer, err := s.withTemplate(f)
		if err != nil {
			return nil, false, err
		}
		if prompt, err = tokenizer.RenderChat(f["messages"], chat); err != nil {
			return nil, false, err
		}
	case !f.has("prompt"):
		return nil, false, badRequest("prompt", "1 validation error(s): prompt: Field required")
	}
	ids, err := s.config.Tokenizer.Encode(prompt, special)
	if ids == nil {
		ids = []uint32{}
	}
	return ids, strings, err
}

func (s *Server) detokenize(w http.ResponseWriter, r *http.Request) {
	f, err := s.readFields(w, r)
	if err != nil {
		writeError(w, err)
		return
	}
	var model string
	var ids []uint32
	if err = f.get("model", &model); err == nil {
		_, err = s.resolveModel(model)
	}
	if err == nil && !f.has("tokens") {
		err = badRequest("tokens", "1 validation error(s): tokens: Field required")
	}
	if err == nil && json.Unmarshal(f["tokens"], &ids) != nil {
		err = badRequest("tokens", "1 validation error(s): tokens: must be an array of token ids, "+
			"got %s", clip(f["tokens"]))
	}
	var text string
	if err == nil {
		text, err = s.config.Tokenizer.Decode(ids, false)
	}
	if err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"prompt": text})
}
