// Command overhead measures what the Go binding and the gateway add to the C ABI: processor time of
// the host's threads a request and a streamed token, for the same requests on the same model.
//
// Three ways, each with an engine of its own: a C loop that submits and polls; the binding's
// streams; the gateway's handler, whose answers go nowhere (the write call is not its cost). Cost
// a request comes from requests of one token, cost a token from what longer ones add to that.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"

	vrust "github.com/vrust/vrust/bindings/go"
	"github.com/vrust/vrust/examples/gateway/internal/server"
)

var (
	model  = flag.String("model", "examples/demo-model", "the model's folder")
	count  = flag.Int("requests", 64, "requests at once")
	tokens = flag.Int("tokens", 256, "tokens of a long request")
	rounds = flag.Int("rounds", 15, "rounds of each way")
)

// nowhere is a client's connection that costs nothing.
type nowhere struct{ header http.Header }

func (n nowhere) Header() http.Header            { return n.header }
func (n nowhere) Write(data []byte) (int, error) { return len(data), nil }
func (n nowhere) WriteHeader(int)                {}
func (n nowhere) FlushError() error              { return nil }

func body(tokens int) string {
	return fmt.Sprintf(`{"prompt":"Once upon a time","max_tokens":%d,"ignore_eos":true,`+
		`"seed":1,"stream":true}`, tokens)
}

// together runs all requests of a round at once.
func together(one func()) {
	var group sync.WaitGroup
	for range *count {
		group.Go(one)
	}
	group.Wait()
}

func byBinding(engine *vrust.Engine) func(string) {
	return func(text string) {
		stream, err := engine.SubmitJSON(context.Background(), []byte(text))
		if err != nil {
			panic(err)
		}
		for {
			if _, err := stream.Next(context.Background()); err != nil {
				return
			}
		}
	}
}

func byGateway(handler http.Handler) func(string) {
	return func(text string) {
		request := httptest.NewRequest("POST", "/v1/completions", strings.NewReader(text))
		request.Header.Set("Content-Type", "application/json")
		handler.ServeHTTP(nowhere{http.Header{}}, request)
	}
}

// cost is microseconds a request and a token.
type cost struct{ request, token float64 }

// ways gives what runs one round of a body, each with an engine of its own.
func ways() ([3]func(body string) error, error) {
	var found [3]func(string) error
	if err := openCAPI(*model); err != nil {
		return found, err
	}
	found[0] = func(text string) error {
		_, err := runCAPI(text)
		return err
	}
	for i, make := range []func(*vrust.Engine) (func(string), error){
		func(e *vrust.Engine) (func(string), error) { return byBinding(e), nil },
		func(e *vrust.Engine) (func(string), error) {
			tokenizer, err := e.Tokenizer()
			if err != nil {
				return nil, err
			}
			handler, err := server.New(server.Config{
				Engine: e, Tokenizer: tokenizer, ModelNames: []string{"demo"}, MaxModelLen: 2048,
			})
			return byGateway(handler), err
		},
	} {
		engine, err := vrust.Open(context.Background(), vrust.Options{Model: *model})
		if err != nil {
			return found, err
		}
		one, err := make(engine)
		if err != nil {
			return found, err
		}
		found[i+1] = func(text string) error {
			together(func() { one(text) })
			return nil
		}
	}
	return found, nil
}

// measure runs the ways in turn, so that what else the machine does falls on all of them.
func measure() (costs [3][]cost, err error) {
	all, err := ways()
	if err != nil {
		return costs, err
	}
	n := float64(*count)
	for round := range *rounds + 1 {
		for i, way := range all {
			begin := hostSeconds()
			if err := way(body(1)); err != nil {
				return costs, err
			}
			middle := hostSeconds()
			if err := way(body(*tokens)); err != nil {
				return costs, err
			}
			short, long := middle-begin, hostSeconds()-middle
			if round == 0 {
				continue // Warming up.
			}
			costs[i] = append(costs[i], cost{
				request: short / n * 1e6, token: (long - short) / n / float64(*tokens-1) * 1e6,
			})
		}
	}
	return costs, nil
}

func median(of []float64) float64 {
	slices.Sort(of)
	return of[len(of)/2]
}

func main() {
	flag.Parse()
	found, err := measure()
	if err != nil {
		fmt.Fprintln(os.Stderr, "overhead:", err)
		os.Exit(1)
	}
	names := []string{"C ABI alone", "Go binding", "gateway, no write"}
	fmt.Printf("%-20s %12s %10s %22s\n", "processor time, µs", "a request", "a token",
		"more than the C ABI")
	for i := range names {
		var request, token, moreRequest, moreToken []float64
		for round, c := range found[i] {
			request, token = append(request, c.request), append(token, c.token)
			moreRequest = append(moreRequest, c.request-found[0][round].request)
			moreToken = append(moreToken, c.token-found[0][round].token)
		}
		fmt.Printf("%-20s %12.1f %10.2f %11.1f %10.2f\n", names[i], median(request), median(token),
			median(moreRequest), median(moreToken))
	}
}
