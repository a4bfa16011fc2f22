package vrust_test

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	vrust "github.com/vrust/vrust/bindings/go"
)

func TestChatParser(t *testing.T) {
	tokenizer, err := vrust.OpenTokenizer(demoModel)
	if err != nil {
		t.Fatal(err)
	}
	defer tokenizer.Close()
	_, err = tokenizer.NewChatParser(vrust.ChatParserOptions{ToolFormat: "smoke signals"})
	if !errors.Is(err, vrust.ErrInvalidArgument) {
		t.Errorf("%v", err)
	}
	parser, err := tokenizer.NewChatParser(vrust.ChatParserOptions{
		ToolFormat: "hermes", ReasoningFormat: "think",
		Tools: json.RawMessage(`[{"type":"function","function":{"name":"f"}}]`),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer parser.Close()
	info, err := parser.Info()
	if err != nil || info.ToolFormat != "hermes" || info.ReasoningFormat != "think" {
		t.Errorf("%+v, %v", info, err)
	}
	var all string
	for _, piece := range strings.SplitAfter(`<think>hm</think>yes<tool_call>{"name":"f",`+
		`"arguments":{"a":1}}</tool_call>`, "e") {
		deltas, err := parser.Push(piece)
		if err != nil {
			t.Fatal(err)
		}
		all += string(deltas)
	}
	rest, err := parser.Finish()
	if err != nil {
		t.Fatal(err)
	}
	all += string(rest)
	for _, word := range []string{`"reasoning":"hm"`, `"name":"f"`, `"tool_calls"`} {
		if !strings.Contains(all, word) {
			t.Errorf("no %s in %s", word, all)
		}
	}
}

// The library leaves the process's signal handlers, Go's, as they are.
func TestSignalHandlers(t *testing.T) {
	caught := func() string {
		text, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Skip("no /proc")
		}
		_, rest, _ := strings.Cut(string(text), "SigCgt:")
		line, _, _ := strings.Cut(rest, "\n")
		return line
	}
	before := caught()
	engine := open(t, vrust.Options{})
	read(t, engine, vrust.Request{Prompt: "Once", MaxTokens: vrust.Ptr(4)})
	if after := caught(); after != before || before == "" {
		t.Errorf("caught signals: %s, then %s", before, after)
	}
}
