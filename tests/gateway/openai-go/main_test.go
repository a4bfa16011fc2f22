// Package openaigo tests a running server, named by VRUST_URL, with the official Go client.
package openaigo

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

func client(t *testing.T) *openai.Client {
	url := os.Getenv("VRUST_URL")
	if url == "" {
		t.Fatal("VRUST_URL names no server")
	}
	made := openai.NewClient(option.WithBaseURL(url+"/v1"), option.WithAPIKey("dummy"),
		option.WithMaxRetries(0))
	return &made
}

func chat(text string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model:    "demo",
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(text)},
	}
}

func TestChat(t *testing.T) {
	answer, err := client(t).Chat.Completions.New(context.Background(), chat("Hello"))
	if err != nil {
		t.Fatal(err)
	}
	if answer.Choices[0].Message.Content == "" || answer.Usage.CompletionTokens == 0 {
		t.Errorf("%s", answer.RawJSON())
	}
}

func TestCompletion(t *testing.T) {
	answer, err := client(t).Completions.New(context.Background(), openai.CompletionNewParams{
		Model: "demo", MaxTokens: openai.Int(5), Temperature: openai.Float(0),
		Prompt: openai.CompletionNewParamsPromptUnion{OfArrayOfStrings: []string{"Once", "The"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(answer.Choices) != 2 || answer.Usage.CompletionTokens != 10 {
		t.Errorf("%s", answer.RawJSON())
	}
}

func TestStream(t *testing.T) {
	params := chat("Hello")
	params.StreamOptions.IncludeUsage = openai.Bool(true)
	params.Temperature = openai.Float(0)
	whole, err := client(t).Chat.Completions.New(context.Background(), openai.ChatCompletionNewParams{
		Model: "demo", Messages: params.Messages, Temperature: params.Temperature,
	})
	if err != nil {
		t.Fatal(err)
	}
	stream := client(t).Chat.Completions.NewStreaming(context.Background(), params)
	sum := openai.ChatCompletionAccumulator{}
	for stream.Next() {
		if !sum.AddChunk(stream.Current()) {
			t.Fatalf("a chunk that does not fit: %s", stream.Current().RawJSON())
		}
	}
	if stream.Err() != nil {
		t.Fatal(stream.Err())
	}
	if sum.Choices[0].Message.Content != whole.Choices[0].Message.Content {
		t.Errorf("%q, not %q", sum.Choices[0].Message.Content, whole.Choices[0].Message.Content)
	}
	if sum.Usage.TotalTokens != whole.Usage.TotalTokens || sum.Choices[0].FinishReason == "" {
		t.Errorf("%+v", sum.Usage)
	}
}

func TestErrors(t *testing.T) {
	params := chat("Hello")
	params.Model = "nobody"
	_, err := client(t).Chat.Completions.New(context.Background(), params)
	var refused *openai.Error
	if !errors.As(err, &refused) || refused.StatusCode != 404 || refused.Param != "model" {
		t.Errorf("%v", err)
	}
	params = chat("Hello")
	params.Temperature = openai.Float(9)
	_, err = client(t).Chat.Completions.New(context.Background(), params)
	if !errors.As(err, &refused) || refused.StatusCode != 400 ||
		!strings.Contains(refused.Message, "temperature") {
		t.Errorf("%v", err)
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	params := openai.CompletionNewParams{
		Model: "demo", MaxTokens: openai.Int(2000), N: openai.Int(16),
		Prompt: openai.CompletionNewParamsPromptUnion{OfString: openai.String("Once")},
	}
	stream := client(t).Completions.NewStreaming(ctx, params, option.WithJSONSet("ignore_eos", true))
	if !stream.Next() {
		t.Fatal(stream.Err())
	}
	cancel()
	for stream.Next() {
	}
	if !errors.Is(stream.Err(), context.Canceled) {
		t.Errorf("%v", stream.Err())
	}
}
