package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/viewersession/caddy-viewer-session/emulator"
)

// scrape returns what Prometheus would get, by name and labels but endpoint's.
// Counters may have begun in another test whose stand-in had the same port.
func (s *stage) scrape() map[string]float64 {
	s.t.Helper()
	text := s.adminGet("/metrics")
	values := make(map[string]float64)
	for _, m := range regexp.MustCompile(`(?m)^caddy_viewer_session_(\w+){endpoint="([^"]*)",?([^}]*)} (.*)$`).FindAllStringSubmatch(text, -1) {
		if m[2] == strings.TrimPrefix(s.api.url, "http://") {
			value, err := strconv.ParseFloat(m[4], 64)
			if err != nil {
				s.t.Fatal(err)
			}
			values[strings.TrimSpace(m[1]+" "+m[3])] = value
		}
	}
	return values
}

func (s *stage) adminGet(path string) string {
	s.t.Helper()
	resp, err := http.Get("http://" + s.admin + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	s.wantNoSecretIn("the admin API's answer", fmt.Appendf(nil, "%v %s", resp.Header, body))
	if resp.StatusCode != 200 {
		s.t.Fatalf("%s: %d %s", path, resp.StatusCode, body)
	}
	return string(body)
}

// Nothing is reset by a reload, be it one that keeps the pool or one that does not.
func TestMetricsSurviveReloads(t *testing.T) {
	s := newStage(t)
	s.load(simpleSite)
	start := s.scrape()
	for range 5 {
		s.token("/documents/doc")
	}
	s.api.SetFault(emulator.Fault{Mode: "status", Status: 409})
	s.get("/documents/rejected", 502)
	s.api.SetFault(emulator.Fault{})
	before := s.scrape()
	for name, want := range map[string]float64{
		`requests_total result="minted"`: 1, `requests_total result="hit"`: 4, `requests_total result="error"`: 1,
		`mints_total outcome="ok"`: 1, `mints_total outcome="rejected"`: 1, "mint_duration_seconds_count": 2, "cached_tokens": 1, "mints_in_flight": 0,
	} {
		if got := before[name] - start[name]; got != want {
			t.Errorf("%s has risen by %v, want %v", name, got, want)
		}
	}
	for name, site := range map[string]string{
		"the same":            simpleSite,
		"another handler":     strings.Replace(simpleSite, "reverse_proxy", "header X-Config 1\n\treverse_proxy", 1),
		"another pool":        strings.Replace(simpleSite, "document_path", "timeout 3s\n\t\tdocument_path", 1),
		"another, once more":  strings.Replace(simpleSite, "document_path", "timeout 4s\n\t\tdocument_path", 1),
		"two handlers":        strings.Replace(simpleSite, "reverse_proxy", "viewer_session {\nendpoint API/viewer/sessions\ntimeout 2s\nrequest_header X-Other\ndocument_path /files/:id\n}\nreverse_proxy", 1),
		"without the handler": "GATEWAY {\n\treverse_proxy APP\n}\n",
	} {
		s.load(site)
		if name == "without the handler" {
			continue // and so without its metrics
		}
		after := s.scrape()
		for metric, value := range before {
			if metric == "cached_tokens" || metric == "cached_bytes" { // gauges of a pool that may be gone
				continue
			}
			if after[metric] != value {
				t.Errorf("%s: %s went from %v to %v", name, metric, value, after[metric])
			}
		}
	}
	s.load(simpleSite)
	if hits := s.scrape()[`requests_total result="hit"`]; hits != before[`requests_total result="hit"`] {
		t.Errorf("after a config without the handler: %v hits", hits)
	}
}

// The API is killed under load: from the metrics, the log and the admin API
// alone one can tell what happened, since when, and that users are served.
func TestAnOutageCanBeSeen(t *testing.T) {
	s := newStage(t)
	s.load(simpleSite)
	start := s.scrape()
	for i := range 20 {
		s.token(fmt.Sprint("/documents/open", i))
	}
	killed := time.Now()
	s.api.stop()
	for i := range 5 {
		s.get(fmt.Sprint("/documents/new", i), 502)
	}
	for i := range 20 {
		s.token(fmt.Sprint("/documents/open", i))
	}

	metrics := s.scrape()
	rise := func(name string) float64 { return metrics[name] - start[name] }
	if rise(`requests_total result="hit"`) != 20 || rise(`requests_total result="error"`) != 5 || rise(`mints_total outcome="unavailable"`) == 0 {
		t.Errorf("the metrics do not say what happened: %v", metrics)
	}
	if until := metrics["backoff_until_timestamp_seconds"]; until < float64(killed.Unix()) {
		t.Errorf("the metrics do not say that there is a back-off: %v", until)
	}

	var status struct {
		Pools []struct {
			Endpoint     string            `json:"endpoint"`
			Requests     map[string]uint64 `json:"requests"`
			FailingSince time.Time         `json:"failing_since"`
			LastError    struct {
				Reason string `json:"reason"`
				Error  string `json:"error"`
			} `json:"last_error"`
		} `json:"pools"`
	}
	if err := json.Unmarshal([]byte(s.adminGet("/viewer_session/")), &status); err != nil || len(status.Pools) != 1 {
		t.Fatalf("%v: %+v", err, status)
	}
	pool := status.Pools[0]
	if pool.FailingSince.Before(killed.Add(-time.Second)) || pool.FailingSince.After(time.Now()) || pool.LastError.Reason != "unavailable" ||
		!strings.Contains(pool.LastError.Error, "cannot be reached") || pool.Requests["hit"] != 20 {
		t.Errorf("the admin API does not say what happened: %+v", pool)
	}

	log, err := os.ReadFile(s.logFile)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(log), `"cannot mint a session token"`); n == 0 || n > 2 {
		t.Errorf("the log says %d times that tokens cannot be minted", n)
	}
	s.api.restart(t)
	s.eventually("/documents/new0")
	if log, err = os.ReadFile(s.logFile); err != nil || !strings.Contains(string(log), "session tokens are minted again") {
		t.Errorf("%v: the log does not say that it is over", err)
	}
}

// With Caddy's tracing, the mint belongs to the request's trace, and the API
// gets to know of it.
func TestTracing(t *testing.T) {
	t.Setenv("OTEL_TRACES_EXPORTER", "none")
	s := newStage(t)
	s.load(strings.Replace(simpleSite, "viewer_session {", "tracing {\n\t\tspan gateway\n\t}\n\tviewer_session {", 1))
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	s.token("/documents/doc", "Traceparent", "00-"+id+"-00f067aa0ba902b7-01")
	asked := s.api.minted()
	if len(asked) != 1 || !strings.HasPrefix(asked[0].traceparent, "00-"+id+"-") || strings.Contains(asked[0].traceparent, "00f067aa0ba902b7") {
		t.Errorf("the API got %+v", asked)
	}
	if app := s.app.last().values("Traceparent"); len(app) != 1 || len(asked) == 1 && app[0] == asked[0].traceparent {
		t.Errorf("the app got %q, which is to be another span's", app)
	}
	s.load(simpleSite)
	s.token("/documents/other", "Traceparent", "00-"+id+"-00f067aa0ba902b7-01")
	if asked := s.api.minted(); len(asked) != 1 || asked[0].traceparent != "" {
		t.Errorf("without tracing the API got %+v", asked)
	}
}

// observability runs the example, and compares what its alerts and dashboard
// ask for with what there is.
func observability(t *testing.T, s *stage, text string) {
	t.Setenv("OTEL_TRACES_EXPORTER", "none")
	metrics := freeAddress(t)
	text = substitute(t, text,
		"docs.example.com {", "http://"+s.gateway+" {", "app:3000", s.app.address, "127.0.0.1:9180", metrics,
		"viewer_session {\n", "viewer_session {\n\t\tendpoint API/viewer/sessions\n")
	text = strings.Replace(text, "\tlog {\n", "\tadmin ADMIN\n\tauto_https off\n\tpersist_config off\n\tdefault_bind 127.0.0.1\n\tlog {\n\t\tlevel DEBUG\n\t\toutput file \"LOGFILE\"\n", 1)
	if err := loadText(s.fill(text)); err != nil {
		t.Fatal(err)
	}
	s.token("/documents/doc", "X-Viewer-Rejected", "secret")
	resp, err := http.Get("http://" + metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	scraped := string(body)
	s.wantNoSecretIn("the metrics", body)
	log, err := os.ReadFile(s.logFile)
	if err != nil || !strings.Contains(string(log), `"viewer_session":{"document_id":"doc","result":"minted"`) || strings.Contains(string(log), `"secret"`) {
		t.Errorf("%v: the access log\n%s", err, log)
	}

	used := make(map[string]bool)
	for _, file := range []string{"alerts.yml", "dashboard.json"} {
		text, err := os.ReadFile("examples/observability/" + file)
		if err != nil {
			t.Fatal(err)
		}
		names := regexp.MustCompile(`caddy_viewer_session_\w+`).FindAllString(string(text), -1)
		if len(names) < 9 {
			t.Errorf("%s names %d metrics", file, len(names))
		}
		for _, name := range names {
			used[strings.TrimSuffix(name, "_bucket")] = true
			if !strings.Contains(scraped, "\n"+name+"{") {
				t.Errorf("%s: there is no %s", file, name)
			}
		}
		for _, label := range regexp.MustCompile(`(result|outcome)!?=~?\\?"([^"\\]+)`).FindAllStringSubmatch(string(text), -1) {
			for value := range strings.SplitSeq(label[2], "|") {
				if !strings.Contains(scraped, label[1]+`="`+value+`"`) {
					t.Errorf("%s: there is no %s %s", file, label[1], value)
				}
			}
		}
	}
	for _, family := range regexp.MustCompile(`# TYPE (caddy_viewer_session_\w+)`).FindAllStringSubmatch(scraped, -1) {
		if !used[family[1]] {
			t.Errorf("neither alerts nor dashboard use %s", family[1])
		}
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if text, err := os.ReadFile("examples/observability/dashboard.json"); err != nil || json.Unmarshal(text, &dashboard) != nil || len(dashboard.Panels) < 8 {
		t.Errorf("%v: the dashboard has %d panels", err, len(dashboard.Panels))
	}
	for _, panel := range dashboard.Panels {
		if panel.Title == "" || len(panel.Targets) == 0 {
			t.Errorf("a panel without a title or a query: %+v", panel)
		}
	}
	// What each alert means stands in the docs.
	operations, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	alerts, err := os.ReadFile("examples/observability/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, alert := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(string(alerts), -1) {
		if !strings.Contains(string(operations), "| `"+alert[1]+"` |") {
			t.Errorf("docs/operations.md does not say what %s means", alert[1])
		}
	}
}

// An app that ends in the middle of a page has reverse_proxy log the request's
// headers, without debug. The filter of the README and the examples keeps the
// token out.
func TestAnswerThatBreaksOffLogsNoToken(t *testing.T) {
	example, err := os.ReadFile("../examples/existing-app/Caddyfile")
	if err != nil {
		t.Fatal(err)
	}
	filter := logFilter.FindString(string(example))
	if filter == "" {
		t.Fatal("the example has no filter")
	}
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, "the beginning")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	defer app.Close()
	for _, test := range []struct {
		options string
		logged  bool
	}{{filter, false}, {"\tlog {\n\t}\n", true}} {
		s := newStage(t)
		// The stage looks for tokens in its own log.
		logFile := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(s.logFile, []byte("see "+logFile+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		options := strings.Replace(test.options, "\tlog {\n", "\tlog {\n\t\toutput file \""+filepath.ToSlash(logFile)+"\"\n", 1)
		if err := loadText(s.fill("{\n\tadmin ADMIN\n\tauto_https off\n\tpersist_config off\n" + options + "}\n" + strings.ReplaceAll(simpleSite, "APP", app.Listener.Addr().String()))); err != nil {
			t.Fatal(err)
		}
		if resp, err := http.Get("http://" + s.gateway + "/documents/doc"); err == nil {
			_, _ = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		log, err := os.ReadFile(logFile)
		if err != nil || !strings.Contains(string(log), "aborting with incomplete response") {
			t.Fatalf("%v: the log\n%s", err, log)
		}
		tokens := s.api.issued()
		if len(tokens) != 1 || strings.Contains(string(log), tokens[0]) != test.logged {
			t.Errorf("%d tokens, logged: %t, want %t", len(tokens), !test.logged, test.logged)
		}
	}
}
