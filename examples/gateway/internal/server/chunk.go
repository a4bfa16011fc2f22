package server

import (
	"encoding/json"
	"net/http"

	vrust "github.com/vrust/vrust/bindings/go"
)

// chunkBegin is the text of every chunk of a stream up to the choice's index.
func (g *generation) chunkBegin(object string) []byte {
	g.object = object
	b := append([]byte(nil), `data: {"id":`...)
	b = appendString(b, g.id)
	b = append(b, `,"object":"`...)
	b = append(b, object...)
	b = append(b, `","created":`...)
	b = appendInt(b, int(g.created))
	b = append(b, `,"model":`...)
	b = appendString(b, g.model)
	return append(b, `,"choices":[{"index":`...)
}

// chunkEnd closes a chunk behind its choices, with usage where every chunk carries it, and
// counts. The tokens of a prompt are asked for only then.
func (g *generation) chunkEnd(b []byte, index int, d *vrust.Delta, promptTokens func() int) []byte {
	if g.continuousUsage {
		if g.running == nil {
			g.running = map[int]int{}
			g.runningPrompt = promptTokens()
		}
		g.running[index] += len(d.TokenIDs)
		sofar := usage{PromptTokens: g.runningPrompt, CompletionTokens: g.running[index]}
		sofar.TotalTokens = sofar.PromptTokens + sofar.CompletionTokens
		b = append(b, `,"usage":`...)
		b = appendJSON(b, sofar, false)
	}
	if d.Finish != nil {
		g.count(index, d.Finish)
	}
	return append(b, "}\n\n"...)
}

// endStream sends what ends a stream: an error, usage, [DONE]. Before the first chunk an error
// still has an HTTP status of its own.
func (g *generation) endStream(out *events, w http.ResponseWriter, r *http.Request, err error) {
	if err != nil && !out.begun {
		g.failed(w, r, err)
		return
	}
	if r.Context().Err() != nil {
		return
	}
	if err == nil && g.usage {
		out.add(map[string]any{
			"id": g.id, "object": g.object, "created": g.created, "model": g.model,
			"choices": []any{}, "usage": g.counts,
		})
	}
	_ = out.finish(err)
}

// appendJSON appends any document, or null.
func appendJSON(b []byte, document any, null bool) []byte {
	if null {
		return append(b, "null"...)
	}
	encoded, err := json.Marshal(document)
	if err != nil {
		return append(b, "null"...)
	}
	return append(b, encoded...)
}

// appendFinish appends finish_reason and stop_reason; `instead` replaces the reason "stop".
func appendFinish(b []byte, finish *vrust.Finish, instead string) []byte {
	if finish == nil {
		return append(b, `,"finish_reason":null,"stop_reason":null`...)
	}
	b = append(b, `,"finish_reason":`...)
	b = appendString(b, finishReason(finish, instead))
	b = append(b, `,"stop_reason":`...)
	return appendJSON(b, finish.StopReason, finish.StopReason == nil)
}

func finishReason(finish *vrust.Finish, instead string) string {
	if finish.Reason == "stop" && instead != "" {
		return instead
	}
	return finish.Reason
}
