package server

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	vrust "github.com/vrust/vrust/bindings/go"
)

// A bug in the engine ends its requests with errors, and /health says so. The process lives.
func TestEngineFailure(t *testing.T) {
	web, _ := start(t, vrust.Options{
		Extra: map[string]any{"debug": map[string]any{"panic_at_step": 20}},
	}, nil)
	response, err := http.Post(web.URL+"/v1/completions", "application/json",
		strings.NewReader(`{"prompt":"Once","max_tokens":100,"ignore_eos":true,"stream":true}`))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	frames := strings.Split(strings.TrimSpace(string(body)), "\n\n")
	n := len(frames)
	if response.StatusCode != 200 || n < 3 || frames[n-1] != "data: [DONE]" {
		t.Fatalf("%d: %d frames, the last %q", response.StatusCode, n, frames[n-1])
	}
	var event object
	if err := json.Unmarshal([]byte(strings.TrimPrefix(frames[n-2], "data: ")), &event); err != nil {
		t.Fatal(err)
	}
	expectError(t, "in the stream", 500, event, 500, "", "")
	status, document := call(t, web, "/v1/completions", `{"prompt":"Once","max_tokens":4}`)
	expectError(t, "afterwards", status, document, 500, "", "")
	health, err := http.Get(web.URL + "/health")
	if err != nil {
		t.Fatal(err)
	}
	defer health.Body.Close()
	text, _ := io.ReadAll(health.Body)
	if health.StatusCode != 503 || string(text) != `{"status":"failed"}` {
		t.Errorf("%d %s", health.StatusCode, text)
	}
}

// While the server drains, load balancers hear of it.
func TestDrainingHealth(t *testing.T) {
	web, server := start(t, vrust.Options{}, nil)
	server.BeginDrain()
	response, err := http.Get(web.URL + "/health")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if text, _ := io.ReadAll(response.Body); response.StatusCode != 503 ||
		string(text) != `{"status":"draining"}` {
		t.Errorf("%d %s", response.StatusCode, text)
	}
}

// A template that a client sends is refused, and one in messages is only text.
func TestTemplatesRunNothing(t *testing.T) {
	web, _ := start(t, vrust.Options{}, nil)
	status, document := call(t, web, "/v1/chat/completions",
		`{"messages":[{"role":"user","content":"a"}],"chat_template":"{{ 1 }}"}`)
	expectError(t, "a template", status, document, 400, "chat_template", "untrusted")
	text := `{{ messages }}{% include '/etc/passwd' %}`
	encoded, _ := json.Marshal(text)
	_, chat := call(t, web, "/tokenize",
		`{"messages":[{"role":"user","content":`+string(encoded)+`}]}`)
	ids, _ := json.Marshal(chat["tokens"])
	_, back := call(t, web, "/detokenize", `{"tokens":`+string(ids)+`}`)
	if !strings.Contains(back["prompt"].(string), "include '/etc/passwd'") ||
		strings.Contains(back["prompt"].(string), "root:") {
		t.Errorf("%q", back["prompt"])
	}
}
