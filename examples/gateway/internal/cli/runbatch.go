package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vrust/vrust/examples/gateway/internal/server"
)

// maxBatchLine is the longest line of a batch file.
const maxBatchLine = 64 << 20

// batchURLs are the routes that a batch may use.
var batchURLs = []string{"/v1/chat/completions", "/v1/completions", "/v1/responses"}

// batchLine is a line of an OpenAI batch file.
type batchLine struct {
	CustomID string          `json:"custom_id"`
	Method   string          `json:"method"`
	URL      string          `json:"url"`
	Body     json.RawMessage `json:"body"`
}

// batchResult is a line of the answers.
type batchResult struct {
	ID       string         `json:"id"`
	CustomID string         `json:"custom_id"`
	Response *batchResponse `json:"response"`
	Error    any            `json:"error"`
}

type batchResponse struct {
	StatusCode int             `json:"status_code"`
	RequestID  string          `json:"request_id"`
	Body       json.RawMessage `json:"body"`
}

// batchFlags are the flags of `vrust run-batch`.
type batchFlags struct {
	serveFlags
	input, output string
	concurrency   int
}

func runBatchCommand() *cobra.Command {
	f := &batchFlags{}
	command := &cobra.Command{
		Use:   "run-batch -i INPUT -o OUTPUT --model MODEL",
		Short: "Answer the requests of an OpenAI batch file",
		Args:  noArguments,
		RunE:  f.run,
	}
	f.serveFlags.init(command.Flags())
	set := command.Flags()
	set.StringVarP(&f.input, "input-file", "i", "", "JSON lines of requests; - is the input")
	set.StringVarP(&f.output, "output-file", "o", "", "where the answers go; - is the output")
	set.IntVar(&f.concurrency, "concurrency", 256, "most requests at once")
	return command
}

func (f *batchFlags) run(command *cobra.Command, _ []string) error {
	if f.input == "" || f.output == "" {
		return usagef("-i and -o are required")
	}
	if f.concurrency < 1 {
		return usagef("--concurrency must be at least 1, got %d", f.concurrency)
	}
	if err := f.takeModel(nil); err != nil {
		return err
	}
	logger, err := newLogger(command.ErrOrStderr(), f.logLevel)
	if err != nil {
		return err
	}
	if _, err := checkFixedFlags(command.Flags()); err != nil {
		return err
	}
	config, err := f.config(logger)
	if err != nil {
		return err
	}
	in := command.InOrStdin()
	if f.input != "-" {
		file, err := os.Open(f.input)
		if err != nil {
			return usageError{err}
		}
		defer file.Close()
		in = file
	}
	out := command.OutOrStdout()
	if f.output != "-" {
		file, err := os.Create(f.output)
		if err != nil {
			return usageError{err}
		}
		defer file.Close()
		out = file
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	engine, err := f.open(ctx, command.ErrOrStderr())
	if err != nil {
		return err
	}
	defer engine.Close()
	if err := f.complete(&config, engine); err != nil {
		return err
	}
	config.APIKeys = nil // Nobody else is asking.
	handler, err := server.New(config)
	if err != nil {
		return usageError{err}
	}
	done, failed, err := runBatch(ctx, handler, in, out, f.concurrency)
	fmt.Fprintf(command.ErrOrStderr(), "%d requests answered, %d of them with errors\n", done, failed)
	return err
}

// runBatch answers line by line, in the input's order, with so many requests at once. What a line
// gets wrong is its own answer.
func runBatch(
	ctx context.Context, handler http.Handler, in io.Reader, out io.Writer, concurrency int,
) (done, failed int, err error) {
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 64<<10), maxBatchLine)
	results := make(chan chan *batchResult, concurrency)
	go func() {
		defer close(results)
		seen := map[string]bool{}
		for number := 1; ctx.Err() == nil && lines.Scan(); number++ {
			if len(bytes.TrimSpace(lines.Bytes())) == 0 {
				continue
			}
			line, problem := parseBatchLine(lines.Bytes(), number, seen)
			result := make(chan *batchResult, 1)
			results <- result // Waits while so many are being answered.
			if problem != "" {
				result <- &batchResult{CustomID: line.CustomID, Error: map[string]string{
					"code": "invalid_request", "message": problem,
				}}
				continue
			}
			go func() { result <- answerBatchLine(ctx, handler, line, number) }()
		}
	}()
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	for result := range results {
		answer := <-result
		if ctx.Err() != nil {
			continue // Cut off: not an answer.
		}
		done++
		if answer.Error != nil || answer.Response.StatusCode != http.StatusOK {
			failed++
		}
		if answer.ID == "" {
			answer.ID = fmt.Sprintf("vrust-%d", done)
		}
		if err == nil {
			err = encoder.Encode(answer)
		}
	}
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err == nil && lines.Err() != nil:
		err = fmt.Errorf("the batch file: %w (lines have at most %d bytes)", lines.Err(), maxBatchLine)
	}
	return done, failed, err
}

// parseBatchLine reads a line and says what is wrong with it, or "".
func parseBatchLine(
	text []byte, number int, seen map[string]bool,
) (line batchLine, problem string) {
	wrong := func(format string, args ...any) (batchLine, string) {
		return line, fmt.Sprintf("line %d: ", number) + fmt.Sprintf(format, args...)
	}
	if err := json.Unmarshal(text, &line); err != nil {
		return wrong("not a JSON object of a request: %v", err)
	}
	line.Body = bytes.Clone(line.Body)
	switch {
	case line.CustomID == "":
		return wrong("custom_id is required")
	case seen[line.CustomID]:
		return wrong("custom_id %q was there before", line.CustomID)
	case line.Method != http.MethodPost:
		return wrong("method must be POST, got %q", line.Method)
	case !slices.Contains(batchURLs, line.URL):
		return wrong("url must be one of %s, got %q", strings.Join(batchURLs, ", "), line.URL)
	case len(line.Body) == 0:
		return wrong("body is required")
	}
	seen[line.CustomID] = true
	var streamed struct{ Stream bool }
	if json.Unmarshal(line.Body, &streamed) == nil && streamed.Stream {
		return wrong("stream: answers of a batch are whole")
	}
	return line, ""
}

func answerBatchLine(
	ctx context.Context, handler http.Handler, line batchLine, number int,
) *batchResult {
	request := httptest.NewRequestWithContext(ctx, line.Method, line.URL, bytes.NewReader(line.Body))
	request.Header.Set("Content-Type", "application/json")
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, request)
	var id struct{ ID string }
	_ = json.Unmarshal(recorder.Body.Bytes(), &id)
	return &batchResult{
		ID: fmt.Sprintf("vrust-%d", number), CustomID: line.CustomID,
		Response: &batchResponse{
			StatusCode: recorder.Code, RequestID: id.ID, Body: recorder.Body.Bytes(),
		},
	}
}
