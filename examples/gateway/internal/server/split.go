package server

import "strings"

// splitters gives each choice what tells its reasoning and tool calls from content, where the
// request and the model call for it. It says whether special tokens must stay in the text.
func (g *generation) splitters(choices []chatChoice) (bool, error) {
	choice := "auto"
	if raw, ok := g.fields["tool_choice"]; ok && string(raw) != "null" {
		if raw[0] != '"' {
			return false, badRequest("tool_choice",
				"tool_choice: a named function needs structured output, which is not supported")
		}
		choice = strings.Trim(string(raw), `"`)
	}
	switch choice {
	case "auto", "none":
	case "required":
		return false, badRequest("tool_choice",
			"tool_choice: \"required\" needs structured output, which is not supported")
	default:
		return false, badRequest("tool_choice",
			"tool_choice: must be \"none\" or \"auto\", got \"%s\"", clip([]byte(choice)))
	}
	return false, nil
}
