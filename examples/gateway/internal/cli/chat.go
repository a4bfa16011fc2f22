package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vrust/vrust/examples/gateway/internal/client"
)

// talk is what `chat` and `complete` share: a server, and prompts that are typed or given.
type talk struct {
	url, model, key, quick, system string
	maxTokens                      int
	temperature                    float64
	command                        *cobra.Command
	client                         *client.Client
}

func (t *talk) add() {
	set := t.command.Flags()
	set.StringVar(&t.url, "url", "http://localhost:8000/v1", "the API's root")
	set.StringVar(&t.model, "model-name", "", "the model; the server's first by default")
	set.StringVar(&t.key, "api-key", os.Getenv("OPENAI_API_KEY"), "key; also by OPENAI_API_KEY")
	set.StringVarP(&t.quick, "quick", "q", "", "send one prompt, print the answer and end")
	set.IntVar(&t.maxTokens, "max-tokens", 0, "most tokens of an answer; the server's default")
	set.Float64Var(&t.temperature, "temperature", -1, "the server's default")
}

func chatCommand() *cobra.Command {
	t := &talk{}
	t.command = &cobra.Command{
		Use: "chat", Short: "Chat with a running server", Args: noArguments,
		RunE: func(*cobra.Command, []string) error { return t.run(t.chat()) },
	}
	t.add()
	t.command.Flags().StringVar(&t.system, "system-prompt", "", "what the model is told first")
	return t.command
}

func completeCommand() *cobra.Command {
	t := &talk{}
	t.command = &cobra.Command{
		Use: "complete", Short: "Have a running server continue text", Args: noArguments,
		RunE: func(*cobra.Command, []string) error { return t.run(t.complete) },
	}
	t.add()
	return t.command
}

func noArguments(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("no arguments are taken, got %s", strings.Join(args, " "))
	}
	return nil
}

// run answers one prompt, or one after the other until the input ends.
func (t *talk) run(answer func(ctx context.Context, prompt string) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	t.client = &client.Client{BaseURL: t.url, APIKey: t.key}
	if t.model == "" {
		model, err := t.client.Model(ctx)
		if err != nil {
			return err
		}
		t.model = model
	}
	if t.quick != "" {
		return answer(ctx, t.quick)
	}
	fmt.Fprintf(t.command.ErrOrStderr(), "Using model: %s. Ctrl-D ends.\n", t.model)
	lines := bufio.NewScanner(t.command.InOrStdin())
	lines.Buffer(make([]byte, 4096), 1<<20)
	for {
		fmt.Fprint(t.command.ErrOrStderr(), "> ")
		if !lines.Scan() {
			return lines.Err()
		}
		if lines.Text() == "" {
			continue
		}
		err := answer(ctx, lines.Text())
		var refused *client.Error
		if errors.As(err, &refused) { // The next prompt may do better.
			fmt.Fprintln(t.command.ErrOrStderr(), err)
		} else if err != nil {
			return err
		}
	}
}

func (t *talk) body() map[string]any {
	body := map[string]any{"model": t.model, "stream": true}
	if t.maxTokens > 0 {
		body["max_tokens"] = t.maxTokens
	}
	if t.temperature >= 0 {
		body["temperature"] = t.temperature
	}
	return body
}

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// chat gives a function that remembers the conversation.
func (t *talk) chat() func(context.Context, string) error {
	var messages []message
	return func(ctx context.Context, prompt string) error {
		if len(messages) == 0 && t.system != "" {
			messages = append(messages, message{"system", t.system})
		}
		asked := append(messages, message{"user", prompt})
		body := t.body()
		body["messages"] = asked
		text, err := t.show(ctx, "/chat/completions", body)
		if err == nil {
			messages = append(asked, message{"assistant", text})
		}
		return err
	}
}

func (t *talk) complete(ctx context.Context, prompt string) error {
	body := t.body()
	body["prompt"] = prompt
	_, err := t.show(ctx, "/completions", body)
	return err
}

// show prints an answer as it comes.
func (t *talk) show(ctx context.Context, path string, body any) (string, error) {
	out := t.command.OutOrStdout()
	var text strings.Builder
	err := t.client.Chunks(ctx, path, body, func(chunk *client.Chunk) error {
		for _, choice := range chunk.Choices {
			piece := choice.Text + choice.Delta.Content
			text.WriteString(piece)
			if _, err := io.WriteString(out, piece); err != nil {
				return err
			}
		}
		return nil
	})
	fmt.Fprintln(out)
	return text.String(), err
}
