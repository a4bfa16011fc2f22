package server

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"
)

// metrics are the gateway's own, beside the engine's.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "http_requests_total", Help: "Total number of requests by method, status and handler.",
		}, []string{"method", "status", "handler"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "http_request_duration_seconds", Help: "Time from a request to its answer's end.",
			Buckets: []float64{.001, .01, .1, .5, 1, 2.5, 5, 10, 30, 60, 120, 600},
		}, []string{"method", "handler"}),
	}
	m.registry.MustRegister(m.requests, m.seconds, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// observe counts an answer. What is no route counts as "none": clients make up as many paths as
// they like.
func (m *metrics) observe(r *http.Request, status int, took time.Duration) {
	method, handler, found := strings.Cut(r.Pattern, " ")
	if !found || handler == "/" {
		method, handler = "other", "none"
	}
	m.requests.WithLabelValues(method, strconv.Itoa(status/100)+"xx", handler).Inc()
	m.seconds.WithLabelValues(method, handler).Observe(took.Seconds())
}

func (s *Server) renderMetrics(w http.ResponseWriter, _ *http.Request) {
	engine, err := s.config.Engine.Metrics()
	if err != nil {
		writeError(w, err)
		return
	}
	out := bytes.NewBuffer(engine)
	families, err := s.metrics.registry.Gather()
	if err == nil {
		encoder := expfmt.NewEncoder(out, expfmt.NewFormat(expfmt.TypeTextPlain))
		for _, family := range families {
			if err = encoder.Encode(family); err != nil {
				break
			}
		}
	}
	if err != nil {
		writeError(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write(out.Bytes())
}
