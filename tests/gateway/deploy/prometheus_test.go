//go:build long

package deploy

import (
	"log/slog"
	"testing"

	"github.com/prometheus/prometheus/config"
	_ "github.com/prometheus/prometheus/discovery/dns" // It registers what the file names.
)

// TestPrometheusLoads reads the configuration as Prometheus does.
func TestPrometheusLoads(t *testing.T) {
	configuration, err := config.Load(string(read(t, "prometheus/prometheus.yml")),
		slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	scrapes, err := configuration.GetScrapeConfigs()
	if err != nil || len(scrapes) != 1 || len(scrapes[0].ServiceDiscoveryConfigs) != 1 ||
		scrapes[0].MetricsPath != "/metrics" {
		t.Errorf("it scrapes %+v, %v", scrapes, err)
	}
}
