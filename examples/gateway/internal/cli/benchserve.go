package cli

import (
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/vrust/vrust/examples/gateway/internal/client"
)

// serving is `vrust bench serve`: requests to a running server, and how long it takes.
type serving struct {
	host, baseURL, endpoint, model, served, key, rate  string
	backend, dataset, metrics, percentiles, resultFile string
	port, count, inputLen, outputLen, most             int
	burstiness, rangeRatio                             float64
	seed                                               uint64
	ignoreEOS, save, detailed                          bool
	command                                            *cobra.Command
}

func benchServeCommand() *cobra.Command {
	b := &serving{}
	b.command = &cobra.Command{
		Use: "serve", Short: "Measure a running server of OpenAI's API", Args: noArguments,
		RunE: func(*cobra.Command, []string) error { return b.run() },
	}
	set := b.command.Flags()
	set.StringVar(&b.backend, "backend", "openai", "openai (completions) or openai-chat")
	set.StringVar(&b.baseURL, "base-url", "", "the server; http://HOST:PORT by default")
	set.StringVar(&b.host, "host", "127.0.0.1", "the server's host")
	set.IntVar(&b.port, "port", 8000, "the server's port")
	set.StringVar(&b.endpoint, "endpoint", "", "path; by the backend")
	set.StringVar(&b.model, "model", "", "the model's name; the server's first by default")
	set.StringVar(&b.served, "served-model-name", "", "its name at the server, if another")
	set.StringVar(&b.key, "api-key", os.Getenv("OPENAI_API_KEY"), "key; also by OPENAI_API_KEY")
	set.StringVar(&b.dataset, "dataset-name", "random", "random")
	set.IntVar(&b.count, "num-prompts", 1000, "requests")
	set.IntVar(&b.inputLen, "random-input-len", 1024, "tokens of a prompt")
	set.IntVar(&b.outputLen, "random-output-len", 128, "tokens of an answer")
	set.Float64Var(&b.rangeRatio, "random-range-ratio", 0, "lengths vary by this share, 0 to 1")
	set.StringVar(&b.rate, "request-rate", "inf", "requests a second; inf sends all at once")
	set.Float64Var(&b.burstiness, "burstiness", 1, "1: Poisson; less: in bursts; more: evenly")
	set.IntVar(&b.most, "max-concurrency", 0, "most requests at once; 0: no limit")
	set.Uint64Var(&b.seed, "seed", 0, "of prompts and arrivals")
	set.BoolVar(&b.ignoreEOS, "ignore-eos", false, "answers are as long as asked for")
	set.StringVar(&b.metrics, "percentile-metrics", "ttft,tpot,itl", "of ttft, tpot, itl, e2el")
	set.StringVar(&b.percentiles, "metric-percentiles", "99", "percentiles")
	set.BoolVar(&b.save, "save-result", false, "write a JSON file")
	set.BoolVar(&b.detailed, "save-detailed", false, "with the figures of each request")
	set.StringVar(&b.resultFile, "result-filename", "", "its name")
	return b.command
}

// sample is one request's outcome. Times are seconds.
type sample struct {
	input, output int
	ttft, latency float64
	itl           []float64
	text, failure string
	success       bool
}

func (b *serving) check() (rate float64, err error) {
	rate, err = strconv.ParseFloat(b.rate, 64)
	switch {
	case err != nil || rate <= 0:
		return 0, usagef("--request-rate must be above 0 or inf, got %q", b.rate)
	case b.dataset != "random":
		return 0, usagef("--dataset-name must be random, got %q", b.dataset)
	case b.backend != "openai" && b.backend != "vllm" && b.backend != "openai-chat":
		return 0, usagef("--backend must be openai or openai-chat, got %q", b.backend)
	case b.count < 1 || b.inputLen < 1 || b.outputLen < 1:
		return 0, usagef("--num-prompts and the lengths must be at least 1")
	case b.burstiness <= 0 || b.rangeRatio < 0 || b.rangeRatio >= 1:
		return 0, usagef("--burstiness must be above 0, --random-range-ratio from 0 up to 1")
	}
	for _, p := range strings.Split(b.percentiles, ",") {
		if value, err := strconv.ParseFloat(p, 64); err != nil || value < 0 || value > 100 {
			return 0, usagef("--metric-percentiles must be numbers from 0 to 100, got %q", p)
		}
	}
	if b.baseURL == "" {
		b.baseURL = fmt.Sprintf("http://%s:%d", b.host, b.port)
	}
	if b.endpoint == "" {
		b.endpoint = "/v1/completions"
		if b.backend == "openai-chat" {
			b.endpoint = "/v1/chat/completions"
		}
	}
	return rate, nil
}

func (b *serving) run() error {
	rate, err := b.check()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	transport := &http.Transport{MaxIdleConnsPerHost: b.count, MaxIdleConns: b.count}
	c := &client.Client{
		BaseURL: strings.TrimRight(b.baseURL, "/"), APIKey: b.key,
		HTTP: &http.Client{Transport: transport},
	}
	if b.model == "" {
		v1 := *c
		v1.BaseURL += "/v1"
		if b.model, err = v1.Model(ctx); err != nil {
			return err
		}
	}
	if b.served == "" {
		b.served = b.model
	}
	random := rand.New(rand.NewPCG(b.seed, 1))
	bodies, err := b.bodies(ctx, c, random)
	if err != nil {
		return err
	}
	// One request first: a server that refuses it would refuse all.
	if first := b.ask(ctx, c, bodies[0]); !first.success {
		return fmt.Errorf("the first request failed: %s", first.failure)
	}
	samples := make([]sample, len(bodies))
	seconds := b.send(ctx, c, random, rate, bodies, samples)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return b.report(rate, seconds, samples)
}

// bodies are the requests. Prompts are random tokens of words that the server's own tokenizer
// gave, so that no tokenizer is needed here.
func (b *serving) bodies(
	ctx context.Context, c *client.Client, random *rand.Rand,
) ([]map[string]any, error) {
	const words = "the quick brown fox jumps over a lazy dog while many small boats sail past old " +
		"stone harbours under grey morning skies and children sing songs about rivers and trains"
	var found struct{ Tokens []uint32 }
	err := c.Do(ctx, http.MethodPost, "/tokenize", map[string]any{
		"model": b.served, "prompt": words, "add_special_tokens": false,
	}, &found)
	if err != nil {
		return nil, err
	}
	if len(found.Tokens) == 0 {
		return nil, fmt.Errorf("the server's tokenizer gives no tokens")
	}
	length := func(of int) int {
		spread := int(b.rangeRatio * float64(of))
		return max(1, of-spread+random.IntN(2*spread+1))
	}
	list := strings.Fields(words)
	bodies := make([]map[string]any, b.count)
	for i := range bodies {
		body := map[string]any{
			"model": b.served, "max_tokens": length(b.outputLen), "temperature": 0, "stream": true,
			"stream_options": map[string]any{"include_usage": true},
		}
		if b.ignoreEOS {
			body["ignore_eos"] = true
		}
		if b.backend == "openai-chat" {
			var text strings.Builder
			for range length(b.inputLen) {
				text.WriteString(list[random.IntN(len(list))] + " ")
			}
			body["messages"] = []message{{"user", text.String()}}
		} else {
			prompt := make([]uint32, length(b.inputLen))
			for j := range prompt {
				prompt[j] = found.Tokens[random.IntN(len(found.Tokens))]
			}
			body["prompt"] = prompt
		}
		bodies[i] = body
	}
	return bodies, nil
}

// send sends the requests at their times and gives the seconds that all took.
func (b *serving) send(
	ctx context.Context, c *client.Client, random *rand.Rand, rate float64,
	bodies []map[string]any, samples []sample,
) float64 {
	limit := make(chan struct{}, max(b.most, 1))
	var group sync.WaitGroup
	began := time.Now()
	due := 0.0
	for i, body := range bodies {
		if !math.IsInf(rate, 1) && i > 0 {
			due += gamma(random, b.burstiness) / (rate * b.burstiness)
			select {
			case <-time.After(time.Until(began.Add(time.Duration(due * float64(time.Second))))):
			case <-ctx.Done():
			}
		}
		group.Go(func() {
			if b.most > 0 {
				limit <- struct{}{}
				defer func() { <-limit }()
			}
			samples[i] = b.ask(ctx, c, body)
		})
	}
	group.Wait()
	return time.Since(began).Seconds()
}

// gamma draws from the gamma distribution of a shape and scale 1, by Marsaglia and Tsang's method
// ("A Simple Method for Generating Gamma Variables", 2000). Shape 1 is exponential.
func gamma(random *rand.Rand, shape float64) float64 {
	if shape < 1 {
		return gamma(random, shape+1) * math.Pow(random.Float64(), 1/shape)
	}
	d := shape - 1.0/3
	c := 1 / math.Sqrt(9*d)
	for {
		x := random.NormFloat64()
		v := 1 + c*x
		if v <= 0 {
			continue
		}
		v = v * v * v
		if u := random.Float64(); math.Log(u) < 0.5*x*x+d-d*v+d*math.Log(v) {
			return d * v
		}
	}
}

// ask sends one request and takes its times.
func (b *serving) ask(ctx context.Context, c *client.Client, body map[string]any) sample {
	var s sample
	var text strings.Builder
	begin := time.Now()
	last := begin
	err := c.Chunks(ctx, b.endpoint, body, func(chunk *client.Chunk) error {
		if chunk.Usage != nil {
			s.input, s.output = chunk.Usage.PromptTokens, chunk.Usage.CompletionTokens
		}
		for _, choice := range chunk.Choices {
			piece := choice.Text + choice.Delta.Content + choice.Delta.Reasoning
			if piece == "" {
				continue
			}
			now := time.Now()
			if s.ttft == 0 {
				s.ttft = now.Sub(begin).Seconds()
			} else {
				s.itl = append(s.itl, now.Sub(last).Seconds())
			}
			last = now
			text.WriteString(piece)
		}
		return nil
	})
	s.latency, s.text = last.Sub(begin).Seconds(), text.String()
	switch {
	case err != nil:
		s.failure = err.Error()
	case s.ttft == 0 || s.output == 0:
		s.failure = "no token came"
	default:
		s.success = true
	}
	return s
}

// report prints and saves the figures, under the names of vLLM's bench serve.
func (b *serving) report(rate, seconds float64, samples []sample) error {
	var completed, input, output int
	times := map[string][]float64{}
	for _, s := range samples {
		if !s.success {
			continue
		}
		completed++
		input, output = input+s.input, output+s.output
		times["ttft"] = append(times["ttft"], s.ttft)
		times["itl"] = append(times["itl"], s.itl...)
		times["e2el"] = append(times["e2el"], s.latency)
		if s.output > 1 {
			times["tpot"] = append(times["tpot"], (s.latency-s.ttft)/float64(s.output-1))
		}
	}
	figures := map[string]any{
		"date": time.Now().Format("20060102-150405"), "backend": b.backend,
		"endpoint_type": b.backend, "model_id": b.model, "tokenizer_id": b.model,
		"num_prompts": b.count, "request_rate": b.rate, "burstiness": b.burstiness,
		"max_concurrency": nil, "duration": seconds, "completed": completed,
		"failed": len(samples) - completed, "total_input_tokens": input,
		"total_output_tokens": output, "request_throughput": float64(completed) / seconds,
		"output_throughput":      float64(output) / seconds,
		"total_token_throughput": float64(input+output) / seconds,
	}
	if b.most > 0 {
		figures["max_concurrency"] = b.most
	}
	out := b.command.OutOrStdout()
	line := func(name string, value any) { fmt.Fprintf(out, "%-40s %-10v\n", name, value) }
	fmt.Fprintf(out, "============ Serving Benchmark Result ============\n")
	line("Successful requests:", completed)
	line("Failed requests:", len(samples)-completed)
	line("Benchmark duration (s):", fmt.Sprintf("%.2f", seconds))
	line("Total input tokens:", input)
	line("Total generated tokens:", output)
	line("Request throughput (req/s):", fmt.Sprintf("%.2f", float64(completed)/seconds))
	line("Output token throughput (tok/s):", fmt.Sprintf("%.2f", float64(output)/seconds))
	line("Total token throughput (tok/s):", fmt.Sprintf("%.2f", float64(input+output)/seconds))
	b.reportTimes(out, times, figures)
	fmt.Fprintf(out, "==================================================\n")
	if b.detailed {
		addDetails(figures, samples)
	}
	if completed == 0 {
		return fmt.Errorf("every request failed, the first with: %s", samples[0].failure)
	}
	if !b.save && !b.detailed && b.resultFile == "" {
		return nil
	}
	if b.resultFile == "" {
		b.resultFile = fmt.Sprintf("%s-%sqps-%s.json", b.backend, b.rate, figures["date"])
	}
	return writeFigures(b.resultFile, figures)
}

func (b *serving) reportTimes(out io.Writer, times map[string][]float64, figures map[string]any) {
	names := map[string]string{
		"ttft": "Time to First Token", "tpot": "Time per Output Token (excl. 1st token)",
		"itl": "Inter-token Latency", "e2el": "End-to-end Latency",
	}
	for _, key := range strings.Split(b.metrics, ",") {
		name, known := names[key]
		if !known {
			continue
		}
		of := times[key]
		put := func(word, prefix string, value float64) {
			value *= 1000
			figures[prefix+"_"+key+"_ms"] = value
			fmt.Fprintf(out, "%-40s %-10.2f\n", word+" "+strings.ToUpper(key)+" (ms):", value)
		}
		pad := max(0, 50-len(name))
		fmt.Fprintf(out, "%s%s%s\n", strings.Repeat("-", pad/2), name, strings.Repeat("-", pad-pad/2))
		put("Mean", "mean", mean(of))
		put("Median", "median", percentile(of, 50))
		figures["std_"+key+"_ms"] = deviation(of) * 1000
		for _, p := range strings.Split(b.percentiles, ",") {
			value, _ := strconv.ParseFloat(p, 64)
			put("P"+p, "p"+p, percentile(of, value))
		}
	}
}

func addDetails(figures map[string]any, samples []sample) {
	var inputs, outputs []int
	var ttfts []float64
	var itls [][]float64
	var texts, failures []string
	for _, s := range samples {
		inputs, outputs = append(inputs, s.input), append(outputs, s.output)
		ttfts, itls = append(ttfts, s.ttft), append(itls, s.itl)
		texts, failures = append(texts, s.text), append(failures, s.failure)
	}
	figures["input_lens"], figures["output_lens"] = inputs, outputs
	figures["ttfts"], figures["itls"] = ttfts, itls
	figures["generated_texts"], figures["errors"] = texts, failures
}
