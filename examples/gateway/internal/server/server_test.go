package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	vrust "github.com/vrust/vrust/bindings/go"
)

const demoModel = "../../../demo-model"

// object is any JSON object.
type object = map[string]any

// start serves the demo model; `change` may alter the configuration.
func start(t testing.TB, options vrust.Options, change func(*Config)) (*httptest.Server, *Server) {
	t.Helper()
	options.Model = demoModel
	engine, err := vrust.Open(context.Background(), options)
	if err != nil {
		t.Fatal(err)
	}
	tokenizer, err := engine.Tokenizer()
	if err != nil {
		t.Fatal(err)
	}
	config := Config{
		Engine: engine, Tokenizer: tokenizer, ModelNames: []string{"demo", "alias"},
		ModelRoot: "demo-model", MaxModelLen: 2048,
	}
	if change != nil {
		change(&config)
	}
	server, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(server)
	t.Cleanup(func() {
		web.CloseClientConnections()
		web.Close()
		tokenizer.Close()
		engine.Close()
	})
	return web, server
}

// call sends a JSON body and gives the answer's status and document.
func call(t testing.TB, web *httptest.Server, path, body string) (int, object) {
	t.Helper()
	response, err := http.Post(web.URL+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var document object
	if err := json.NewDecoder(response.Body).Decode(&document); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return response.StatusCode, document
}

// stream gives the events of a streamed answer, without the last, which must be [DONE].
func stream(t testing.TB, web *httptest.Server, path, body string) []object {
	t.Helper()
	response, err := http.Post(web.URL+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	kind := response.Header.Get("Content-Type")
	if response.StatusCode != 200 || !strings.HasPrefix(kind, "text/event-stream") {
		t.Fatalf("%d %s", response.StatusCode, kind)
	}
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	frames := strings.Split(string(raw), "\n\n")
	n := len(frames)
	if n < 2 || frames[n-1] != "" || frames[n-2] != "data: [DONE]" {
		t.Fatalf("the stream ends with %q", frames[max(0, n-2):])
	}
	var found []object
	for _, frame := range frames[:n-2] {
		data, ok := strings.CutPrefix(frame, "data: ")
		var document object
		if !ok || json.Unmarshal([]byte(data), &document) != nil {
			t.Fatalf("not an event: %q", frame)
		}
		found = append(found, document)
	}
	return found
}

func keys(document object) []string { return slices.Sorted(maps.Keys(document)) }

func sorted(names string) []string {
	list := strings.Fields(names)
	slices.Sort(list)
	return list
}

func expectKeys(t testing.TB, what string, document object, names string) {
	t.Helper()
	if got := keys(document); !slices.Equal(got, sorted(names)) {
		t.Errorf("%s has %v, not %v", what, got, sorted(names))
	}
}

func choice(document object, i int) object { return document["choices"].([]any)[i].(object) }

const greedy = `"temperature":0,"max_tokens":6,"ignore_eos":true`

func TestCompletionShape(t *testing.T) {
	web, _ := start(t, vrust.Options{}, nil)
	status, whole := call(t, web, "/v1/completions", `{"model":"alias","prompt":"Once",`+greedy+`}`)
	if status != 200 || whole["object"] != "text_completion" || whole["model"] != "demo" {
		t.Fatalf("%d %v", status, whole)
	}
	expectKeys(t, "the answer", whole,
		"id object created model choices usage service_tier system_fingerprint")
	expectKeys(t, "a choice", choice(whole, 0), "index text logprobs finish_reason stop_reason")
	if !strings.HasPrefix(whole["id"].(string), "cmpl-") {
		t.Errorf("id %v", whole["id"])
	}
	usage := whole["usage"].(object)
	expectKeys(t, "usage", usage, "prompt_tokens completion_tokens total_tokens")
	total := usage["prompt_tokens"].(float64) + 6
	if usage["completion_tokens"] != 6.0 || usage["total_tokens"] != total {
		t.Errorf("usage %v", usage)
	}
	text := ""
	chunks := stream(t, web, "/v1/completions",
		`{"prompt":"Once","stream":true,"stream_options":{"include_usage":true},`+greedy+`}`)
	last := chunks[len(chunks)-1]
	for _, chunk := range chunks[:len(chunks)-1] {
		expectKeys(t, "a chunk", chunk, "id object created model choices")
		expectKeys(t, "its choice", choice(chunk, 0), "index text logprobs finish_reason stop_reason")
		text += choice(chunk, 0)["text"].(string)
	}
	if text != choice(whole, 0)["text"] {
		t.Errorf("streamed %q, whole %q", text, choice(whole, 0)["text"])
	}
	if len(last["choices"].([]any)) != 0 || !reflect.DeepEqual(last["usage"], whole["usage"]) {
		t.Errorf("the usage chunk: %v", last)
	}
	end := choice(chunks[len(chunks)-2], 0)
	if end["finish_reason"] != "length" {
		t.Errorf("the last chunk: %v", end)
	}
}

func TestChatShape(t *testing.T) {
	web, _ := start(t, vrust.Options{}, nil)
	messages := `"messages":[{"role":"user","content":"Hello"}],`
	status, whole := call(t, web, "/v1/chat/completions", `{`+messages+greedy+`}`)
	if status != 200 || whole["object"] != "chat.completion" {
		t.Fatalf("%d %v", status, whole)
	}
	expectKeys(t, "the answer", whole, `id object created model choices usage service_tier
		system_fingerprint prompt_logprobs`)
	expectKeys(t, "a choice", choice(whole, 0), "index message logprobs finish_reason stop_reason")
	message := choice(whole, 0)["message"].(object)
	expectKeys(t, "a message", message,
		"role content refusal annotations audio tool_calls reasoning")
	chunks := stream(t, web, "/v1/chat/completions", `{"stream":true,"n":1,`+messages+greedy+`}`)
	first := choice(chunks[0], 0)["delta"]
	if !reflect.DeepEqual(first, object{"role": "assistant", "content": ""}) {
		t.Errorf("the first delta: %v", first)
	}
	text := ""
	for i, chunk := range chunks {
		expectKeys(t, "a chunk", chunk, "id object created model choices")
		expectKeys(t, "its choice", choice(chunk, 0), "index delta logprobs finish_reason stop_reason")
		if content, ok := choice(chunk, 0)["delta"].(object)["content"].(string); ok {
			text += content
		}
		ended := choice(chunk, 0)["finish_reason"] != nil
		if ended != (i == len(chunks)-1) {
			t.Errorf("chunk %d of %d: %v", i, len(chunks), chunk)
		}
	}
	if text != message["content"] {
		t.Errorf("streamed %q, whole %q", text, message["content"])
	}
}

func TestContinuousUsage(t *testing.T) {
	web, _ := start(t, vrust.Options{}, nil)
	for _, body := range []string{
		`{"prompt":"Once","stream":true,"stream_options":{"include_usage":true,
			"continuous_usage_stats":true},` + greedy + `}`,
		`{"messages":[{"role":"user","content":"Hi"}],"stream":true,"stream_options":
			{"include_usage":true,"continuous_usage_stats":true},` + greedy + `}`,
	} {
		path := "/v1/completions"
		if strings.Contains(body, "messages") {
			path = "/v1/chat/completions"
		}
		chunks := stream(t, web, path, body)
		before := 0.0
		for _, chunk := range chunks {
			usage := chunk["usage"].(object)
			if usage["completion_tokens"].(float64) < before || usage["prompt_tokens"].(float64) < 1 {
				t.Errorf("usage %v after %v", usage, before)
			}
			before = usage["completion_tokens"].(float64)
		}
		last, end := chunks[len(chunks)-1], chunks[len(chunks)-2]
		if !reflect.DeepEqual(last["usage"], end["usage"]) || before != 6 {
			t.Errorf("at the end %v, counted %v", end["usage"], last["usage"])
		}
	}
}

func TestPromptLists(t *testing.T) {
	web, _ := start(t, vrust.Options{}, nil)
	prompts := []string{"Once upon", "The king", "A dog"}
	var singles []any
	for _, prompt := range prompts {
		_, answer := call(t, web, "/v1/completions", `{"prompt":"`+prompt+`",`+greedy+`}`)
		singles = append(singles, choice(answer, 0)["text"])
	}
	list, _ := json.Marshal(prompts)
	status, answer := call(t, web, "/v1/completions",
		`{"prompt":`+string(list)+`,"return_token_ids":true,`+greedy+`}`)
	if status != 200 || len(answer["choices"].([]any)) != 3 {
		t.Fatalf("%d %v", status, answer)
	}
	var ids []any
	for i := range prompts {
		c := choice(answer, i)
		if c["text"] != singles[i] || c["index"] != float64(i) || len(c["token_ids"].([]any)) != 6 {
			t.Errorf("prompt %d: %v, alone %q", i, c, singles[i])
		}
		ids = append(ids, c["prompt_token_ids"])
	}
	encoded, _ := json.Marshal(ids)
	_, same := call(t, web, "/v1/completions", `{"prompt":`+string(encoded)+`,`+greedy+`}`)
	for i := range prompts {
		if choice(same, i)["text"] != singles[i] {
			t.Errorf("by ids: %v", choice(same, i))
		}
	}
	streamed := map[int]string{}
	for _, chunk := range stream(t, web, "/v1/completions",
		`{"stream":true,"prompt":`+string(list)+`,`+greedy+`}`) {
		c := choice(chunk, 0)
		streamed[int(c["index"].(float64))] += c["text"].(string)
	}
	for i := range prompts {
		if streamed[i] != singles[i] {
			t.Errorf("streamed %q, alone %q", streamed[i], singles[i])
		}
	}
}

func TestEchoAndLogprobs(t *testing.T) {
	web, _ := start(t, vrust.Options{}, nil)
	_, answer := call(t, web, "/v1/completions",
		`{"prompt":"Once upon a time","echo":true,"logprobs":2,`+greedy+`}`)
	c := choice(answer, 0)
	if !strings.HasPrefix(c["text"].(string), "Once upon a time") {
		t.Errorf("echoed %q", c["text"])
	}
	logprobs := c["logprobs"].(object)
	expectKeys(t, "logprobs", logprobs, "text_offset token_logprobs tokens top_logprobs")
	usage := answer["usage"].(object)
	for name, list := range logprobs {
		if float64(len(list.([]any))) != usage["total_tokens"] {
			t.Errorf("%s has %d entries of %v", name, len(list.([]any)), usage)
		}
	}
	if logprobs["token_logprobs"].([]any)[0] != nil {
		t.Error("the first token of a prompt has a logprob")
	}
	chunks := stream(t, web, "/v1/completions",
		`{"stream":true,"prompt":"Once upon a time","echo":true,"logprobs":2,`+greedy+`}`)
	var tokens, offsets []any
	text := ""
	for _, chunk := range chunks {
		l := choice(chunk, 0)["logprobs"].(object)
		tokens = append(tokens, l["tokens"].([]any)...)
		offsets = append(offsets, l["text_offset"].([]any)...)
		text += choice(chunk, 0)["text"].(string)
	}
	if !reflect.DeepEqual(tokens, logprobs["tokens"]) || text != c["text"] ||
		!reflect.DeepEqual(offsets, logprobs["text_offset"]) {
		t.Errorf("streamed %q %v %v", text, tokens, offsets)
	}
	_, scored := call(t, web, "/v1/completions",
		`{"prompt":"Once upon","echo":true,"logprobs":0,"max_tokens":0}`)
	if choice(scored, 0)["text"] != "Once upon" ||
		scored["usage"].(object)["completion_tokens"] != 0.0 {
		t.Errorf("scored alone: %v", scored)
	}
	_, chat := call(t, web, "/v1/chat/completions",
		`{"messages":[{"role":"user","content":"Hi"}],"logprobs":true,"top_logprobs":2,`+greedy+`}`)
	content := choice(chat, 0)["logprobs"].(object)["content"].([]any)
	if len(content) != 6 || len(content[0].(object)["top_logprobs"].([]any)) != 2 {
		t.Errorf("a chat's: %v", content)
	}
	expectKeys(t, "an entry", content[0].(object), "token logprob bytes top_logprobs")
	_, named := call(t, web, "/v1/completions",
		`{"prompt":"a","logprobs":0,"return_tokens_as_token_ids":true,`+greedy+`}`)
	token := choice(named, 0)["logprobs"].(object)["tokens"].([]any)[0].(string)
	if !strings.HasPrefix(token, "token_id:") {
		t.Errorf("token %q", token)
	}
}

func TestTokenizeRoutes(t *testing.T) {
	web, _ := start(t, vrust.Options{}, nil)
	status, found := call(t, web, "/tokenize", `{"prompt":"Once upon","return_token_strs":true}`)
	if status != 200 || int(found["count"].(float64)) != len(found["tokens"].([]any)) {
		t.Fatalf("%d %v", status, found)
	}
	expectKeys(t, "tokenize", found, "count max_model_len tokens token_strs")
	ids, _ := json.Marshal(found["tokens"].([]any)[1:])
	status, back := call(t, web, "/detokenize", `{"tokens":`+string(ids)+`}`)
	if status != 200 || back["prompt"] != "Once upon" {
		t.Errorf("%d %v", status, back)
	}
	_, chat := call(t, web, "/tokenize", `{"messages":[{"role":"user","content":"Hi"}]}`)
	_, answer := call(t, web, "/v1/chat/completions",
		`{"messages":[{"role":"user","content":"Hi"}],"max_tokens":1}`)
	if chat["count"] != answer["usage"].(object)["prompt_tokens"] {
		t.Errorf("%v tokens, used %v", chat["count"], answer["usage"])
	}
}

// counters reads the metrics' samples, by name and labels.
func counters(t testing.TB, web *httptest.Server) map[string]string {
	t.Helper()
	response, err := http.Get(web.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	found := map[string]string{}
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		line := lines.Text()
		if at := strings.LastIndexByte(line, ' '); at > 0 && line[0] != '#' {
			found[line[:at]] = line[at+1:]
		}
	}
	return found
}

func find(samples map[string]string, name string, labels ...string) string {
	for key, value := range samples {
		if strings.HasPrefix(key, name+"{") &&
			!slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(key, l) }) {
			return value
		}
	}
	return "none"
}

func TestMetricsCountExactly(t *testing.T) {
	web, _ := start(t, vrust.Options{}, nil)
	prompt := 0.0
	for range 3 {
		_, answer := call(t, web, "/v1/completions", `{"prompt":"Once upon",`+greedy+`}`)
		prompt += answer["usage"].(object)["prompt_tokens"].(float64)
	}
	call(t, web, "/v1/completions", `{"prompt":5}`)
	samples := counters(t, web)
	for name, expected := range map[string]string{
		"vllm:prompt_tokens_total":     jsonNumber(prompt) + ".0",
		"vllm:generation_tokens_total": "18.0",
		"vllm:num_requests_running":    "0.0",
		"vllm:num_requests_waiting":    "0.0",
		"vllm:kv_cache_usage_perc":     "0.0",
	} {
		if got := find(samples, name); got != expected {
			t.Errorf("%s is %s, not %s", name, got, expected)
		}
	}
	if got := find(samples, "vllm:request_success_total", `finished_reason="length"`); got != "3.0" {
		t.Errorf("ended by length: %s", got)
	}
	route := `handler="/v1/completions"`
	if got := find(samples, "http_requests_total", route, `status="2xx"`); got != "3" {
		t.Errorf("answered: %s", got)
	}
	if got := find(samples, "http_requests_total", route, `status="4xx"`); got != "1" {
		t.Errorf("refused: %s", got)
	}
}

func jsonNumber(n float64) string {
	encoded, _ := json.Marshal(n)
	return string(encoded)
}

// waitIdle waits until the engine has nothing to do, and fails if that takes long.
func waitIdle(t testing.TB, s *Server) {
	t.Helper()
	for range 1000 {
		stats := s.config.Engine.Stats()
		if stats.LiveRequests == 0 && stats.KVBlocksUsed == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("still busy: %+v", s.config.Engine.Stats())
}

func TestDisconnectAborts(t *testing.T) {
	web, server := start(t, vrust.Options{}, nil)
	for _, streamed := range []string{"true", "false"} {
		before := server.config.Engine.Stats()
		ctx, cancel := context.WithCancel(context.Background())
		body := `{"prompt":"Once","n":64,"max_tokens":2000,"ignore_eos":true,"stream":` + streamed + `}`
		request, _ := http.NewRequestWithContext(ctx, "POST", web.URL+"/v1/completions",
			bytes.NewReader([]byte(body)))
		request.Header.Set("Content-Type", "application/json")
		done := make(chan struct{})
		go func() {
			defer close(done)
			response, err := http.DefaultClient.Do(request)
			if err == nil {
				_, _ = io.Copy(io.Discard, response.Body)
				response.Body.Close()
			}
		}()
		for server.config.Engine.Stats().NumRequestsRunning == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
		<-done
		waitIdle(t, server)
		after := server.config.Engine.Stats()
		if aborted := after.FinishedAbort - before.FinishedAbort; aborted != 64 {
			t.Errorf("stream %s: %d choices aborted", streamed, aborted)
		}
	}
}
