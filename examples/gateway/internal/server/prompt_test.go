package server

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	vrust "github.com/vrust/vrust/bindings/go"
)

// idsOf reads an answer's list of token ids.
func idsOf(t *testing.T, raw any) []float64 {
	t.Helper()
	list, ok := raw.([]any)
	if !ok {
		t.Fatalf("no token ids: %v", raw)
	}
	found := make([]float64, len(list))
	for i, id := range list {
		found[i] = id.(float64)
	}
	return found
}

func TestTruncation(t *testing.T) {
	web, _ := start(t, vrust.Options{}, nil)
	const complete, chat = "/v1/completions", "/v1/chat/completions"
	const tail = `,"max_tokens":2,"temperature":0,"return_token_ids":true}`
	prompt := `"prompt":"Once upon a time there was a small house"`
	_, whole := call(t, web, complete, `{`+prompt+tail)
	all := idsOf(t, choice(whole, 0)["prompt_token_ids"])
	if len(all) < 8 {
		t.Fatalf("%v", all)
	}
	equal := func(what string, got, want []float64) {
		t.Helper()
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v, not %v", what, got, want)
		}
	}
	for _, c := range []struct {
		fields string
		want   []float64
	}{
		{`,"truncate_prompt_tokens":4`, all[len(all)-4:]},
		{`,"truncate_prompt_tokens":4,"truncation_side":"left"`, all[len(all)-4:]},
		{`,"truncate_prompt_tokens":4,"truncation_side":"right"`, all[:4]},
		{`,"truncate_prompt_tokens":2048`, all},
		{`,"truncate_prompt_tokens":-1`, all},
		{`,"truncate_prompt_tokens":null`, all},
	} {
		status, answer := call(t, web, complete, `{`+prompt+c.fields+tail)
		if status != 200 {
			t.Fatalf("%s: %d %v", c.fields, status, answer)
		}
		equal(c.fields, idsOf(t, choice(answer, 0)["prompt_token_ids"]), c.want)
		if used := answer["usage"].(object)["prompt_tokens"]; used != float64(len(c.want)) {
			t.Errorf("%s: %v tokens", c.fields, used)
		}
	}
	// -1 leaves room for the answer, however long the prompt; each of several is cut.
	long := strings.Repeat("word ", 5000)
	_, answer := call(t, web, complete, `{"prompt":["`+long+`","a"],"truncate_prompt_tokens":-1`+tail)
	equal("two prompts", []float64{float64(len(idsOf(t, choice(answer, 0)["prompt_token_ids"])))},
		[]float64{2046})

	messages := `"messages":[{"role":"user","content":"` + long + `"}]`
	status, document := call(t, web, chat, `{`+messages+tail)
	expectError(t, "a long chat", status, document, 400, "prompt", "2048")
	status, answer = call(t, web, chat,
		`{`+messages+`,"truncate_prompt_tokens":-1,"logprobs":true`+tail)
	if status != 200 || answer["usage"].(object)["prompt_tokens"] != float64(2046) ||
		len(idsOf(t, answer["prompt_token_ids"])) != 2046 ||
		choice(answer, 0)["logprobs"] == nil {
		t.Errorf("%d %v", status, answer)
	}
	short := `"messages":[{"role":"user","content":"Hi"}],"truncate_prompt_tokens":3`
	_, answer = call(t, web, chat, `{`+short+`,"temperature":0}`) // max_tokens: what is left.
	if answer["usage"].(object)["prompt_tokens"] != float64(3) {
		t.Errorf("%v", answer)
	}
	for fields, param := range map[string]string{
		`,"truncate_prompt_tokens":0`:                  "truncate_prompt_tokens",
		`,"truncate_prompt_tokens":-2`:                 "truncate_prompt_tokens",
		`,"truncate_prompt_tokens":2049`:               "truncate_prompt_tokens",
		`,"truncate_prompt_tokens":"all"`:              "truncate_prompt_tokens",
		`,"truncation_side":"top"`:                     "truncation_side",
		`,"top_logprobs":2,"truncate_prompt_tokens":3`: "top_logprobs",
	} {
		if param != "top_logprobs" {
			status, document = call(t, web, complete, `{`+prompt+fields+`}`)
			expectError(t, fields, status, document, 400, param, param)
		}
		body := strings.Replace(short, `,"truncate_prompt_tokens":3`, fields, 1)
		status, document = call(t, web, chat, `{`+body+`}`)
		expectError(t, "chat "+fields, status, document, 400, param, param)
	}
}

const ownTemplate = `{% for m in messages %}Q: {{ m.content }}\nA:{% endfor %}`

func TestRequestChatTemplate(t *testing.T) {
	const chat = "/v1/chat/completions"
	hi := `"messages":[{"role":"user","content":"Hi"}],"max_tokens":4,"temperature":0`
	own := `,"chat_template":"` + ownTemplate + `"`

	guarded, _ := start(t, vrust.Options{}, nil)
	for _, path := range []string{chat, "/tokenize"} {
		status, document := call(t, guarded, path, `{`+hi+own+`}`)
		expectError(t, path, status, document, 400, "chat_template", "--trust-request-chat-template")
	}

	web, _ := start(t, vrust.Options{}, func(c *Config) { c.TrustRequestChatTemplate = true })
	status, answer := call(t, web, chat, `{`+hi+own+`,"return_token_ids":true}`)
	_, plain := call(t, web, "/tokenize", `{"prompt":"Q: Hi\nA:","add_special_tokens":false}`)
	if status != 200 || fmt.Sprint(answer["prompt_token_ids"]) != fmt.Sprint(plain["tokens"]) {
		t.Fatalf("%d %v, not %v", status, answer, plain["tokens"])
	}
	_, tokenized := call(t, web, "/tokenize", `{`+hi+own+`}`)
	if fmt.Sprint(tokenized["tokens"]) != fmt.Sprint(plain["tokens"]) {
		t.Errorf("%v", tokenized)
	}
	// The same text as a completion goes on the same.
	_, completed := call(t, web, "/v1/completions",
		`{"prompt":"Q: Hi\nA:","add_special_tokens":false,"max_tokens":4,"temperature":0}`)
	message := choice(answer, 0)["message"].(object)
	if message["content"] != choice(completed, 0)["text"] {
		t.Errorf("%v, as a completion %v", message, completed)
	}
	events := stream(t, web, chat, `{`+hi+own+`,"stream":true}`)
	if len(events) < 2 {
		t.Errorf("%v", events)
	}
	for bad, word := range map[string]string{
		`"{% if %}"`: "", `5`: "string", `"{{ raise_exception('no') }}"`: "no",
		`"{% include '/etc/passwd' %}"`: "",
	} {
		status, document := call(t, web, chat, `{`+hi+`,"chat_template":`+bad+`}`)
		param, _ := document["error"].(object)["param"].(string)
		expectError(t, bad, status, document, 400, param, word)
	}
}

// A body that trickles in is cut off when its time is over, and the others are served.
func TestSlowBody(t *testing.T) {
	web, _ := start(t, vrust.Options{}, func(c *Config) { c.BodyPatience = 300 * time.Millisecond })
	connection, err := net.Dial("tcp", web.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	fmt.Fprintf(connection, "POST /v1/completions HTTP/1.1\r\nHost: a\r\n"+
		"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
	began := time.Now()
	go func() {
		for range 100 { // Each byte alone would be in time.
			time.Sleep(50 * time.Millisecond)
			if _, err := connection.Write([]byte(" ")); err != nil {
				return
			}
		}
	}()
	_ = connection.SetReadDeadline(time.Now().Add(10 * time.Second))
	head := make([]byte, 1024)
	n, err := connection.Read(head)
	took := time.Since(began)
	if err != nil || !strings.HasPrefix(string(head[:n]), "HTTP/1.1 408 ") ||
		!strings.Contains(string(head[:n]), "RequestTimeoutError") {
		t.Errorf("%q, %v", head[:n], err)
	}
	if took < 200*time.Millisecond || took > 3*time.Second {
		t.Errorf("cut off after %v", took)
	}
	if status, _ := call(t, web, "/v1/completions", `{"prompt":"a","max_tokens":1}`); status != 200 {
		t.Errorf("afterwards: %d", status)
	}
	// A connection whose body came in time serves more requests, however much later.
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	for range 2 {
		answer, err := client.Post(web.URL+"/tokenize", "application/json",
			strings.NewReader(`{"prompt":"a"}`))
		if err != nil || answer.StatusCode != 200 {
			t.Fatalf("%v, %v", answer, err)
		}
		answer.Body.Close()
		time.Sleep(400 * time.Millisecond)
	}
}
