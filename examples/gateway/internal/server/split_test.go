package server

import (
	"encoding/json"
	"testing"

	vrust "github.com/vrust/vrust/bindings/go"
)

// feed runs text through a choice as the model would give it, in pieces of so many bytes.
func feed(t *testing.T, options vrust.ChatParserOptions, text string, size int) *chatChoice {
	t.Helper()
	tokenizer, err := vrust.OpenTokenizer(demoModel)
	if err != nil {
		t.Fatal(err)
	}
	defer tokenizer.Close()
	parser, err := tokenizer.NewChatParser(options)
	if err != nil {
		t.Fatal(err)
	}
	defer parser.Close()
	c := &chatChoice{splitter: parser}
	for begin := 0; begin < len(text); begin += size {
		d := &vrust.Delta{Text: text[begin:min(begin+size, len(text))]}
		if begin+size >= len(text) {
			d.Finish = &vrust.Finish{Reason: "stop"}
		}
		parts, err := c.split(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range parts {
			c.note(part)
		}
		c.finish = d.Finish
	}
	return c
}

func TestToolCallsAndReasoning(t *testing.T) {
	tools := json.RawMessage(`[{"type":"function","function":{"name":"weather","parameters":` +
		`{"type":"object","properties":{"city":{"type":"string"}}}}}]`)
	for format, text := range map[string]string{
		"hermes": `<think>hm</think>Let me see.<tool_call>{"name":"weather","arguments":` +
			`{"city":"Rome"}}</tool_call>`,
		"qwen3_xml": `<think>hm</think>Let me see.<tool_call><function=weather><parameter=city>` +
			`Rome</parameter></function></tool_call>`,
	} {
		for _, size := range []int{1, 3, 7, 1000} {
			c := feed(t, vrust.ChatParserOptions{
				ToolFormat: format, ReasoningFormat: "think", Tools: tools,
			}, text, size)
			g := &generation{}
			answer := g.chatAnswer(0, c)
			if c.reasoning.String() != "hm" || c.content.String() != "Let me see." ||
				len(c.calls) != 1 || answer.FinishReason != "tool_calls" {
				t.Fatalf("%s by %d: %q %q %+v", format, size, c.reasoning.String(),
					c.content.String(), c.calls)
			}
			call := c.calls[0]
			var arguments map[string]string
			err := json.Unmarshal([]byte(call.Function.Arguments), &arguments)
			if err != nil || arguments["city"] != "Rome" || call.Function.Name != "weather" ||
				call.ID == "" || call.Type != "function" {
				t.Errorf("%s by %d: %+v", format, size, call)
			}
		}
	}
}

func TestToolFields(t *testing.T) {
	web, _ := start(t, vrust.Options{}, func(c *Config) {
		c.ToolCallParser, c.ReasoningParser = "hermes", "think"
	})
	body := `{"messages":[{"role":"user","content":"Hello"}],"tools":[{"type":"function",
		"function":{"name":"f"}}],` + greedy
	status, whole := call(t, web, "/v1/chat/completions", body+`}`)
	if status != 200 {
		t.Fatalf("%d %v", status, whole)
	}
	message := choice(whole, 0)["message"].(object)
	text := ""
	for _, chunk := range stream(t, web, "/v1/chat/completions", body+`,"stream":true}`) {
		if content, ok := choice(chunk, 0)["delta"].(object)["content"].(string); ok {
			text += content
		}
	}
	if text != message["content"] || text == "" {
		t.Errorf("streamed %q, whole %q", text, message["content"])
	}
	status, _ = call(t, web, "/v1/chat/completions", body+`,"tool_choice":"none"}`)
	if status != 200 {
		t.Errorf("tool_choice none: %d", status)
	}
}

func TestDefaultTemplateKwargs(t *testing.T) {
	s := &Server{config: Config{ChatTemplateKwargs: []byte(`{"a":1,"b":2}`)}}
	g := &generation{server: s, fields: fields{"chat_template_kwargs": json.RawMessage(`{"b":3}`)}}
	if err := g.templateKwargs(); err != nil {
		t.Fatal(err)
	}
	if got := string(g.fields["chat_template_kwargs"]); got != `{"a":1,"b":3}` {
		t.Errorf("%s", got)
	}
}
