package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	vrust "github.com/vrust/vrust/bindings/go"
)

func benchCommand() *cobra.Command {
	bench := &cobra.Command{
		Use: "bench", Short: "Measure latency, throughput, or a running server",
		Args: noArguments,
		RunE: func(*cobra.Command, []string) error {
			return usagef("which benchmark? latency, throughput or serve")
		},
	}
	bench.AddCommand(latencyCommand(), throughputCommand(), benchServeCommand())
	return bench
}

// offline is what the benchmarks inside this process share.
type offline struct {
	engineFlags
	inputLen, outputLen int
	outputJSON          string
}

func (o *offline) init(set *pflag.FlagSet, inputLen, outputLen int) {
	o.engineFlags.add(set)
	addFixedFlags(set)
	set.IntVar(&o.inputLen, "input-len", inputLen, "tokens of a prompt")
	set.IntVar(&o.outputLen, "output-len", outputLen, "tokens of an answer")
	set.StringVar(&o.outputJSON, "output-json", "", "file for the figures")
}

// start opens the engine. Cached prefixes would make later rounds quicker than the first.
func (o *offline) start(command *cobra.Command) (context.Context, func(), *vrust.Engine, error) {
	if err := o.takeModel(nil); err != nil {
		return nil, nil, nil, err
	}
	if o.inputLen < 1 || o.outputLen < 1 {
		return nil, nil, nil, usagef("--input-len and --output-len must be at least 1")
	}
	if _, err := checkFixedFlags(command.Flags()); err != nil {
		return nil, nil, nil, err
	}
	if !command.Flags().Changed("enable-prefix-caching") {
		o.noPrefix = true
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	engine, err := o.open(ctx, command.ErrOrStderr())
	if err != nil {
		stop()
		return nil, nil, nil, err
	}
	return ctx, func() { engine.Close(); stop() }, engine, nil
}

// randomPrompts are token ids, seeded, of the vocabulary's ordinary part.
func randomPrompts(engine *vrust.Engine, seed uint64, count, length int) ([][]uint32, error) {
	info, err := engine.Info()
	if err != nil {
		return nil, err
	}
	var facts struct {
		VocabSize   int `json:"vocab_size"`
		MaxModelLen int `json:"max_model_len"`
	}
	if err := json.Unmarshal(info, &facts); err != nil {
		return nil, err
	}
	random := rand.New(rand.NewPCG(seed, 0))
	prompts := make([][]uint32, count)
	for i := range prompts {
		prompts[i] = make([]uint32, length)
		for j := range prompts[i] {
			prompts[i][j] = uint32(random.IntN(facts.VocabSize))
		}
	}
	return prompts, nil
}

// generate answers prompts, all at once, with exactly so many tokens each.
func generate(ctx context.Context, engine *vrust.Engine, prompts [][]uint32, n, tokens int) error {
	var group sync.WaitGroup
	failures := make(chan error, len(prompts))
	for i, prompt := range prompts {
		group.Go(func() {
			request := vrust.Request{
				PromptTokenIDs: prompt, MaxTokens: &tokens, IgnoreEOS: true, N: &n,
				Seed: vrust.Ptr(int64(i)), Extra: map[string]any{"detokenize": false},
			}
			for _, err := range engine.Generate(ctx, request) {
				if err != nil {
					failures <- err
				}
			}
		})
	}
	group.Wait()
	select {
	case err := <-failures:
		return err
	default:
		return nil
	}
}

func latencyCommand() *cobra.Command {
	o := &offline{}
	var batchSize, n, warmup, iterations int
	command := &cobra.Command{
		Use: "latency --model MODEL", Short: "Time of one batch of requests", Args: noArguments,
	}
	o.init(command.Flags(), 32, 128)
	command.Flags().IntVar(&batchSize, "batch-size", 8, "requests of the batch")
	command.Flags().IntVar(&n, "n", 1, "choices of a request")
	command.Flags().IntVar(&warmup, "num-iters-warmup", 10, "rounds before those that count")
	command.Flags().IntVar(&iterations, "num-iters", 30, "rounds that count")
	command.RunE = func(*cobra.Command, []string) error {
		if batchSize < 1 || iterations < 1 || n < 1 {
			return usagef("--batch-size, --num-iters and --n must be at least 1")
		}
		ctx, end, engine, err := o.start(command)
		if err != nil {
			return err
		}
		defer end()
		prompts, err := randomPrompts(engine, o.options.Seed, batchSize, o.inputLen)
		if err != nil {
			return err
		}
		var latencies []float64
		for round := range warmup + iterations {
			begin := time.Now()
			if err := generate(ctx, engine, prompts, n, o.outputLen); err != nil {
				return err
			}
			if round >= warmup {
				latencies = append(latencies, time.Since(begin).Seconds())
			}
		}
		out := command.OutOrStdout()
		fmt.Fprintf(out, "Avg latency: %v seconds\n", mean(latencies))
		percentiles := map[string]float64{}
		for _, p := range []float64{10, 25, 50, 75, 90, 99} {
			value := percentile(latencies, p)
			percentiles[fmt.Sprint(p)] = value
			fmt.Fprintf(out, "%v%% percentile latency: %v seconds\n", p, value)
		}
		return writeFigures(o.outputJSON, map[string]any{
			"avg_latency": mean(latencies), "latencies": latencies, "percentiles": percentiles,
		})
	}
	return command
}

func throughputCommand() *cobra.Command {
	o := &offline{}
	var count, n int
	command := &cobra.Command{
		Use: "throughput --model MODEL", Short: "Requests and tokens a second", Args: noArguments,
	}
	o.init(command.Flags(), 1024, 128)
	command.Flags().IntVar(&count, "num-prompts", 1000, "requests")
	command.Flags().IntVar(&n, "n", 1, "choices of a request")
	command.RunE = func(*cobra.Command, []string) error {
		if count < 1 || n < 1 {
			return usagef("--num-prompts and --n must be at least 1")
		}
		o.options.MaxNumQueuedReqs = max(o.options.MaxNumQueuedReqs, count*n)
		ctx, end, engine, err := o.start(command)
		if err != nil {
			return err
		}
		defer end()
		prompts, err := randomPrompts(engine, o.options.Seed, count, o.inputLen)
		if err != nil {
			return err
		}
		begin := time.Now()
		if err := generate(ctx, engine, prompts, n, o.outputLen); err != nil {
			return err
		}
		elapsed := time.Since(begin).Seconds()
		made := float64(count * n * o.outputLen)
		total := made + float64(count*o.inputLen)
		fmt.Fprintf(command.OutOrStdout(), "Throughput: %.2f requests/s, %.2f total tokens/s, %.2f "+
			"output tokens/s\nTotal num prompt tokens:  %d\nTotal num output tokens:  %.0f\n",
			float64(count)/elapsed, total/elapsed, made/elapsed, count*o.inputLen, made)
		return writeFigures(o.outputJSON, map[string]any{
			"elapsed_time": elapsed, "num_requests": count, "total_num_tokens": total,
			"requests_per_second": float64(count) / elapsed, "tokens_per_second": total / elapsed,
		})
	}
	return command
}

func writeFigures(path string, figures any) error {
	if path == "" {
		return nil
	}
	text, err := json.MarshalIndent(figures, "", "    ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

func mean(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sum := 0.0
	for _, value := range values {
		sum += value
	}
	return sum / float64(len(values))
}

func deviation(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	middle, sum := mean(values), 0.0
	for _, value := range values {
		sum += (value - middle) * (value - middle)
	}
	return math.Sqrt(sum / float64(len(values)))
}

// percentile interpolates between neighbours, as numpy does by default.
func percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	at := p / 100 * float64(len(sorted)-1)
	low := int(at)
	if low+1 >= len(sorted) {
		return sorted[low]
	}
	return sorted[low] + (at-float64(low))*(sorted[low+1]-sorted[low])
}
