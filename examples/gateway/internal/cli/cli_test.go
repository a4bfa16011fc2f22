package cli

import (
	"bytes"
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

const demoModel = "../../../demo-model"

// try runs the command with an input, and gives its status and outputs.
func try(t *testing.T, input string, args ...string) (int, string, string) {
	t.Helper()
	var out, errOut bytes.Buffer
	status := Run(args, strings.NewReader(input), &out, &errOut)
	return status, out.String(), errOut.String()
}

func TestRunBatch(t *testing.T) {
	good := `{"custom_id":"a","method":"POST","url":"/v1/completions","body":` +
		`{"prompt":"Once","max_tokens":3}}`
	chat := `{"custom_id":"b","method":"POST","url":"/v1/chat/completions","body":` +
		`{"messages":[{"role":"user","content":"Hi"}],"max_tokens":3}}`
	input := strings.Join([]string{good, "{broken", chat, "", good,
		`{"custom_id":"c","method":"GET","url":"/v1/completions","body":{}}`,
		`{"custom_id":"d","method":"POST","url":"/v1/embeddings","body":{}}`,
		`{"custom_id":"e","method":"POST","url":"/v1/completions","body":{"prompt":5}}`,
		`{"custom_id":"f","method":"POST","url":"/v1/completions","body":{"prompt":"a","stream":true}}`,
		`{"custom_id":"g","method":"POST","url":"/v1/responses","body":{"input":"Hi"}}`,
	}, "\n")
	folder := t.TempDir()
	in, out := filepath.Join(folder, "in.jsonl"), filepath.Join(folder, "out.jsonl")
	if err := os.WriteFile(in, []byte(input), 0o600); err != nil {
		t.Fatal(err)
	}
	status, _, log := try(t, "", "run-batch", "-i", in, "-o", out, "--model", demoModel)
	if status != 0 || !strings.Contains(log, "9 requests answered, 6 of them with errors") {
		t.Fatalf("%d %s", status, log)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	expected := []struct {
		id     string
		status int
		word   string
	}{
		{"a", 200, "text_completion"}, {"", 0, "line 2"}, {"b", 200, "chat.completion"},
		{"a", 0, "was there before"}, {"c", 0, "method"}, {"d", 0, "url"}, {"e", 400, "prompt"},
		{"f", 0, "stream"}, {"g", 200, `"object":"response"`},
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(lines) != len(expected) {
		t.Fatalf("%d lines: %s", len(lines), text)
	}
	for i, line := range lines {
		var result batchResult
		if err := json.Unmarshal([]byte(line), &result); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		got := 0
		if result.Response != nil {
			got = result.Response.StatusCode
		}
		e := expected[i]
		if result.CustomID != e.id || got != e.status || !strings.Contains(line, e.word) {
			t.Errorf("line %d: %s", i+1, line)
		}
		if (result.Error != nil) != (e.status == 0) {
			t.Errorf("line %d: error %v", i+1, result.Error)
		}
	}
}

func TestOfflineBenchmarks(t *testing.T) {
	file := filepath.Join(t.TempDir(), "figures.json")
	for kind, names := range map[string]string{
		"latency":    "avg_latency latencies percentiles",
		"throughput": "elapsed_time num_requests total_num_tokens requests_per_second tokens_per_second",
	} {
		args := []string{"bench", kind, "--model", demoModel, "--input-len", "8", "--output-len", "4",
			"--output-json", file}
		if kind == "latency" {
			args = append(args, "--num-iters", "3", "--num-iters-warmup", "1")
		} else {
			args = append(args, "--num-prompts", "20")
		}
		status, out, log := try(t, "", args...)
		if status != 0 || out == "" {
			t.Fatalf("%s: %d %s", kind, status, log)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var figures map[string]any
		if err := json.Unmarshal(text, &figures); err != nil {
			t.Fatal(err)
		}
		for _, name := range strings.Fields(names) {
			if figures[name] == nil {
				t.Errorf("%s: no %s in %s", kind, name, text)
			}
		}
	}
}

func TestWrongUsageEndsWith2(t *testing.T) {
	for _, args := range []string{
		"serve", "serve a b", "serve --no-such-flag", "bench", "bench serve --request-rate none",
		"bench latency --model " + demoModel + " --batch-size 0", "chat extra", "run-batch",
		"bench serve --dataset-name novel", "serve " + demoModel + " --dtype int3",
		"serve " + demoModel + " --allowed-origins nope", "serve " + demoModel + " --api-key",
		"serve " + demoModel + " --port 65536", "serve " + demoModel + " --body-timeout 0s", "nonsense",
		"run-batch -i /no/such/file -o /dev/null --model " + demoModel,
	} {
		status, _, log := try(t, "", strings.Fields(args)...)
		if status != 2 || !strings.HasPrefix(log, "vrust: ") {
			t.Errorf("%s: %d %s", args, status, log)
		}
	}
}

func TestCollectEnv(t *testing.T) {
	t.Setenv("HF_TOKEN", "very-secret")
	status, out, _ := try(t, "", "collect-env")
	for _, word := range []string{"libvrust", "version:", "kernel:", "HF_TOKEN:"} {
		if !strings.Contains(out, word) {
			t.Errorf("no %s in %s", word, out)
		}
	}
	if status != 0 || strings.Contains(out, "very-secret") {
		t.Errorf("%d %s", status, out)
	}
}

func TestCounts(t *testing.T) {
	for text, expected := range map[string]uint64{
		"4096": 4096, "32k": 32000, "32K": 32768, "1M": 1 << 20, "1.5k": 1500, "auto": 0, "-1": 0,
	} {
		c := count{auto: true}
		if err := c.Set(text); err != nil || c.value != expected {
			t.Errorf("%s: %d, %v", text, c.value, err)
		}
	}
	size := count{size: true}
	if err := size.Set("2GiB"); err != nil || size.value != 2<<30 {
		t.Errorf("%d, %v", size.value, err)
	}
	for _, text := range []string{"", "many", "-5", "1.5", "3x", "1e400", "NaN"} {
		if err := new(count).Set(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

func TestFigures(t *testing.T) {
	values := []float64{4, 1, 3, 2}
	last := percentile(values, 99)
	if mean(values) != 2.5 || percentile(values, 50) != 2.5 || math.Abs(last-3.97) > 1e-9 {
		t.Errorf("%v %v %v", mean(values), percentile(values, 50), percentile(values, 99))
	}
	if math.Abs(deviation(values)-1.118033988749895) > 1e-12 {
		t.Errorf("%v", deviation(values))
	}
	random := rand.New(rand.NewPCG(1, 2))
	for _, shape := range []float64{0.5, 1, 4} {
		sum, squares, n := 0.0, 0.0, 200000.0
		for range int(n) {
			x := gamma(random, shape)
			sum, squares = sum+x, squares+x*x
		}
		average := sum / n
		if variance := squares/n - average*average; math.Abs(average-shape) > 0.02*shape+0.01 ||
			math.Abs(variance-shape) > 0.05*shape+0.02 {
			t.Errorf("shape %v: mean %v, variance %v", shape, average, variance)
		}
	}
}

func TestAsyncSchedulingReachesTheEngine(t *testing.T) {
	for _, c := range []struct {
		flags []string
		want  bool
	}{
		{nil, true},
		{[]string{"--async-scheduling"}, true},
		{[]string{"--async-scheduling=false"}, false},
		{[]string{"--no-async-scheduling"}, false},
	} {
		var e engineFlags
		set := pflag.NewFlagSet("test", pflag.ContinueOnError)
		e.add(set)
		if err := set.Parse(c.flags); err != nil {
			t.Fatal(err)
		}
		options, err := e.resolve("folder")
		if err != nil {
			t.Fatal(err)
		}
		if got := options.Extra["async_scheduling"]; got != c.want {
			t.Errorf("%v: %v instead of %v", c.flags, got, c.want)
		}
	}
}
