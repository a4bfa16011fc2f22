package vrust_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	vrust "github.com/vrust/vrust/bindings/go"
)

const demoModel = "../../examples/demo-model"

// Each test names the entry of the list that all bindings share.

func open(t testing.TB, options vrust.Options) *vrust.Engine {
	t.Helper()
	options.Model = demoModel
	engine, err := vrust.Open(context.Background(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.Close() })
	return engine
}

// read collects a request's text and its ends, by choice.
func read(t testing.TB, engine *vrust.Engine, request vrust.Request) (string, []*vrust.Finish) {
	t.Helper()
	var text strings.Builder
	var ends []*vrust.Finish
	for delta, err := range engine.Generate(context.Background(), request) {
		if err != nil {
			t.Fatal(err)
		}
		text.WriteString(delta.Text)
		if delta.Finish != nil {
			ends = append(ends, delta.Finish)
		}
	}
	return text.String(), ends
}

// endless is a request that goes on until it is ended.
func endless() vrust.Request {
	return vrust.Request{
		Prompt: "Once", MaxTokens: vrust.Ptr(200), IgnoreEOS: true, Temperature: vrust.Ptr(0.0),
	}
}

func TestVersion(t *testing.T) {
	var info struct{ Version string }
	if err := json.Unmarshal(vrust.BuildInfo(), &info); err != nil {
		t.Fatal(err)
	}
	if info.Version != vrust.Version() || strings.Count(vrust.Version(), ".") != 2 {
		t.Errorf("version %q, build info %q", vrust.Version(), info.Version)
	}
	if vrust.ABIVersion() == 0 {
		t.Error("no ABI version")
	}
}

func TestBadParameters(t *testing.T) {
	_, err := vrust.Open(context.Background(), vrust.Options{Model: "no-such-folder"})
	if !errors.Is(err, vrust.ErrNotFound) {
		t.Errorf("a missing folder: %v", err)
	}
	for field, options := range map[string]vrust.Options{
		"backend":              {Model: demoModel, Backend: "abacus"},
		"max_num_seqs":         {Model: demoModel, MaxNumSeqs: -1},
		"block_size":           {Model: demoModel, BlockSize: 7},
		"tensor_parallel_size": {Model: demoModel, TensorParallelSize: 2},
	} {
		_, err := vrust.Open(context.Background(), options)
		var failure *vrust.Error
		if !errors.As(err, &failure) || failure.Field() != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	engine := open(t, vrust.Options{})
	for field, request := range map[string]vrust.Request{
		"temperature": {Prompt: "a", Temperature: vrust.Ptr(9.0)},
		"max_tokens":  {Prompt: "a", MaxTokens: vrust.Ptr(-1)},
		"max_tokenz":  {Prompt: "a", Extra: map[string]any{"max_tokenz": 1}},
	} {
		_, err := engine.Submit(context.Background(), request)
		var failure *vrust.Error
		if !errors.As(err, &failure) || failure.Field() != field {
			t.Errorf("%s: %v", field, err)
		}
		if !errors.Is(err, vrust.ErrInvalidArgument) || errors.Is(err, vrust.ErrQueueFull) {
			t.Errorf("%s: kind of %v", field, err)
		}
	}
	_, err = engine.Submit(context.Background(), vrust.Request{
		Prompt: "a", Messages: []vrust.Message{{Role: "user", Content: "b"}},
	})
	if !errors.Is(err, vrust.ErrInvalidArgument) {
		t.Errorf("two inputs: %v", err)
	}
}

func TestGenerate(t *testing.T) {
	engine := open(t, vrust.Options{})
	request := vrust.Request{
		Prompt: "Once upon a time", MaxTokens: vrust.Ptr(8), Temperature: vrust.Ptr(0.0),
	}
	text, ends := read(t, engine, request)
	if text == "" || len(ends) != 1 || ends[0].CompletionTokens == 0 || ends[0].PromptTokens == 0 {
		t.Fatalf("%q, %+v", text, ends)
	}
	if ends[0].Total < ends[0].FirstToken || ends[0].FirstToken == 0 {
		t.Errorf("times: %+v", ends[0])
	}
	if again, _ := read(t, engine, request); again != text {
		t.Errorf("%q, then %q", text, again)
	}
	tokenizer, err := engine.Tokenizer()
	if err != nil {
		t.Fatal(err)
	}
	defer tokenizer.Close()
	ids, err := tokenizer.Encode(request.Prompt, true)
	if err != nil || len(ids) != ends[0].PromptTokens {
		t.Fatalf("%v, %v", ids, err)
	}
	request.Prompt, request.PromptTokenIDs = "", ids
	if again, _ := read(t, engine, request); again != text {
		t.Errorf("by ids %q, by text %q", again, text)
	}
	back, err := tokenizer.Decode(ids, true)
	if err != nil || back != "Once upon a time" {
		t.Errorf("decoded %q, %v", back, err)
	}
}

func TestStream(t *testing.T) {
	engine := open(t, vrust.Options{})
	request := endless()
	request.N, request.Temperature, request.MaxTokens = vrust.Ptr(2), nil, vrust.Ptr(24)
	tokens, finished := [2]int{}, [2]int{}
	stream, err := engine.Submit(context.Background(), request)
	if err != nil {
		t.Fatal(err)
	}
	for {
		delta, err := stream.Next(context.Background())
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		tokens[delta.Choice] += len(delta.TokenIDs)
		if delta.Finish != nil {
			finished[delta.Choice]++
			if delta.Finish.Reason != "length" {
				t.Errorf("finish reason %q", delta.Finish.Reason)
			}
		}
	}
	if tokens != [2]int{24, 24} || finished != [2]int{1, 1} {
		t.Errorf("tokens %v, ends %v", tokens, finished)
	}
	if _, err := stream.Next(context.Background()); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
}

func TestChat(t *testing.T) {
	engine := open(t, vrust.Options{})
	chat := vrust.Request{
		Messages:  []vrust.Message{{Role: "user", Content: "Who lives in the forest?"}},
		MaxTokens: vrust.Ptr(12), Temperature: vrust.Ptr(0.0),
	}
	text, ends := read(t, engine, chat)
	tokenizer, err := engine.Tokenizer()
	if err != nil {
		t.Fatal(err)
	}
	messages, _ := json.Marshal(chat.Messages)
	prompt, err := tokenizer.RenderChat(messages, vrust.ChatOptions{AddGenerationPrompt: true})
	if err != nil || !strings.Contains(prompt, "Who lives") {
		t.Fatalf("%q, %v", prompt, err)
	}
	same, _ := read(t, engine, vrust.Request{
		Prompt: prompt, MaxTokens: vrust.Ptr(12), Temperature: vrust.Ptr(0.0),
		Extra: map[string]any{"add_special_tokens": false},
	})
	if text == "" || text != same || len(ends) != 1 {
		t.Errorf("chat %q, the same rendered %q", text, same)
	}
}

func TestLogprobs(t *testing.T) {
	engine := open(t, vrust.Options{})
	tokens, rows := 0, 0
	sum := 0.0
	for delta, err := range engine.Generate(context.Background(), vrust.Request{
		Prompt: "Once upon", MaxTokens: vrust.Ptr(6), Temperature: vrust.Ptr(0.0),
		Logprobs: vrust.Ptr(3), PromptLogprobs: vrust.Ptr(1), IgnoreEOS: true,
	}) {
		if err != nil {
			t.Fatal(err)
		}
		if delta.IsPrompt {
			if len(delta.Logprobs) < 2 || len(delta.Logprobs[0]) != 0 || len(delta.Logprobs[1]) == 0 {
				t.Errorf("of the prompt: %v", delta.Logprobs)
			}
			continue
		}
		for i, row := range delta.Logprobs {
			if len(row) < 3 || row[0].TokenID != delta.TokenIDs[i] || row[0].Rank != 1 {
				t.Errorf("token %d: %v", delta.TokenIDs[i], row)
			}
			sum += float64(row[0].Value)
		}
		tokens, rows = tokens+len(delta.TokenIDs), rows+len(delta.Logprobs)
		if f := delta.Finish; f != nil && (f.CumulativeLogprob-sum > 1e-4 || sum >= 0) {
			t.Errorf("sum %v, counted %v", f.CumulativeLogprob, sum)
		}
	}
	if tokens != 6 || rows != 6 {
		t.Errorf("%d tokens, %d rows", tokens, rows)
	}
}

func TestCancel(t *testing.T) {
	engine := open(t, vrust.Options{})
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	var failure error
	seen := 0
	for _, err := range engine.Generate(ctx, endless()) {
		if failure = err; err == nil {
			seen++
			cancel(cause)
		}
	}
	if failure != cause || seen == 0 {
		t.Errorf("after %d deltas: %v", seen, failure)
	}
	for range engine.Generate(context.Background(), endless()) {
		break // Leaving the loop aborts as well.
	}
	if _, err := engine.Submit(ctx, endless()); err != cause {
		t.Errorf("with an ended context: %v", err)
	}
	waitIdle(t, engine)
	stats := engine.Stats()
	if stats.FinishedAbort != 2 || stats.KVBlocksUsed != 0 {
		t.Errorf("%+v", stats)
	}
}

func waitIdle(t testing.TB, engine *vrust.Engine) {
	t.Helper()
	for range 1000 {
		stats := engine.Stats()
		if stats.LiveRequests == 0 && stats.NumRequestsRunning == 0 && stats.KVBlocksUsed == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("still busy: %+v", engine.Stats())
}

func TestDeadline(t *testing.T) {
	engine := open(t, vrust.Options{})
	request := endless()
	request.Deadline = time.Microsecond
	_, ends := read(t, engine, request)
	if len(ends) != 1 || ends[0].Reason != "deadline" {
		t.Errorf("%+v", ends)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	var failure error
	for range 100 { // The model is small: one request may be quicker than the clock.
		for _, err := range engine.Generate(ctx, endless()) {
			failure = err
		}
		if failure != nil {
			break
		}
	}
	if !errors.Is(failure, context.DeadlineExceeded) {
		t.Errorf("%v", failure)
	}
}

func TestManyAtOnce(t *testing.T) {
	engine := open(t, vrust.Options{})
	request := vrust.Request{
		Prompt: "The old man", MaxTokens: vrust.Ptr(16), Temperature: vrust.Ptr(0.0),
	}
	alone, _ := read(t, engine, request)
	before := pprof.Lookup("threadcreate").Count()
	var group sync.WaitGroup
	for range 200 {
		group.Go(func() {
			if text, _ := read(t, engine, request); text != alone {
				t.Errorf("%q, alone %q", text, alone)
			}
		})
	}
	group.Wait()
	made := pprof.Lookup("threadcreate").Count() - before
	if made > 4*runtime.GOMAXPROCS(0)+16 {
		t.Errorf("200 streams made %d threads", made)
	}
}

func TestSlowConsumer(t *testing.T) {
	engine := open(t, vrust.Options{})
	slow, err := engine.Submit(context.Background(), endless())
	if err != nil {
		t.Fatal(err)
	}
	whole, _ := read(t, engine, endless()) // Another goes on meanwhile.
	waitIdle(t, engine)
	var text strings.Builder
	deltas := 0
	for {
		delta, err := slow.Next(context.Background())
		if err == io.EOF {
			break
		}
		deltas++
		text.WriteString(delta.Text)
	}
	if text.String() != whole || deltas != 1 {
		t.Errorf("%d deltas: %q, not %q", deltas, text.String(), whole)
	}
}

func TestCloseWhileRunning(t *testing.T) {
	engine := open(t, vrust.Options{})
	var group sync.WaitGroup
	started := make(chan struct{}, 8)
	for range 8 {
		group.Go(func() {
			for {
				for delta, err := range engine.Generate(context.Background(), endless()) {
					if err != nil {
						if !errors.Is(err, vrust.ErrShuttingDown) {
							t.Errorf("%v", err)
						}
						return
					}
					if delta.Finish != nil && delta.Finish.Reason == "abort" {
						return
					}
					select {
					case started <- struct{}{}:
					default:
					}
				}
			}
		})
	}
	<-started
	engine.Close()
	group.Wait()
	engine.Close()
	_, err := engine.Submit(context.Background(), endless())
	if !errors.Is(err, vrust.ErrShuttingDown) {
		t.Errorf("after the end: %v", err)
	}
	if engine.State() != vrust.Closed {
		t.Errorf("state %d", engine.State())
	}
}

func TestDrain(t *testing.T) {
	engine := open(t, vrust.Options{})
	stream, err := engine.Submit(context.Background(), endless())
	if err != nil {
		t.Fatal(err)
	}
	if err := engine.Drain(context.Background()); err != nil {
		t.Fatal(err)
	}
	var last vrust.Delta
	for {
		delta, err := stream.Next(context.Background())
		if err == io.EOF {
			break
		}
		last = delta
	}
	if last.Finish == nil || last.Finish.CompletionTokens != 200 {
		t.Errorf("%+v", last.Finish)
	}
}

func TestLeakCheck(t *testing.T) {
	descriptors := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip("no /proc")
		}
		return len(entries)
	}
	cycle := func() {
		engine := open(t, vrust.Options{})
		read(t, engine, vrust.Request{Prompt: "Once", MaxTokens: vrust.Ptr(4)})
		for range engine.Generate(context.Background(), endless()) {
			break
		}
		engine.Close()
	}
	cycle()
	goroutines, open, rss := runtime.NumGoroutine(), descriptors(), residentKiB(t)
	for range 30 {
		cycle()
	}
	runtime.GC()
	time.Sleep(50 * time.Millisecond)
	if n := runtime.NumGoroutine(); n > goroutines {
		t.Errorf("goroutines: %d, then %d", goroutines, n)
	}
	if n := descriptors(); n > open {
		t.Errorf("descriptors: %d, then %d", open, n)
	}
	// One engine takes some 20 MiB: thirty leaked ones would be far above this.
	if grown := residentKiB(t) - rss; grown > 200<<10 {
		t.Errorf("grew by %d KiB", grown)
	}
}

// An engine that nobody holds any more is closed by the collector.
func TestForgottenEngine(t *testing.T) {
	before := runtime.NumGoroutine()
	func() {
		if _, err := vrust.Open(context.Background(), vrust.Options{Model: demoModel}); err != nil {
			t.Fatal(err)
		}
	}()
	for range 200 {
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
		if runtime.NumGoroutine() <= before {
			return
		}
	}
	t.Errorf("goroutines: %d, then %d", before, runtime.NumGoroutine())
}

func residentKiB(t testing.TB) int {
	t.Helper()
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip("no /proc")
	}
	var pages, resident int
	for i, field := range strings.Fields(string(data))[:2] {
		for _, digit := range field {
			if i == 0 {
				pages = 10*pages + int(digit-'0')
			} else {
				resident = 10*resident + int(digit-'0')
			}
		}
	}
	return resident * os.Getpagesize() / 1024
}

func BenchmarkToken(b *testing.B) {
	engine := open(b, vrust.Options{})
	b.ReportAllocs()
	for b.Loop() {
		read(b, engine, endless())
	}
}
