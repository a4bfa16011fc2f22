package cli

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/net/netutil"

	vrust "github.com/vrust/vrust/bindings/go"
	"github.com/vrust/vrust/examples/gateway/internal/server"
)

// serveFlags are the flags of `vrust serve`.
type serveFlags struct {
	engineFlags
	host, uds, rootPath, logLevel    string
	port, maxConnections             int
	keys                             []string
	origins, templateKwargs          string
	certFile, keyFile                string
	toolParser, reasoningParser      string
	maxBody                          count
	shutdownTimeout                  time.Duration
	forceUsage, details, idHeaders   bool
	logRequests, disableLogsRequests bool
	trustTemplate                    bool
	bodyTimeout                      time.Duration
}

func serveCommand() *cobra.Command {
	f := &serveFlags{}
	command := &cobra.Command{
		Use:   "serve [MODEL]",
		Short: "Serve a model: a folder, or a name on the hub",
		Args:  func(_ *cobra.Command, args []string) error { return f.takeModel(args) },
		RunE:  f.run,
	}
	f.init(command.Flags())
	return command
}

// init makes the flags.
func (f *serveFlags) init(set *pflag.FlagSet) {
	f.add(set)
	addFixedFlags(set)
	set.StringVar(&f.host, "host", "", "address to listen at; every one by default")
	set.IntVar(&f.port, "port", 8000, "port to listen at; 0 picks a free one")
	set.StringVar(&f.uds, "uds", "", "Unix socket to listen at instead")
	set.StringVar(&f.rootPath, "root-path", "", "path that a proxy in front puts before all others")
	set.StringSliceVar(&f.names, "served-model-name", nil, "names of the model; answers say the first")
	set.StringArrayVar(&f.keys, "api-key", nil, "key that /v1 asks for; may be given again")
	set.StringVar(&f.origins, "allowed-origins", "[]", "JSON list of origins for browsers")
	set.StringVar(&f.certFile, "ssl-certfile", "", "TLS certificate")
	set.StringVar(&f.keyFile, "ssl-keyfile", "", "TLS key")
	set.StringVar(&f.toolParser, "tool-call-parser", "auto",
		"auto, none, hermes, llama3_json, mistral, pythonic or qwen3_xml")
	set.StringVar(&f.reasoningParser, "reasoning-parser", "auto", "auto, none, think or mistral")
	set.StringVar(&f.templateKwargs, "default-chat-template-kwargs", "", "JSON object")
	set.BoolVar(&f.trustTemplate, "trust-request-chat-template", false,
		"let requests bring a chat template of their own")
	f.maxBody = count{value: 64 << 20, size: true}
	set.Var(&f.maxBody, "max-body-bytes", "most bytes of a request's body")
	set.DurationVar(&f.bodyTimeout, "body-timeout", time.Minute,
		"how long a request's body may take to arrive")
	set.IntVar(&f.maxConnections, "max-connections", 4096, "most connections; more wait")
	set.DurationVar(&f.shutdownTimeout, "shutdown-timeout", 5*time.Minute,
		"how long requests may go on after SIGTERM")
	set.BoolVar(&f.forceUsage, "enable-force-include-usage", false, "usage in every streamed chunk")
	set.BoolVar(&f.details, "enable-prompt-tokens-details", false, "cached tokens in usage")
	set.BoolVar(&f.idHeaders, "enable-request-id-headers", false, "answer with X-Request-Id")
	set.BoolVar(&f.logRequests, "enable-log-requests", false, "log a line a request, no prompts")
	set.BoolVar(&f.disableLogsRequests, "disable-log-requests", true, "the opposite")
	set.StringVar(&f.logLevel, "uvicorn-log-level", "info", "debug, info, warning or error")
}

// takeModel takes the model from the positional argument or from --model.
func (e *engineFlags) takeModel(args []string) error {
	switch {
	case len(args) > 1:
		return usagef("one model, got %s", strings.Join(args, " "))
	case len(args) == 1 && e.model != "" && e.model != args[0]:
		return usagef("two models: %s and --model %s", args[0], e.model)
	case len(args) == 1:
		e.model = args[0]
	case e.model == "":
		return usagef("which model? Give a folder or a name on the hub")
	}
	return nil
}

func (f *serveFlags) run(command *cobra.Command, _ []string) error {
	logger, err := newLogger(command.ErrOrStderr(), f.logLevel)
	if err != nil {
		return err
	}
	warnings, err := checkFixedFlags(command.Flags())
	if err != nil {
		return err
	}
	for _, warning := range warnings {
		logger.Warn(warning)
	}
	config, err := f.config(logger)
	if err != nil {
		return err
	}
	// The first signal drains; the second, since the handler is gone by then, ends the process.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	began := time.Now()
	engine, err := f.open(ctx, command.ErrOrStderr())
	if err != nil {
		return err
	}
	defer engine.Close()
	if err := f.complete(&config, engine); err != nil {
		return err
	}
	handler, err := server.New(config)
	if err != nil {
		return usageError{err}
	}
	listener, err := f.listen()
	if err != nil {
		return err
	}
	logger.Info("ready", "model", config.ModelNames[0], "at", f.address(listener),
		"took", time.Since(began).Round(time.Millisecond))
	return f.serve(ctx, stop, listener, handler, engine, logger)
}

func newLogger(out io.Writer, level string) (*slog.Logger, error) {
	var parsed slog.Level
	name := strings.ToLower(level)
	switch name {
	case "warning":
		name = "warn"
	case "critical":
		name = "error"
	case "trace":
		name = "debug"
	}
	if err := parsed.UnmarshalText([]byte(name)); err != nil {
		return nil, usagef("--uvicorn-log-level must be debug, info, warning or error, got %q", level)
	}
	return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: parsed})), nil
}

// config is what the flags alone say.
func (f *serveFlags) config(logger *slog.Logger) (server.Config, error) {
	config := server.Config{
		ModelNames: f.names, ModelRoot: f.model, APIKeys: f.keys,
		MaxBodyBytes: int64(f.maxBody.value), BodyPatience: f.bodyTimeout,
		TrustRequestChatTemplate: f.trustTemplate, ForceIncludeUsage: f.forceUsage,
		PromptTokensDetails: f.details, RequestIDHeaders: f.idHeaders,
		ToolCallParser: f.toolParser, ReasoningParser: f.reasoningParser,
		LogRequests: f.logRequests, Logger: logger,
	}
	if len(config.ModelNames) == 0 {
		config.ModelNames = []string{f.model}
	}
	for _, name := range []string{"VRUST_API_KEY", "VLLM_API_KEY"} {
		if key := os.Getenv(name); key != "" && len(f.keys) == 0 {
			config.APIKeys = []string{key}
		}
	}
	if err := json.Unmarshal([]byte(f.origins), &config.AllowedOrigins); err != nil {
		return config, usagef("--allowed-origins must be a JSON list of strings, got %q", f.origins)
	}
	if f.templateKwargs != "" {
		var object map[string]any
		if err := json.Unmarshal([]byte(f.templateKwargs), &object); err != nil {
			return config, usagef("--default-chat-template-kwargs must be a JSON object: %v", err)
		}
		config.ChatTemplateKwargs = []byte(f.templateKwargs)
	}
	if f.port < 0 || f.port > 65535 {
		return config, usagef("--port must be from 0 to 65535, got %d", f.port)
	}
	if f.bodyTimeout <= 0 {
		return config, usagef("--body-timeout must be above 0, got %v", f.bodyTimeout)
	}
	if (f.certFile == "") != (f.keyFile == "") {
		return config, usagef("--ssl-certfile and --ssl-keyfile go together")
	}
	return config, nil
}

// label is what the metrics call the model.
func (e *engineFlags) label() string {
	if len(e.names) > 0 {
		return e.names[0]
	}
	return e.model
}

// open finds the model, and waits until its engine is ready.
func (e *engineFlags) open(ctx context.Context, progress io.Writer) (*vrust.Engine, error) {
	folder, err := e.folder(ctx, progress)
	if err != nil {
		return nil, err
	}
	options, err := e.resolve(folder)
	if err != nil {
		return nil, err
	}
	if options.Extra["served_model_name"] == nil {
		options.Extra["served_model_name"] = e.label()
	}
	engine, err := vrust.Open(ctx, options)
	if errors.Is(err, vrust.ErrInvalidArgument) || errors.Is(err, vrust.ErrUnsupported) {
		return nil, usageError{err}
	}
	return engine, err
}

// complete adds what only the loaded engine knows.
func (f *serveFlags) complete(config *server.Config, engine *vrust.Engine) error {
	config.Engine = engine
	info, err := engine.Info()
	if err != nil {
		return err
	}
	var facts struct {
		MaxModelLen int `json:"max_model_len"`
	}
	if err := json.Unmarshal(info, &facts); err != nil {
		return err
	}
	config.MaxModelLen = facts.MaxModelLen
	config.Tokenizer, err = engine.Tokenizer()
	return err
}

func (f *serveFlags) listen() (net.Listener, error) {
	var listener net.Listener
	var err error
	if f.uds != "" {
		if info, statErr := os.Stat(f.uds); statErr == nil && info.Mode().Type() == os.ModeSocket {
			_ = os.Remove(f.uds) // Left by a process that was killed.
		}
		listener, err = net.Listen("unix", f.uds)
	} else {
		listener, err = net.Listen("tcp", net.JoinHostPort(f.host, strconv.Itoa(f.port)))
	}
	if err != nil {
		return nil, err
	}
	listener = netutil.LimitListener(listener, f.maxConnections)
	if f.certFile == "" {
		return listener, nil
	}
	pair, err := tls.LoadX509KeyPair(f.certFile, f.keyFile)
	if err != nil {
		return nil, usagef("--ssl-certfile: %v", err)
	}
	return tls.NewListener(listener, &tls.Config{
		Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
	}), nil
}

func (f *serveFlags) address(listener net.Listener) string {
	if f.uds != "" {
		return "unix:" + f.uds
	}
	scheme := "http"
	if f.certFile != "" {
		scheme = "https"
	}
	return fmt.Sprintf("%s://%s", scheme, listener.Addr())
}

// keepAlive is how long an idle connection stays; VLLM_HTTP_TIMEOUT_KEEP_ALIVE sets it.
func keepAlive() time.Duration {
	seconds, err := strconv.ParseFloat(os.Getenv("VLLM_HTTP_TIMEOUT_KEEP_ALIVE"), 64)
	if err != nil || seconds <= 0 {
		seconds = 5
	}
	return time.Duration(seconds * float64(time.Second))
}

// serve answers until a signal comes, then lets the requests in flight finish.
func (f *serveFlags) serve(
	ctx context.Context, stop func(), listener net.Listener, handler *server.Server,
	engine *vrust.Engine, logger *slog.Logger,
) error {
	var root http.Handler = handler
	if f.rootPath != "" {
		prefixed := http.StripPrefix(strings.TrimRight(f.rootPath, "/"), handler)
		root = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, f.rootPath) {
				prefixed.ServeHTTP(w, r)
				return
			}
			handler.ServeHTTP(w, r)
		})
	}
	web := &http.Server{
		Handler: root, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: keepAlive(),
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- web.Serve(listener) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	stop()
	handler.BeginDrain()
	logger.Info("draining", "requests", engine.Stats().LiveRequests)
	patience, cancel := context.WithTimeout(context.Background(), f.shutdownTimeout)
	defer cancel()
	if err := web.Shutdown(patience); err != nil {
		_ = web.Close()
		return fmt.Errorf("requests were cut off after %v", f.shutdownTimeout)
	}
	logger.Info("done")
	return nil
}
