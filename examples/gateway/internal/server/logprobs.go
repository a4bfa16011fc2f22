package server

import (
	"math"
	"strings"
	"sync"
	"unicode/utf8"

	vrust "github.com/vrust/vrust/bindings/go"
)

// vocabulary remembers the bytes of tokens.
type vocabulary struct {
	tokenizer *vrust.Tokenizer
	known     sync.Map
}

func (v *vocabulary) bytes(id uint32) []byte {
	if found, ok := v.known.Load(id); ok {
		return found.([]byte)
	}
	bytes, err := v.tokenizer.TokenBytes(id)
	if err != nil {
		return nil
	}
	v.known.Store(id, bytes)
	return bytes
}

// text is a token as a JSON string can hold it: what is no whole character becomes U+FFFD.
func (v *vocabulary) text(id uint32, asID bool) string {
	if asID {
		return "token_id:" + itoa(int(id))
	}
	return strings.ToValidUTF8(string(v.bytes(id)), "\uFFFD")
}

// finite keeps JSON from minus infinity, as vLLM does.
func finite(value float32) float64 { return math.Max(float64(value), -9999) }

// completionLogprobs are those of /v1/completions.
type completionLogprobs struct {
	TextOffset    []int                `json:"text_offset"`
	TokenLogprobs []*float64           `json:"token_logprobs"`
	Tokens        []string             `json:"tokens"`
	TopLogprobs   []map[string]float64 `json:"top_logprobs"`
}

// add appends tokens, whose text begins offset characters into the choice's. It gives the offset
// after them.
func (l *completionLogprobs) add(g *generation, d *vrust.Delta, offset int) int {
	words := g.server.vocabulary
	for i, id := range d.TokenIDs {
		token := words.text(id, g.tokensAsIDs)
		l.Tokens = append(l.Tokens, token)
		l.TextOffset = append(l.TextOffset, offset)
		offset += utf8.RuneCountInString(token)
		if i >= len(d.Logprobs) || len(d.Logprobs[i]) == 0 { // The first token of a prompt.
			l.TokenLogprobs = append(l.TokenLogprobs, nil)
			l.TopLogprobs = append(l.TopLogprobs, nil)
			continue
		}
		row := d.Logprobs[i]
		value, top := finite(row[0].Value), map[string]float64{}
		for _, record := range row {
			top[words.text(record.TokenID, g.tokensAsIDs)] = finite(record.Value)
		}
		l.TokenLogprobs = append(l.TokenLogprobs, &value)
		l.TopLogprobs = append(l.TopLogprobs, top)
	}
	return offset
}

func newCompletionLogprobs() *completionLogprobs {
	return &completionLogprobs{
		TextOffset: []int{}, TokenLogprobs: []*float64{}, Tokens: []string{},
		TopLogprobs: []map[string]float64{},
	}
}

// chatLogprob is one token of a chat's logprobs.
type chatLogprob struct {
	Token   string  `json:"token"`
	Logprob float64 `json:"logprob"`
	Bytes   []int   `json:"bytes"`
}

type chatLogprobs struct {
	Content []chatLogprobEntry `json:"content"`
}

type chatLogprobEntry struct {
	chatLogprob
	Top []chatLogprob `json:"top_logprobs"`
}

func (l *chatLogprobs) add(g *generation, d *vrust.Delta) {
	for _, row := range d.Logprobs {
		if len(row) == 0 {
			continue
		}
		entry := chatLogprobEntry{chatLogprob: g.chatLogprob(row[0]), Top: []chatLogprob{}}
		for _, record := range row[1:] {
			entry.Top = append(entry.Top, g.chatLogprob(record))
		}
		l.Content = append(l.Content, entry)
	}
}

func (g *generation) chatLogprob(record vrust.Logprob) chatLogprob {
	bytes := []int{}
	for _, b := range g.server.vocabulary.bytes(record.TokenID) {
		bytes = append(bytes, int(b))
	}
	return chatLogprob{
		g.server.vocabulary.text(record.TokenID, g.tokensAsIDs), finite(record.Value), bytes,
	}
}

// promptLogprob is one entry of `prompt_logprobs`, by token id.
type promptLogprob struct {
	Logprob float64 `json:"logprob"`
	Rank    uint32  `json:"rank"`
	Decoded string  `json:"decoded_token"`
}

// promptLogprobs has one entry a token of the prompt; the first is null.
func (g *generation) promptLogprobs(d *vrust.Delta) []map[string]promptLogprob {
	if d == nil || !g.fields.has("prompt_logprobs") {
		return nil
	}
	found := make([]map[string]promptLogprob, len(d.Logprobs))
	for i, row := range d.Logprobs {
		if len(row) == 0 {
			continue
		}
		found[i] = map[string]promptLogprob{}
		for _, record := range row {
			found[i][itoa(int(record.TokenID))] = promptLogprob{
				finite(record.Value), record.Rank, g.server.vocabulary.text(record.TokenID, false),
			}
		}
	}
	return found
}
