// Command load puts `vrust serve` under load and kills its clients: many streams for some time
// with the server's memory and threads, clients that leave in the middle, aborted requests, and
// SIGTERM with requests in flight. It ends with 1 if anything is lost.
package main

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

var (
	command = flag.String("vrust", "build/bin/vrust", "the command")
	model   = flag.String("model", "examples/demo-model", "the model's folder")
	streams = flag.Int("streams", 512, "streams at once")
	length  = flag.Duration("duration", time.Minute, "how long the load lasts")
	aborts  = flag.Int("aborts", 10000, "requests to abort")
	tokens  = flag.Int("max-tokens", 128, "tokens of a stream")
)

// server is a running `vrust serve`.
type server struct {
	process *exec.Cmd
	url     string
	client  *http.Client
	ended   chan error
}

func startServer() (*server, error) {
	s := &server{ended: make(chan error, 1)}
	s.process = exec.Command(*command, "serve", *model, "--host", "127.0.0.1", "--port", "0",
		"--max-num-queued-reqs", "20000")
	log, err := s.process.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := s.process.Start(); err != nil {
		return nil, err
	}
	ready := regexp.MustCompile(`msg=ready .*at=(\S+)`)
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		if found := ready.FindStringSubmatch(lines.Text()); found != nil {
			s.url = found[1]
			break
		}
	}
	if s.url == "" {
		return nil, fmt.Errorf("the server did not start: %v", s.process.Wait())
	}
	go func() {
		_, _ = io.Copy(io.Discard, log)
		s.ended <- s.process.Wait()
	}()
	s.client = &http.Client{Transport: &http.Transport{
		MaxIdleConns: *streams, MaxIdleConnsPerHost: *streams,
		// Well before the server ends an idle connection: what it closes under a request is lost.
		IdleConnTimeout: 2 * time.Second,
	}}
	return s, nil
}

// generate streams one completion and gives the number of chunks. Leaving after `leave` chunks is
// no error; -1 stays to the end.
func (s *server) generate(ctx context.Context, seed, maxTokens, leave int) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body := fmt.Sprintf(`{"prompt":"Once upon a time %d","max_tokens":%d,"ignore_eos":true,
		"seed":%d,"stream":true}`, seed, maxTokens, seed)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/v1/completions",
		strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := s.client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(response.Body)
		return 0, fmt.Errorf("status %d: %s", response.StatusCode, text)
	}
	chunks, ended := 0, false
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(make([]byte, 4096), 1<<20)
	for lines.Scan() {
		line := lines.Bytes()
		switch {
		case bytes.Equal(line, []byte("data: [DONE]")):
			return chunks, expect(ended, "the stream ended without a finish_reason")
		case bytes.HasPrefix(line, []byte("data: {")):
			chunks++
			ended = ended || bytes.Contains(line, []byte(`"finish_reason":"length"`))
			if bytes.HasPrefix(line, []byte(`data: {"error"`)) {
				return chunks, fmt.Errorf("in the stream: %s", line)
			}
		}
		if leave >= 0 && chunks >= leave {
			return chunks, nil
		}
	}
	return chunks, fmt.Errorf("the stream broke after %d chunks: %v", chunks, lines.Err())
}

func expect(holds bool, otherwise string) error {
	if holds {
		return nil
	}
	return fmt.Errorf("%s", otherwise)
}

// status reads a figure of /proc/PID/status.
func (s *server) status(name string) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.process.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			number, _ := strconv.Atoi(strings.Fields(value)[0])
			return number
		}
	}
	return 0
}

// metric sums a metric's samples.
func (s *server) metric(name string) (float64, error) {
	response, err := s.client.Get(s.url + "/metrics")
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	sum := 0.0
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		if line := lines.Text(); strings.HasPrefix(line, name+"{") {
			value, _ := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
			sum += value
		}
	}
	return sum, nil
}

// expectIdle waits until nothing runs, nothing waits and no KV block is used.
func (s *server) expectIdle() error {
	var last string
	for range 500 {
		last = ""
		for _, name := range []string{
			"vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
		} {
			value, err := s.metric(name)
			if err != nil {
				return err
			}
			if value != 0 {
				last = fmt.Sprintf("%s is %v", name, value)
			}
		}
		if last == "" {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("after ten seconds %s", last)
}

// load keeps the streams busy and prints the server's memory and threads.
func (s *server) load() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var requests, chunks, failures atomic.Int64
	var firstFailure sync.Once
	var failure error
	var group sync.WaitGroup
	began := time.Now()
	for i := range *streams {
		group.Go(func() {
			for round := 0; time.Since(began) < *length; round++ {
				n, err := s.generate(ctx, i*1000+round, *tokens, -1)
				requests.Add(1)
				chunks.Add(int64(n))
				if err != nil {
					failures.Add(1)
					firstFailure.Do(func() { failure = err })
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { group.Wait(); close(done) }()
	step := max(*length/12, 200*time.Millisecond)
	var memory, threads []int
	for ticker, running := time.NewTicker(step), true; running; {
		select {
		case <-ticker.C:
			memory = append(memory, s.status("VmRSS")/1024)
			threads = append(threads, s.status("Threads"))
		case <-done:
			running = false
		}
	}
	took := time.Since(began).Seconds()
	made, err := s.metric("vllm:generation_tokens_total")
	if err != nil {
		return err
	}
	fmt.Printf("load: %d streams for %.1f s: %d requests, %d errors, %.0f tokens/s, %.2f tokens a "+
		"chunk\n", *streams, took, requests.Load(), failures.Load(), made/took,
		made/float64(chunks.Load()))
	fmt.Printf("  RSS every %v, MiB: %v\n  OS threads: %v\n", step, memory, threads)
	if failures.Load() > 0 {
		return failure
	}
	if expected := float64(requests.Load()) * float64(*tokens); made != expected {
		return fmt.Errorf("%v tokens made, %v asked for", made, expected)
	}
	if most := slices.Max(threads); most > 64 {
		return fmt.Errorf("%d threads", most)
	}
	return s.expectIdle()
}

// leave has clients go away in the middle of their streams.
func (s *server) leave() error {
	var group sync.WaitGroup
	var failure atomic.Pointer[error]
	limit := make(chan struct{}, *streams)
	for i := range *aborts {
		limit <- struct{}{}
		group.Go(func() {
			defer func() { <-limit }()
			// Some go before their first chunk, most a few chunks later.
			if _, err := s.generate(context.Background(), i, 1000, rand.IntN(4)); err != nil {
				failure.CompareAndSwap(nil, &err)
			}
		})
	}
	group.Wait()
	if err := failure.Load(); err != nil {
		return *err
	}
	if err := s.expectIdle(); err != nil {
		return err
	}
	aborted, err := s.metric("vllm:request_success_total")
	fmt.Printf("kill: %d clients left in mid-stream; nothing runs, waits or holds KV blocks; "+
		"%.0f choices ended in all; RSS %d MiB, %d threads\n", *aborts, aborted,
		s.status("VmRSS")/1024, s.status("Threads"))
	return err
}

// terminate sends SIGTERM while streams run: they must all end well, and then the process.
func (s *server) terminate() error {
	var group sync.WaitGroup
	var failure atomic.Pointer[error]
	var begun atomic.Int64
	for i := range 64 {
		group.Go(func() {
			begun.Add(1)
			if _, err := s.generate(context.Background(), i, 400, -1); err != nil {
				failure.CompareAndSwap(nil, &err)
			}
		})
	}
	for {
		running, err := s.metric("vllm:num_requests_running")
		if err != nil {
			return err
		}
		if running == 64 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err := s.process.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	group.Wait()
	if err := failure.Load(); err != nil {
		return *err
	}
	select {
	case err := <-s.ended:
		fmt.Println("kill: SIGTERM with 64 streams in flight: all finished, exit status 0")
		return err
	case <-time.After(20 * time.Second):
		return fmt.Errorf("the server did not end")
	}
}

func run() error {
	s, err := startServer()
	if err != nil {
		return err
	}
	defer func() { _ = s.process.Process.Kill() }()
	for _, part := range []func() error{s.load, s.leave, s.terminate} {
		if err := part(); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}
