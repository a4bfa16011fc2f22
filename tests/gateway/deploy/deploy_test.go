// Package deploy checks examples/deploy by the tools' own types and parsers. VRUST_URL names a
// running server, whose metrics the rules and the dashboard must use.
package deploy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/config"
	_ "github.com/prometheus/prometheus/discovery/dns" // It registers what the file names.
	"github.com/prometheus/prometheus/model/rulefmt"
	promql "github.com/prometheus/prometheus/promql/parser"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"
)

const root = "../../../examples/deploy"

func read(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// strictly reads a manifest into a Kubernetes type, which must know every field.
func strictly(t *testing.T, text []byte, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict(text, into); err != nil {
		t.Error(err)
	}
}

func TestKubernetes(t *testing.T) {
	var deployment appsv1.Deployment
	strictly(t, read(t, "kubernetes/deployment.yaml"), &deployment)
	pod := deployment.Spec.Template
	container := pod.Spec.Containers[0]
	for key, value := range deployment.Spec.Selector.MatchLabels {
		if pod.Labels[key] != value {
			t.Errorf("the pods lack %s=%s", key, value)
		}
	}
	grace := *pod.Spec.TerminationGracePeriodSeconds
	if container.ReadinessProbe.HTTPGet.Path != "/health" || grace < 300 {
		t.Errorf("probes %+v", container.ReadinessProbe)
	}
	var service corev1.Service
	strictly(t, read(t, "kubernetes/service.yaml"), &service)
	for key, value := range service.Spec.Selector {
		if pod.Labels[key] != value {
			t.Errorf("the service looks for %s=%s", key, value)
		}
	}
	if service.Spec.Ports[0].TargetPort.StrVal != container.Ports[0].Name {
		t.Errorf("the service's port %+v", service.Spec.Ports)
	}
	var claim corev1.PersistentVolumeClaim
	strictly(t, read(t, "kubernetes/pvc.yaml"), &claim)
	if claim.Name != pod.Spec.Volumes[0].PersistentVolumeClaim.ClaimName {
		t.Errorf("claim %s", claim.Name)
	}
	var scaler autoscalingv2.HorizontalPodAutoscaler
	strictly(t, read(t, "kubernetes/hpa.yaml"), &scaler)
	if scaler.Spec.ScaleTargetRef.Name != deployment.Name {
		t.Errorf("it scales %s", scaler.Spec.ScaleTargetRef.Name)
	}
	expectMetric(t, scaler.Spec.Metrics[0].Pods.Metric.Name)
	parts := bytes.Split(read(t, "kubernetes/inferencepool.yaml"), []byte("\n---\n"))
	var pool inferencev1.InferencePool
	strictly(t, parts[0], &pool)
	var route gatewayv1.HTTPRoute
	strictly(t, parts[1], &route)
	if string(route.Spec.Rules[0].BackendRefs[0].Name) != pool.Name {
		t.Errorf("the route leads to %s", route.Spec.Rules[0].BackendRefs[0].Name)
	}
	if int32(pool.Spec.TargetPorts[0].Number) != container.Ports[0].ContainerPort {
		t.Errorf("the pool's port is %v", pool.Spec.TargetPorts)
	}
	var keda struct {
		Spec struct {
			Triggers []struct{ Metadata map[string]string }
		}
	}
	if err := yaml.Unmarshal(read(t, "kubernetes/keda.yaml"), &keda); err != nil {
		t.Error(err)
	}
	for _, trigger := range keda.Spec.Triggers {
		expectQuery(t, trigger.Metadata["query"])
	}
	if len(keda.Spec.Triggers) != 2 {
		t.Errorf("%d triggers", len(keda.Spec.Triggers))
	}
}

func TestCompose(t *testing.T) {
	options, err := cli.NewProjectOptions([]string{filepath.Join(root, "compose.yaml")},
		cli.WithProfiles([]string{"monitoring"}))
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if names := project.ServiceNames(); len(names) != 4 {
		t.Errorf("services %v", names)
	}
	for _, service := range project.Services {
		for _, volume := range service.Volumes {
			if volume.Type != "bind" {
				continue
			}
			if _, err := os.Stat(volume.Source); err != nil {
				t.Errorf("%s: %v", service.Name, err)
			}
		}
	}
}

func TestDockerfiles(t *testing.T) {
	for _, name := range []string{"Dockerfile", "Dockerfile.cuda"} {
		parsed, err := parser.Parse(bytes.NewReader(read(t, name)))
		if err != nil {
			t.Fatal(name, err)
		}
		stages, _, err := instructions.Parse(parsed.AST, nil)
		if err != nil {
			t.Fatal(name, err)
		}
		expectStages(t, name, stages)
		last := stages[len(stages)-1]
		user, entry := "", []string(nil)
		for _, command := range last.Commands {
			switch c := command.(type) {
			case *instructions.UserCommand:
				user = c.User
			case *instructions.EntrypointCommand:
				entry = c.CmdLine
			}
		}
		if user == "" || user == "0" || user == "root" || len(parsed.Warnings) > 0 {
			t.Errorf("%s: user %q, warnings %v", name, user, parsed.Warnings)
		}
		if !slices.Equal(entry, []string{"vrust", "serve"}) {
			t.Errorf("%s: it runs %v", name, entry)
		}
	}
}

// expectStages checks that what is copied from a stage names one before, and that the files copied
// from the repository are there.
func expectStages(t *testing.T, name string, stages []instructions.Stage) {
	t.Helper()
	known := map[string]bool{}
	for _, stage := range stages {
		for _, command := range stage.Commands {
			files, ok := command.(*instructions.CopyCommand)
			if !ok {
				continue
			}
			if files.From != "" {
				if !known[files.From] {
					t.Errorf("%s: no stage %s before %s", name, files.From, stage.Name)
				}
				continue
			}
			for _, path := range files.SourcePaths {
				if _, err := os.Stat(filepath.Join(root, "../..", path)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		known[stage.Name] = true
	}
}

func TestRules(t *testing.T) {
	groups, problems := rulefmt.Parse(read(t, "prometheus/rules.yml"), false, model.UTF8Validation)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			expectQuery(t, rule.Expr)
		}
	}
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
	for _, name := range configuration.RuleFiles {
		read(t, filepath.Join("prometheus", name))
	}
}

func TestDashboard(t *testing.T) {
	var dashboard struct {
		Panels []struct {
			ID      int
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(read(t, "grafana/dashboard.json"), &dashboard); err != nil {
		t.Fatal(err)
	}
	places := map[[2]int]bool{}
	ids := map[int]bool{}
	for _, panel := range dashboard.Panels {
		at := [2]int{panel.GridPos.X, panel.GridPos.Y}
		if places[at] || ids[panel.ID] || panel.GridPos.X+panel.GridPos.W > 24 {
			t.Errorf("panel %d at %v", panel.ID, at)
		}
		places[at], ids[panel.ID] = true, true
		for _, target := range panel.Targets {
			expectQuery(t, strings.ReplaceAll(target.Expr, "$__rate_interval", "1m"))
		}
	}
	if len(dashboard.Panels) < 8 {
		t.Errorf("%d panels", len(dashboard.Panels))
	}
}

// expectQuery parses a query and checks that the server has its metrics.
func expectQuery(t *testing.T, query string) {
	t.Helper()
	expression, err := promql.ParseExpr(query)
	if err != nil {
		t.Errorf("%s: %v", query, err)
		return
	}
	promql.Inspect(expression, func(node promql.Node, _ []promql.Node) error {
		if selector, ok := node.(*promql.VectorSelector); ok && selector.Name != "up" {
			expectMetric(t, selector.Name)
		}
		return nil
	})
}

var served []string

func expectMetric(t *testing.T, name string) {
	t.Helper()
	if served == nil {
		response, err := http.Get(os.Getenv("VRUST_URL") + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		sample := regexp.MustCompile(`^[a-zA-Z_:][a-zA-Z0-9_:]*`)
		for lines := bufio.NewScanner(response.Body); lines.Scan(); {
			served = append(served, sample.FindString(lines.Text()))
		}
	}
	if !slices.Contains(served, name) {
		t.Errorf("the server has no metric %s", name)
	}
}
