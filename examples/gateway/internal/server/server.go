// Package server is the OpenAI-compatible HTTP server in front of an engine.
package server

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	vrust "github.com/vrust/vrust/bindings/go"
	"github.com/vrust/vrust/examples/gateway/internal/web"
)

// Config says what to serve and how.
type Config struct {
	// Engine serves the requests. It may still be loading.
	Engine *vrust.Engine
	// Tokenizer is the engine's.
	Tokenizer *vrust.Tokenizer
	// ModelNames are the names that requests may use; answers carry the first.
	ModelNames []string
	// ModelRoot is the model's folder or hub name, for /v1/models.
	ModelRoot string
	// MaxModelLen is the most positions of a sequence.
	MaxModelLen int
	// APIKeys, if any, guard the paths that begin with /v1, /v2 or /inference.
	APIKeys []string
	// AllowedOrigins are those that browsers may call from; "*" is any.
	AllowedOrigins []string
	// MaxBodyBytes limits a request's body.
	MaxBodyBytes int64
	// WritePatience is how long a client may leave a chunk unread before its request is aborted;
	// 0: 30 seconds.
	WritePatience time.Duration
	// BodyPatience is how long a client may take to send a request's body; 0: 60 seconds.
	BodyPatience time.Duration
	// TrustRequestChatTemplate lets requests bring a chat template of their own.
	TrustRequestChatTemplate bool
	// ForceIncludeUsage adds usage to every streamed chunk.
	ForceIncludeUsage bool
	// PromptTokensDetails adds the number of cached tokens to usage.
	PromptTokensDetails bool
	// RequestIDHeaders echoes X-Request-Id.
	RequestIDHeaders bool
	// ToolCallParser and ReasoningParser name a format, or are "auto" or "none".
	ToolCallParser, ReasoningParser string
	// ChatTemplateKwargs are defaults of the chat template's variables, a JSON object or nil.
	ChatTemplateKwargs []byte
	// LogRequests logs each request's line (never its prompt).
	LogRequests bool
	// Logger takes the server's records.
	Logger *slog.Logger
}

// Server answers HTTP requests. All its methods may be called from any goroutine.
type Server struct {
	config     Config
	vocabulary *vocabulary
	keys       [][sha256.Size]byte
	metrics    *metrics
	known      vrust.ChatParserInfo
	created    int64
	load       atomic.Int64
	draining   atomic.Bool
	handler    http.Handler
}

// New makes a server. ErrInvalidArgument for a parser that the library does not know.
func New(config Config) (*Server, error) {
	if config.MaxBodyBytes == 0 {
		config.MaxBodyBytes = 64 << 20
	}
	if config.WritePatience == 0 {
		config.WritePatience = 30 * time.Second
	}
	if config.BodyPatience == 0 {
		config.BodyPatience = 60 * time.Second
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		config: config, vocabulary: &vocabulary{tokenizer: config.Tokenizer},
		metrics: newMetrics(), created: time.Now().Unix(),
	}
	for _, key := range config.APIKeys {
		s.keys = append(s.keys, sha256.Sum256([]byte(key)))
	}
	var err error
	if s.known, err = s.formats(); err != nil {
		return nil, err
	}
	s.handler = s.routes()
	return s, nil
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// BeginDrain makes /health say that no new requests should come.
func (s *Server) BeginDrain() { s.draining.Store(true) }

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	work := func(route string, handler http.HandlerFunc) {
		mux.HandleFunc(route, func(w http.ResponseWriter, r *http.Request) {
			s.load.Add(1)
			defer s.load.Add(-1)
			handler(w, r)
		})
	}
	work("POST /v1/completions", s.completions)
	work("POST /v1/chat/completions", s.chatCompletions)
	work("POST /v1/responses", s.responses)
	mux.HandleFunc("/v1/responses/{id}", s.storedResponse)
	mux.HandleFunc("/v1/responses/{id}/{action}", s.storedResponse)
	mux.HandleFunc("GET /v1/models", s.models)
	mux.HandleFunc("GET /v1/models/{model...}", s.model)
	mux.HandleFunc("GET /health", s.health)
	mux.HandleFunc("GET /ping", s.health)
	mux.HandleFunc("POST /ping", s.health)
	mux.HandleFunc("GET /version", s.version)
	mux.HandleFunc("GET /load", s.serverLoad)
	mux.HandleFunc("GET /metrics", s.renderMetrics)
	mux.HandleFunc("POST /tokenize", s.tokenize)
	mux.HandleFunc("POST /detokenize", s.detokenize)
	mux.HandleFunc("GET /openapi.json", s.openAPI)
	page := web.Handler()
	for _, path := range []string{"/{$}", "/page.css", "/page.js"} {
		mux.Handle("GET "+path, page)
	}
	for _, path := range notImplemented {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			writeError(w, fail(http.StatusNotImplemented, "", "%s is not implemented.", r.URL.Path))
		})
	}
	mux.HandleFunc("/", s.otherwise(mux))
	return s.outer(mux)
}

// notImplemented are routes of vLLM's that this server knows and does not have.
var notImplemented = strings.Fields(`/v1/embeddings /v2/embed /pooling /classify /score /v1/score
	/rerank /v1/rerank /v2/rerank /v1/audio/transcriptions /v1/audio/translations /v1/messages
	/v1/messages/count_tokens /v1/images/generations /v1/moderations
	/v1/load_lora_adapter /v1/unload_lora_adapter /invocations /inference/v1/generate
	/v1/chat/completions/batch`)

// otherwise answers what no route matches: 405 where another method would, else 404.
func (s *Server) otherwise(mux *http.ServeMux) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var allowed []string
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			probe := &http.Request{Method: method, URL: r.URL, Host: r.Host}
			if _, pattern := mux.Handler(probe); pattern != "/" && method != r.Method {
				allowed = append(allowed, method)
			}
		}
		if len(allowed) > 0 {
			w.Header().Set("Allow", strings.Join(allowed, ", "))
			writeError(w, fail(http.StatusMethodNotAllowed, "", "Method Not Allowed"))
			return
		}
		writeError(w, fail(http.StatusNotFound, "", "Not Found"))
	}
}

// outer is what happens around every route.
func (s *Server) outer(inner http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		record := &recorder{ResponseWriter: w}
		w = record
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler {
					panic(p)
				}
				s.config.Logger.Error("a request failed", "path", r.URL.Path, "panic", p)
				if record.status == 0 {
					writeError(w, fail(http.StatusInternalServerError, "", "Internal server error"))
				}
			}
			s.finished(record, r, begin)
		}()
		if s.config.RequestIDHeaders {
			if id, err := requestID(r.Header.Get("X-Request-Id")); err == nil {
				w.Header().Set("X-Request-Id", id)
				r.Header.Set("X-Request-Id", id)
			}
		}
		if s.crossOrigin(w, r) {
			return
		}
		if !s.authorized(r) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			writeJSON(w, http.StatusUnauthorized, map[string]string{"error": "Unauthorized"})
			return
		}
		inner.ServeHTTP(w, r)
	})
}

func (s *Server) finished(record *recorder, r *http.Request, begin time.Time) {
	took := time.Since(begin)
	s.metrics.observe(r, record.status, took)
	if s.config.LogRequests {
		s.config.Logger.Info("request", "method", r.Method, "path", r.URL.Path,
			"status", record.status, "bytes", record.bytes, "took", took.Round(time.Microsecond))
	}
}

// authorized compares digests of the keys, so that the time says nothing about them.
func (s *Server) authorized(r *http.Request) bool {
	path := r.URL.Path
	guarded := strings.HasPrefix(path, "/v1") || strings.HasPrefix(path, "/v2") ||
		strings.HasPrefix(path, "/inference")
	if len(s.keys) == 0 || !guarded || r.Method == http.MethodOptions {
		return true
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	given := sha256.Sum256([]byte(token))
	matches := 0
	for i := range s.keys {
		matches |= subtle.ConstantTimeCompare(given[:], s.keys[i][:])
	}
	return strings.EqualFold(scheme, "bearer") && matches == 1
}

// crossOrigin answers a browser's question before a call from another origin.
func (s *Server) crossOrigin(w http.ResponseWriter, r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" || len(s.config.AllowedOrigins) == 0 {
		return false
	}
	for _, allowed := range s.config.AllowedOrigins {
		if allowed != "*" && allowed != origin {
			continue
		}
		header := w.Header()
		header.Set("Access-Control-Allow-Origin", allowed)
		header.Add("Vary", "Origin")
		if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
			header.Set("Access-Control-Allow-Methods", "GET, POST, OPTIONS")
			header.Set("Access-Control-Allow-Headers",
				r.Header.Get("Access-Control-Request-Headers"))
			w.WriteHeader(http.StatusNoContent)
			return true
		}
	}
	return false
}

// requestID checks a client's id, or makes one.
func requestID(given string) (string, error) {
	if given == "" {
		var random [16]byte
		_, _ = rand.Read(random[:]) // It never fails.
		return hex.EncodeToString(random[:]), nil
	}
	if len(given) > 128 {
		return "", badRequest("request_id", "request_id: at most 128 characters, got %d", len(given))
	}
	for _, c := range given {
		if c <= ' ' || c > '~' {
			return "", badRequest("request_id", "request_id: printable ASCII only")
		}
	}
	return given, nil
}

// recorder notes what was answered.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

// Unwrap gives http.ResponseController the connection's own writer.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(data []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(data)
	r.bytes += int64(n)
	return n, err
}
