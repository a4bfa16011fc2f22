package server

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	vrust "github.com/vrust/vrust/bindings/go"
)

const responsesPath = "/v1/responses"

const responseKeys = `background created_at error id incomplete_details instructions
	max_output_tokens max_tool_calls metadata model object output parallel_tool_calls
	previous_response_id prompt reasoning service_tier status store temperature text tool_choice
	tools top_logprobs top_p truncation usage user`

// textOf is the text of a response's only item.
func textOf(t *testing.T, response object) string {
	t.Helper()
	output := response["output"].([]any)
	if len(output) != 1 {
		t.Fatalf("%v", output)
	}
	item := output[0].(object)
	expectKeys(t, "item", item, "content id role status type")
	part := item["content"].([]any)[0].(object)
	expectKeys(t, "part", part, "annotations logprobs text type")
	return part["text"].(string)
}

func TestResponseShape(t *testing.T) {
	web, _ := start(t, vrust.Options{}, nil)
	question := `What is the capital of France?`
	status, response := call(t, web, responsesPath, `{"model":"demo","input":"`+question+
		`","temperature":0,"instructions":"Be brief.","metadata":{"a":"b"},"user":"me"}`)
	if status != 200 {
		t.Fatalf("%d %v", status, response)
	}
	expectKeys(t, "response", response, responseKeys)
	if response["status"] != "completed" || response["object"] != "response" ||
		response["store"] != false || response["instructions"] != "Be brief." ||
		response["metadata"].(object)["a"] != "b" || response["user"] != "me" {
		t.Errorf("%v", response)
	}
	_, chat := call(t, web, "/v1/chat/completions", `{"model":"demo","temperature":0,"messages":[
		{"role":"system","content":"Be brief."},{"role":"user","content":"`+question+`"}]}`)
	message := chat["choices"].([]any)[0].(object)["message"].(object)
	if text := textOf(t, response); text != message["content"] || text == "" {
		t.Errorf("%q, as a chat %q", text, message["content"])
	}
	usage, chatUsage := response["usage"].(object), chat["usage"].(object)
	expectKeys(t, "usage", usage,
		"input_tokens input_tokens_details output_tokens output_tokens_details total_tokens")
	if usage["input_tokens"] != chatUsage["prompt_tokens"] ||
		usage["output_tokens"] != chatUsage["completion_tokens"] ||
		usage["total_tokens"] != chatUsage["total_tokens"] {
		t.Errorf("%v, as a chat %v", usage, chatUsage)
	}

	// The same as items, with what came before.
	_, items := call(t, web, responsesPath, `{"temperature":0,"instructions":"Be brief.","input":[
		{"type":"reasoning","summary":[]},
		{"role":"user","content":[{"type":"input_text","text":"What is the "},
		{"type":"input_text","text":"capital of France?"}]}]}`)
	if textOf(t, items) != textOf(t, response) {
		t.Errorf("%v", items)
	}
	_, short := call(t, web, responsesPath, `{"input":"Hi","max_output_tokens":2}`)
	if short["status"] != "incomplete" ||
		short["incomplete_details"].(object)["reason"] != "max_output_tokens" {
		t.Errorf("%v", short)
	}
}

// responseEvents are the events of a streamed response.
func responseEvents(t *testing.T, web *httptest.Server, body string) []object {
	t.Helper()
	answer, err := http.Post(web.URL+responsesPath, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != 200 {
		t.Fatalf("%d %s %v", answer.StatusCode, raw, err)
	}
	return parseEvents(t, string(raw))
}

func parseEvents(t *testing.T, raw string) []object {
	t.Helper()
	var found []object
	for number, frame := range strings.Split(strings.TrimSuffix(raw, "\n\n"), "\n\n") {
		name, data, ok := strings.Cut(strings.TrimPrefix(frame, "event: "), "\ndata: ")
		var event object
		if !ok || json.Unmarshal([]byte(data), &event) != nil || event["type"] != name ||
			event["sequence_number"] != float64(number) {
			t.Fatalf("event %d: %q", number, frame)
		}
		found = append(found, event)
	}
	return found
}

func TestResponseStream(t *testing.T) {
	web, _ := start(t, vrust.Options{}, nil)
	body := `{"input":"What is the capital of France?","temperature":0`
	_, whole := call(t, web, responsesPath, body+"}")
	events := responseEvents(t, web, body+`,"stream":true}`)
	text, order := "", []string{}
	for _, event := range events {
		name := event["type"].(string)
		if name == "response.output_text.delta" {
			expectKeys(t, name, event,
				"content_index delta item_id logprobs output_index sequence_number type")
			text += event["delta"].(string)
		}
		if len(order) == 0 || order[len(order)-1] != name {
			order = append(order, name)
		}
	}
	want := strings.Fields(`response.created response.in_progress response.output_item.added
		response.content_part.added response.output_text.delta response.output_text.done
		response.content_part.done response.output_item.done response.completed`)
	if strings.Join(order, " ") != strings.Join(want, " ") {
		t.Errorf("%v", order)
	}
	last := events[len(events)-1]["response"].(object)
	expectKeys(t, "response", last, responseKeys)
	if textOf(t, last) != text || text != textOf(t, whole) || last["usage"] == nil {
		t.Errorf("%q in the stream, %q at its end, %q without", text, textOf(t, last),
			textOf(t, whole))
	}
	cut := responseEvents(t, web, `{"input":"Hi","max_output_tokens":1,"stream":true}`)
	if cut[len(cut)-1]["type"] != "response.incomplete" {
		t.Errorf("%v", cut[len(cut)-1])
	}
}

// Reasoning is an item of its own, before the message, streamed or not.
func TestResponseReasoning(t *testing.T) {
	tokenizer, err := vrust.OpenTokenizer(demoModel)
	if err != nil {
		t.Fatal(err)
	}
	defer tokenizer.Close()
	parser, err := tokenizer.NewChatParser(vrust.ChatParserOptions{ReasoningFormat: "think"})
	if err != nil {
		t.Fatal(err)
	}
	defer parser.Close()
	g := &generation{id: "resp_1", n: 1, tokenizer: tokenizer, server: &Server{}}
	a := &response{g: g, choice: &chatChoice{splitter: parser}}
	writer := httptest.NewRecorder()
	s := &responseStream{response: a, out: g.newEvents(writer), output: []any{}}
	s.begin()
	for _, piece := range []string{"<think>", "hm", "</think>", "y", "es"} {
		if err := s.grow(&vrust.Delta{Text: piece}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.grow(&vrust.Delta{Finish: &vrust.Finish{Reason: "stop"}}); err != nil {
		t.Fatal(err)
	}
	s.done()
	order := ""
	for _, event := range parseEvents(t, string(s.out.buffer)) {
		if delta, ok := event["delta"].(string); ok {
			order += event["type"].(string) + "=" + delta + " "
		}
	}
	if order != "response.reasoning_text.delta=hm response.output_text.delta=y "+
		"response.output_text.delta=es " {
		t.Error(order)
	}
	streamed, _ := json.Marshal(s.output)
	whole, _ := json.Marshal(a.ended()["output"])
	if string(streamed) != string(whole) || !strings.Contains(string(whole), `"text":"hm"`) {
		t.Errorf("%s, at once %s", streamed, whole)
	}
	details := a.usage()["output_tokens_details"].(map[string]int)
	if details["reasoning_tokens"] == 0 {
		t.Errorf("%v", details)
	}
}

func TestBadResponses(t *testing.T) {
	web, _ := start(t, vrust.Options{}, nil)
	for _, c := range []struct{ body, param, word string }{
		{`{}`, "input", "required"},
		{`{"input":5}`, "input", "5"},
		{`{"input":[]}`, "input", "empty"},
		{`{"input":[{"role":"king","content":"a"}]}`, "input", "king"},
		{`{"input":[{"role":"user"}]}`, "input", "input[0].content"},
		{`{"input":[{"role":"user","content":[{"type":"input_image"}]}]}`, "input", "input_image"},
		{`{"input":[{"type":"function_call_output"}]}`, "input", "function_call_output"},
		{`{"input":"a","messages":[]}`, "messages", "no such field"},
		{`{"input":"a","instructions":7}`, "instructions", "string"},
		{`{"input":"a","max_output_tokens":0}`, "max_output_tokens", "0"},
		{`{"input":"a","previous_response_id":"resp_1"}`, "previous_response_id", "resp_1"},
		{`{"input":"a","background":true}`, "background", "true"},
		{`{"input":"a","tools":[{"type":"web_search"}]}`, "tools", "web_search"},
		{`{"input":"a","tool_choice":"required"}`, "tool_choice", "required"},
		{`{"input":"a","text":{"format":{"type":"json_schema"}}}`, "text", "json_schema"},
		{`{"input":"a","reasoning":{"effort":"high"}}`, "reasoning", "high"},
		{`{"input":"a","truncation":"auto"}`, "truncation", "auto"},
		{`{"input":"a","include":["message.output_text.logprobs"]}`, "include", "logprobs"},
		{`{"input":"a","temperature":9}`, "temperature", "9"},
		{`{"input":"a","stream":true,"top_p":9}`, "top_p", "9"},
	} {
		status, document := call(t, web, responsesPath, c.body)
		expectError(t, c.body, status, document, 400, c.param, c.word)
	}
	status, document := call(t, web, responsesPath, `{"input":"a","model":"none"}`)
	expectError(t, "model", status, document, 404, "model", "none")
	long := `{"stream":true,"input":"` + strings.Repeat("long ", 20000) + `"}`
	status, document = call(t, web, responsesPath, long)
	expectError(t, "too long", status, document, 400, "input", "2048")
	for _, c := range []struct {
		method, path string
		code         int
	}{
		{"GET", "/resp_1", 404}, {"DELETE", "/resp_1", 404}, {"POST", "/resp_1/cancel", 404},
		{"GET", "/resp_1/input_items", 404}, {"GET", "", 405}, {"PUT", "", 405},
	} {
		request, err := http.NewRequest(c.method, web.URL+responsesPath+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := http.DefaultTransport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != c.code {
			t.Errorf("%s %s: %d", c.method, c.path, answer.StatusCode)
		}
	}
}
