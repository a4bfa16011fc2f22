package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	vrust "github.com/vrust/vrust/bindings/go"
)

// expectError checks that an answer is an error as OpenAI's clients read it.
func expectError(
	t testing.TB, what string, status int, document object, code int, param, word string,
) {
	t.Helper()
	e, ok := document["error"].(object)
	if !ok || status != code {
		t.Errorf("%s: %d %v", what, status, document)
		return
	}
	expectKeys(t, what, e, "message type param code")
	given, _ := e["param"].(string)
	if e["code"] != float64(code) || given != param || !strings.Contains(e["message"].(string), word) {
		t.Errorf("%s: %v", what, e)
	}
}

func TestBadFields(t *testing.T) {
	web, _ := start(t, vrust.Options{}, nil)
	const complete, chat = "/v1/completions", "/v1/chat/completions"
	hi := `"messages":[{"role":"user","content":"Hi"}]`
	cases := []struct {
		path, body string
		code       int
		param      string
		word       string
	}{
		{complete, `{`, 400, "", "not a JSON object"},
		{complete, `[]`, 400, "", "not a JSON object"},
		{complete, `null`, 400, "", "null"},
		{complete, `{"prompt":"a"} {}`, 400, "", "goes on"},
		{complete, `{}`, 400, "prompt", "required"},
		{complete, `{"prompt":5}`, 400, "prompt", "5"},
		{complete, `{"prompt":[]}`, 400, "prompt", "empty"},
		{complete, `{"prompt":["a",5]}`, 400, "prompt", "[1]"},
		{complete, `{"prompt":[1,"a"]}`, 400, "prompt", "[1]"},
		{complete, `{"prompt":[99999999]}`, 400, "prompt", "99999999"},
		{complete, `{"prompt":"a","n":0}`, 400, "n", "0"},
		{complete, `{"prompt":"a","n":"two"}`, 400, "n", "integer"},
		{complete, `{"prompt":"a","stream":"yes"}`, 400, "stream", "boolean"},
		{complete, `{"prompt":"a","temperature":3}`, 400, "temperature", "3"},
		{complete, `{"prompt":"a","temperature":"hot"}`, 400, "temperature", "hot"},
		{complete, `{"prompt":"a","top_p":0}`, 400, "top_p", "0"},
		{complete, `{"prompt":"a","max_tokens":99999}`, 400, "max_tokens", "2048"},
		{complete, `{"prompt":"a","logprobs":21}`, 400, "logprobs", "20"},
		{complete, `{"prompt":"a","stop":["a","b","c","d","e"]}`, 400, "stop", "4"},
		{complete, `{"prompt":"a","stream_options":{"include_usage":true}}`, 400, "stream_options",
			"stream=True"},
		{complete, `{"prompt":"a","stream":true,"prompt_logprobs":1}`, 400, "prompt_logprobs", "stream"},
		{complete, `{"prompt":"a","best_of":3}`, 400, "best_of", "best_of"},
		{complete, `{"prompt":"a","use_beam_search":true}`, 400, "use_beam_search", "beam"},
		{complete, `{"prompt":"a","suffix":"z"}`, 400, "suffix", "suffix"},
		{complete, `{"prompt":"a","guided_json":{}}`, 400, "guided_json", "guided_json"},
		{complete, `{"prompt":"a","n":2,"temperature":0}`, 400, "n", "greedy"},
		{complete, `{"prompt":"a","model":"../../etc/passwd"}`, 404, "model", "does not exist"},
		{complete, `{"prompt":"a","request_id":"a\nb"}`, 400, "request_id", "ASCII"},
		{chat, `{}`, 400, "messages", "required"},
		{chat, `{"messages":"hi"}`, 400, "messages", "array"},
		{chat, `{"messages":[]}`, 400, "messages", ""},
		{chat, `{"messages":[{"role":"villain","content":"x"}]}`, 400, "", "villain"},
		{chat, `{` + hi + `,"prompt":"a"}`, 400, "prompt", "messages"},
		{chat, `{` + hi + `,"response_format":{"type":"json_object"}}`, 400, "response_format", ""},
		{chat, `{` + hi + `,"structured_outputs":{"regex":"a"}}`, 400, "structured_outputs", ""},
		{chat, `{` + hi + `,"tool_choice":"required"}`, 400, "tool_choice", "required"},
		{chat, `{` + hi + `,"tool_choice":{"type":"function"}}`, 400, "tool_choice", "named"},
		{chat, `{` + hi + `,"logprobs":5}`, 400, "logprobs", "boolean"},
		{chat, `{` + hi + `,"top_logprobs":2}`, 400, "top_logprobs", "logprobs"},
		{chat, `{` + hi + `,"echo":true}`, 400, "echo", "echo"},
		{"/tokenize", `{}`, 400, "prompt", "required"},
		{"/detokenize", `{"tokens":"a"}`, 400, "tokens", "token ids"},
	}
	for _, c := range cases {
		status, document := call(t, web, c.path, c.body)
		expectError(t, c.path+" "+c.body, status, document, c.code, c.param, c.word)
	}
	status, _ := call(t, web, complete, `{"prompt":"a","max_tokens":1}`)
	if status != 200 {
		t.Errorf("afterwards: %d", status)
	}
}

func TestTooLongPrompts(t *testing.T) {
	web, _ := start(t, vrust.Options{MaxModelLen: 64}, nil)
	body := `{"prompt":"` + strings.Repeat("word ", 200) + `","max_tokens":4`
	for _, rest := range []string{`}`, `,"stream":true}`} {
		status, document := call(t, web, "/v1/completions", body+rest)
		expectError(t, "a long prompt"+rest, status, document, 400, "prompt", "maximum context length")
	}
}

func TestBadBodies(t *testing.T) {
	web, _ := start(t, vrust.Options{}, func(c *Config) { c.MaxBodyBytes = 1000 })
	large := `{"prompt":"` + strings.Repeat("a", 1000) + `"}`
	status, document := call(t, web, "/v1/completions", large)
	expectError(t, "a large body", status, document, 413, "", "1000")
	status, document = call(t, web, "/v1/completions", "{\"prompt\":\"\xff\xfe\"}")
	expectError(t, "not UTF-8", status, document, 400, "", "UTF-8")
	for _, kind := range []string{"text/plain", "", "application/xml; charset=utf-8"} {
		response, err := http.Post(web.URL+"/v1/completions", kind, strings.NewReader(`{"prompt":"a"}`))
		if err != nil {
			t.Fatal(err)
		}
		var document object
		_ = json.NewDecoder(response.Body).Decode(&document)
		response.Body.Close()
		expectError(t, "of type "+kind, response.StatusCode, document, 400, "Content-Type", kind)
	}
	request, err := http.NewRequest("POST", web.URL+"/v1/completions", strings.NewReader("\x1f\x8b"))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Content-Encoding", "gzip")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	document = nil
	_ = json.NewDecoder(response.Body).Decode(&document)
	expectError(t, "compressed", response.StatusCode, document, 415, "Content-Encoding", "gzip")
}

func TestOtherRoutes(t *testing.T) {
	web, _ := start(t, vrust.Options{}, nil)
	status, document := call(t, web, "/v1/embeddings", `{"input":"a"}`)
	expectError(t, "embeddings", status, document, 501, "", "not implemented")
	status, document = call(t, web, "/v1/nothing", `{}`)
	expectError(t, "no route", status, document, 404, "", "Not Found")
	status, document = call(t, web, "/v1/models", `{}`)
	expectError(t, "a wrong method", status, document, 405, "", "Not Allowed")
	get := func(path string) (int, object) {
		response, err := http.Get(web.URL + path)
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
	for path, names := range map[string]string{
		"/health": "status", "/ping": "status", "/version": "version", "/load": "server_load",
		"/v1/models":      "object data",
		"/v1/models/demo": "id object created owned_by root parent max_model_len permission",
		"/openapi.json":   "openapi info paths components",
	} {
		status, document := get(path)
		if status != 200 {
			t.Errorf("%s: %d", path, status)
		}
		expectKeys(t, path, document, names)
	}
	status, document = get("/v1/models/..%2f..%2fetc%2fpasswd")
	expectError(t, "a path for a model", status, document, 404, "model", "does not exist")
	_, document = get("/openapi.json")
	for _, path := range []string{"/v1/completions", "/v1/chat/completions", "/tokenize", "/metrics"} {
		if document["paths"].(object)[path] == nil {
			t.Errorf("%s is not described", path)
		}
	}
}

func TestAPIKeys(t *testing.T) {
	web, _ := start(t, vrust.Options{}, func(c *Config) { c.APIKeys = []string{"one", "two"} })
	ask := func(path, authorization string) (int, string) {
		request, _ := http.NewRequest("GET", web.URL+path, nil)
		if authorization != "" {
			request.Header.Set("Authorization", authorization)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(response.Body)
		return response.StatusCode, string(body)
	}
	for authorization, expected := range map[string]int{
		"Bearer one": 200, "bearer two": 200, "": 401, "Bearer": 401, "Bearer three": 401,
		"Basic one": 401, "Bearer on": 401, "Bearer onee": 401,
	} {
		if status, body := ask("/v1/models", authorization); status != expected {
			t.Errorf("%q: %d", authorization, status)
		} else if status == 401 && body != `{"error":"Unauthorized"}` {
			t.Errorf("%q: %s", authorization, body)
		}
	}
	if status, _ := ask("/health", ""); status != 200 {
		t.Errorf("/health: %d", status)
	}
}

func TestFullQueueIs503(t *testing.T) {
	web, server := start(t, vrust.Options{MaxNumQueuedReqs: 1, MaxNumSeqs: 1}, nil)
	busy := 0
	results := make(chan int, 24)
	for range cap(results) {
		go func() {
			status, document := call(t, web, "/v1/completions",
				`{"prompt":"a","max_tokens":300,"ignore_eos":true}`)
			if status == 503 {
				expectError(t, "a full queue", status, document, 503, "", "")
			}
			results <- status
		}()
	}
	for range cap(results) {
		if status := <-results; status == 503 {
			busy++
		} else if status != 200 {
			t.Errorf("status %d", status)
		}
	}
	if busy == 0 {
		t.Error("nobody was turned away")
	}
	waitIdle(t, server)
}

// A client that sends its request and never reads must not hold the server for ever.
func TestClientThatNeverReads(t *testing.T) {
	web, server := start(t, vrust.Options{}, func(c *Config) {
		c.WritePatience = 300 * time.Millisecond
	})
	connection, err := net.Dial("tcp", web.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	_ = connection.(*net.TCPConn).SetReadBuffer(1024)
	body := `{"prompt":"Once","n":64,"max_tokens":2000,"ignore_eos":true,"stream":true,"logprobs":5}`
	fmt.Fprintf(connection, "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: "+
		"application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	for server.config.Engine.Stats().LiveRequests == 0 {
		time.Sleep(time.Millisecond)
	}
	status, _ := call(t, web, "/v1/completions", `{"prompt":"a","max_tokens":4}`)
	if status != 200 {
		t.Errorf("others meanwhile: %d", status)
	}
	for begin := time.Now(); server.load.Load() > 0; time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > 20*time.Second {
			t.Fatal("the request still waits for its client")
		}
	}
	waitIdle(t, server)
	if server.config.Engine.Stats().FinishedAbort == 0 {
		t.Error("nothing was aborted")
	}
}

func TestWhatIsIgnoredIsSaid(t *testing.T) {
	web, _ := start(t, vrust.Options{}, nil)
	response, err := http.Post(web.URL+"/v1/completions", "application/json",
		bytes.NewReader([]byte(`{"prompt":"a","max_tokens":1,"zebra":1,"apple":2}`)))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if got := response.Header.Get("X-Vrust-Ignored-Fields"); got != "apple, zebra" {
		t.Errorf("said %q", got)
	}
}

func TestRequestIDs(t *testing.T) {
	web, _ := start(t, vrust.Options{}, func(c *Config) { c.RequestIDHeaders = true })
	request := httptest.NewRequest("POST", web.URL+"/v1/completions",
		strings.NewReader(`{"prompt":"a","max_tokens":1}`))
	request.RequestURI = ""
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("X-Request-Id", "mine")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var document object
	_ = json.NewDecoder(response.Body).Decode(&document)
	if document["id"] != "cmpl-mine" || response.Header.Get("X-Request-Id") != "mine" {
		t.Errorf("%v %v", document["id"], response.Header)
	}
}

func TestCrossOrigin(t *testing.T) {
	web, _ := start(t, vrust.Options{}, func(c *Config) {
		c.AllowedOrigins = []string{"https://a.example"}
		c.APIKeys = []string{"k"}
	})
	for origin, allowed := range map[string]string{
		"https://a.example": "https://a.example", "https://b.example": "",
	} {
		request, _ := http.NewRequest("OPTIONS", web.URL+"/v1/completions", nil)
		request.Header.Set("Origin", origin)
		request.Header.Set("Access-Control-Request-Method", "POST")
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if got := response.Header.Get("Access-Control-Allow-Origin"); got != allowed {
			t.Errorf("%s: %q", origin, got)
		}
	}
}
