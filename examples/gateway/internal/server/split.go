package server

import (
	"encoding/json"
	"maps"
	"strings"

	vrust "github.com/vrust/vrust/bindings/go"
)

// formats are what the served model's output may hold beside content.
func (s *Server) formats() (vrust.ChatParserInfo, error) {
	return s.probe(s.config.Tokenizer)
}

// probe asks what answers to chats by a tokenizer's template may hold.
func (s *Server) probe(tokenizer *vrust.Tokenizer) (info vrust.ChatParserInfo, err error) {
	parser, err := tokenizer.NewChatParser(vrust.ChatParserOptions{
		ToolFormat: s.config.ToolCallParser, ReasoningFormat: s.config.ReasoningParser,
		Tools: json.RawMessage(`[{"type":"function","function":{"name":"any"}}]`),
	})
	if err != nil {
		return info, err
	}
	defer parser.Close()
	return parser.Info()
}

// toolChoice says whether the model's tool calls count, and refuses what needs structured output.
func (g *generation) toolChoice() (bool, error) {
	if !g.fields.has("tool_choice") {
		return true, nil
	}
	raw := g.fields["tool_choice"]
	if raw[0] != '"' {
		return false, badRequest("tool_choice",
			"tool_choice: a named function needs structured output, which is not supported")
	}
	switch choice := strings.Trim(string(raw), `"`); choice {
	case "auto":
		return true, nil
	case "none":
		return false, nil
	case "required":
		return false, badRequest("tool_choice",
			"tool_choice: \"required\" needs structured output, which is not supported")
	default:
		return false, badRequest("tool_choice",
			"tool_choice: must be \"none\" or \"auto\", got \"%s\"", clip([]byte(choice)))
	}
}

// splitters gives each choice what tells its reasoning and tool calls from content, where the
// request and the model call for it. It says whether special tokens must stay in the text.
func (g *generation) splitters(choices []chatChoice) (bool, error) {
	wanted, err := g.toolChoice()
	if err != nil {
		return false, err
	}
	if err := g.templateKwargs(); err != nil {
		return false, err
	}
	showReasoning := true
	if err := g.fields.get("include_reasoning", &showReasoning); err != nil {
		return false, err
	}
	var tools []json.RawMessage
	if err := g.fields.get("tools", &tools); err != nil {
		return false, err
	}
	known := g.server.known
	if g.tokenizer != g.server.config.Tokenizer {
		if known, err = g.server.probe(g.tokenizer); err != nil {
			return false, err
		}
	}
	calls := wanted && len(tools) > 0 && known.ToolFormat != ""
	if !calls && known.ReasoningFormat == "" {
		return false, nil
	}
	options := vrust.ChatParserOptions{
		ToolFormat: "none", ReasoningFormat: g.server.config.ReasoningParser,
		Kwargs: g.fields["chat_template_kwargs"],
	}
	if calls {
		options.ToolFormat, options.Tools = g.server.config.ToolCallParser, g.fields["tools"]
	}
	keepSpecial := false
	for i := range choices {
		parser, err := g.tokenizer.NewChatParser(options)
		if err != nil {
			return false, err
		}
		choices[i].splitter, choices[i].hideReasoning = parser, !showReasoning
		if i == 0 {
			info, err := parser.Info()
			if err != nil {
				return false, err
			}
			keepSpecial = info.KeepSpecialTokens
		}
	}
	return keepSpecial, nil
}

// templateKwargs adds the server's defaults to the request's own.
func (g *generation) templateKwargs() error {
	if len(g.server.config.ChatTemplateKwargs) == 0 {
		return nil
	}
	var defaults, own map[string]json.RawMessage
	if err := json.Unmarshal(g.server.config.ChatTemplateKwargs, &defaults); err != nil {
		return err
	}
	if err := g.fields.get("chat_template_kwargs", &own); err != nil {
		return err
	}
	maps.Copy(defaults, own)
	g.fields = g.fields.without()
	g.fields.set("chat_template_kwargs", defaults)
	return nil
}
