package vrust_test

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	vrust "github.com/vrust/vrust/bindings/go"
)

// answer is what a chat parser's deltas join to.
type answer struct{ reasoning, content, name, arguments string }

// parse pushes a text in pieces of some characters each.
func parse(t *testing.T, parser *vrust.ChatParser, text string, size int) (joined answer) {
	t.Helper()
	add := func(deltas json.RawMessage, err error) {
		t.Helper()
		var found []struct {
			Reasoning, Content string
			ToolCalls          []struct {
				Function struct{ Name, Arguments string }
			} `json:"tool_calls"`
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(deltas, &found); err != nil {
			t.Fatal(err)
		}
		for _, delta := range found {
			joined.reasoning += delta.Reasoning
			joined.content += delta.Content
			for _, call := range delta.ToolCalls {
				joined.name += call.Function.Name
				joined.arguments += call.Function.Arguments
			}
		}
	}
	characters := []rune(text)
	for piece := range slices.Chunk(characters, size) {
		add(parser.Push(string(piece)))
	}
	add(parser.Finish())
	return joined
}

func TestChatParser(t *testing.T) {
	engine := open(t, vrust.Options{})
	tokenizer, err := engine.Tokenizer()
	if err != nil {
		t.Fatal(err)
	}
	defer tokenizer.Close()
	options := vrust.ChatParserOptions{
		ToolFormat: "hermes", ReasoningFormat: "think",
		Tools: json.RawMessage(`[{"type":"function","function":{"name":"now"}}]`),
	}
	text := "<think>\nHm.\n</think>\n\nHi <tool_call>{\"name\": \"now\", \"arguments\": " +
		"{\"a\": \"été\"}}</tool_call>"
	parser := newParser(t, tokenizer, options)
	wantInfo := vrust.ChatParserInfo{ToolFormat: "hermes", ReasoningFormat: "think"}
	if info, err := parser.Info(); err != nil || info != wantInfo {
		t.Errorf("%+v, %v", info, err)
	}
	want := answer{"Hm.", "Hi", "now", `{"a": "été"}`}
	for _, size := range []int{len(text), 1, 2, 3, 7} { // As new after each end.
		if got := parse(t, parser, text, size); got != want {
			t.Errorf("in pieces of %d: %+v", size, got)
		}
	}
	if deltas, err := parser.Push("a <tool_ca"); err != nil || string(deltas) != `[{"content":"a"}]` {
		t.Errorf("%s, %v", deltas, err)
	}
	if rest, err := parser.Finish(); err != nil || string(rest) != `[{"content":" <tool_ca"}]` {
		t.Errorf("%s, %v", rest, err)
	}
	if _, err := parser.Push("a\xff"); !errors.Is(err, vrust.ErrInvalidArgument) {
		t.Errorf("bytes that are no UTF-8: %v", err)
	}

	// Without tools, or a format in the template, the text stays as it is.
	plain := newParser(t, tokenizer, vrust.ChatParserOptions{})
	if info, err := plain.Info(); err != nil || info != (vrust.ChatParserInfo{}) {
		t.Errorf("%+v, %v", info, err)
	}
	if got := parse(t, plain, "<tool_call> x", 4); got != (answer{content: "<tool_call> x"}) {
		t.Errorf("%+v", got)
	}

	for _, bad := range []vrust.ChatParserOptions{
		{ToolFormat: `smoke "signals"`}, {Tools: json.RawMessage(`[{}]`)},
		{Kwargs: json.RawMessage(`[1]`)},
	} {
		if _, err := tokenizer.NewChatParser(bad); !errors.Is(err, vrust.ErrInvalidArgument) {
			t.Errorf("%+v: %v", bad, err)
		}
	}

	// A parser that is gone, and one that outlives its engine and tokenizer.
	plain.Close()
	plain.Close()
	if _, err := plain.Push("a"); !errors.Is(err, vrust.ErrInvalidArgument) {
		t.Errorf("closed: %v", err)
	}
	engine.Close()
	tokenizer.Close()
	if got := parse(t, parser, text, 5); got != want {
		t.Errorf("after its engine: %+v", got)
	}
	if _, err := tokenizer.NewChatParser(options); !errors.Is(err, vrust.ErrInvalidArgument) {
		t.Errorf("of a closed tokenizer: %v", err)
	}
}

func newParser(t *testing.T, tokenizer *vrust.Tokenizer,
	options vrust.ChatParserOptions) *vrust.ChatParser {
	t.Helper()
	parser, err := tokenizer.NewChatParser(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(parser.Close)
	return parser
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
