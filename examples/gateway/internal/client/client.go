// Package client talks to OpenAI-compatible servers, for the command's own tools.
package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// maxEvent is the longest event that is read.
const maxEvent = 16 << 20

// Client talks to one server. It may be used from any goroutine.
type Client struct {
	// BaseURL is the API's root, such as http://localhost:8000/v1.
	BaseURL string
	// APIKey is sent as a bearer token unless it is "".
	APIKey string
	// HTTP sends the requests; http.DefaultClient when nil.
	HTTP *http.Client
}

// Error is an answer that is no success.
type Error struct {
	// Status is the HTTP status, Message what the server says.
	Status  int
	Message string
}

// Error is the message with the status.
func (e *Error) Error() string { return fmt.Sprintf("the server says %d: %s", e.Status, e.Message) }

func (c *Client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var reader io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		reader = bytes.NewReader(encoded)
	}
	url := strings.TrimRight(c.BaseURL, "/") + path
	request, err := http.NewRequestWithContext(ctx, method, url, reader)
	if err != nil {
		return nil, err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if c.APIKey != "" {
		request.Header.Set("Authorization", "Bearer "+c.APIKey)
	}
	sender := c.HTTP
	if sender == nil {
		sender = http.DefaultClient
	}
	response, err := sender.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode == http.StatusOK {
		return response, nil
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
	return nil, &Error{Status: response.StatusCode, Message: message(text)}
}

// message finds the text of an error in the shapes that servers use.
func message(body []byte) string {
	var shape struct{ Error json.RawMessage }
	var inner struct{ Message string }
	if json.Unmarshal(body, &shape) == nil && len(shape.Error) > 0 {
		if json.Unmarshal(shape.Error, &inner) == nil && inner.Message != "" {
			return inner.Message
		}
		return string(shape.Error)
	}
	return strings.TrimSpace(string(body))
}

// Do sends a body, or none when it is nil, and reads the answer.
func (c *Client) Do(ctx context.Context, method, path string, body, answer any) error {
	response, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	return json.NewDecoder(response.Body).Decode(answer)
}

// Model is the name of the server's first model.
func (c *Client) Model(ctx context.Context) (string, error) {
	var list struct{ Data []struct{ ID string } }
	if err := c.Do(ctx, http.MethodGet, "/models", nil, &list); err != nil {
		return "", err
	}
	if len(list.Data) == 0 {
		return "", fmt.Errorf("the server has no model")
	}
	return list.Data[0].ID, nil
}

// Stream sends a body and calls with the data of each event up to [DONE], without which the
// stream counts as broken.
func (c *Client) Stream(ctx context.Context, path string, body any, call func([]byte) error) error {
	response, err := c.send(ctx, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(make([]byte, 4096), maxEvent)
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data:"))
		if !ok {
			continue // Comments keep the connection alive.
		}
		data = bytes.TrimSpace(data)
		if bytes.Equal(data, []byte("[DONE]")) {
			return nil
		}
		if bytes.HasPrefix(data, []byte(`{"error"`)) {
			return &Error{Status: response.StatusCode, Message: message(data)}
		}
		if err := call(data); err != nil {
			return err
		}
	}
	if lines.Err() != nil {
		return lines.Err()
	}
	return io.ErrUnexpectedEOF
}

// Chunk is an event of a streamed completion or chat.
type Chunk struct {
	// Choices are those that the chunk is about; none in the last, which has the usage.
	Choices []struct {
		// Text of a completion.
		Text string
		// Delta of a chat.
		Delta struct{ Content, Reasoning string }
		// FinishReason ends a choice.
		FinishReason *string `json:"finish_reason"`
	}
	// Usage counts tokens.
	Usage *struct {
		PromptTokens     int `json:"prompt_tokens"`
		CompletionTokens int `json:"completion_tokens"`
	}
}

// Chunks is Stream for completions and chats.
func (c *Client) Chunks(ctx context.Context, path string, body any, call func(*Chunk) error) error {
	return c.Stream(ctx, path, body, func(data []byte) error {
		var chunk Chunk
		if err := json.Unmarshal(data, &chunk); err != nil {
			return fmt.Errorf("an event is no JSON: %w", err)
		}
		return call(&chunk)
	})
}
