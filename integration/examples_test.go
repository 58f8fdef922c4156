package integration

import (
	"encoding/json"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/viewersession/caddy-viewer-session/emulator"
)

// Every example is loaded as it stands, but for the names that its user is told
// to change, and asked for a document.
var examples = map[string]func(*testing.T, *stage, string){
	"quickstart":         quickstart,
	"existing-app":       existingApp,
	"basic-auth":         basicAuth,
	"cookie":             cookie,
	"ids-from-elsewhere": idsFromElsewhere,
	"static-site":        staticSite,
	"outbound-proxy":     outboundProxy,
	"server-rendered":    serverRendered,
	"single-page-app":    singlePageApp,
	"own-ids":            ownIDs,
	"own-documents":      ownDocuments,
	"observability":      observability,
}

// withoutTokenInHeaders are examples in which no request to an app holds a token:
// it is in a cookie, which Caddy hides, or only in answers and pages.
var withoutTokenInHeaders = map[string]bool{"cookie": true, "single-page-app": true, "own-ids": true, "own-documents": true}

func TestExamples(t *testing.T) {
	entries, err := os.ReadDir("../examples")
	if err != nil || len(entries) < len(examples) {
		t.Fatal("an example is missing", err)
	}
	for _, entry := range entries {
		name := entry.Name()
		if !entry.IsDir() {
			continue // the page about them
		}
		t.Run(name, func(t *testing.T) {
			exercise := examples[name]
			if exercise == nil {
				t.Fatal("an example without a test")
			}
			text, err := os.ReadFile(filepath.Join("../examples", name, "Caddyfile"))
			if err != nil {
				t.Fatal(err)
			}
			if formatted := caddyfile.Format(text); string(formatted) != string(text) {
				t.Error("caddy fmt would change it")
			}
			if strings.Contains(string(text), "reverse_proxy") && !withoutTokenInHeaders[name] && !strings.Contains(string(text), "request>headers>X-Viewer-Session delete") {
				t.Error("reverse_proxy may log tokens")
			}
			// As it stands, it adapts without a warning.
			if _, err := adapt(string(text), "Caddyfile"); err != nil {
				t.Error(err)
			}
			t.Chdir("..") // where the docs have their commands run
			exercise(t, newStage(t), string(text))
		})
	}
}

// substitute replaces names, each of which must be there.
func substitute(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("%q is not in the example any more", pairs[i])
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	return text
}

// logFilter is how an example keeps tokens out of the log.
var logFilter = regexp.MustCompile(`(?m)^(?:\t# .*\n)*\tlog \{\n\t\tformat filter \{\n\t\t\trequest>headers>X-Viewer-Session delete\n\t\t\}\n\t\}\n`)

// site turns an example for docs.example.com into one that runs here. The tests
// have global options of their own, with more in the filter.
func site(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	text = strings.Replace(logFilter.ReplaceAllString(text, ""), "{\n}\n\n", "", 1)
	return substitute(t, text, append(pairs,
		"docs.example.com {", "GATEWAY {",
		"viewer_session {", "viewer_session {\n\t\tendpoint API/viewer/sessions")...)
}

func document(t *testing.T, jwt string) map[string]any {
	t.Helper()
	return claims(t, jwt)["allowed_documents"].([]any)[0].(map[string]any)
}

func existingApp(t *testing.T, s *stage, text string) {
	auth := newApp(t)
	s.load(site(t, text, "auth:9091", auth.address, "app:3000", "APP"))

	auth.setAnswer("HTTP/1.1 302 Found\nLocation: /login\nContent-Length: 0\n\n")
	s.get("/documents/doc1", 302)
	if len(s.app.all()) != 0 {
		t.Fatal("somebody without a login reached the app")
	}
	auth.setAnswer("HTTP/1.1 200 OK\nRemote-User: alice\nContent-Length: 0\n\n")
	read := s.token("/documents/doc1")
	if got := claims(t, read)["user_id"]; got != "alice" {
		t.Errorf("user_id %v", got)
	}
	if got := document(t, read)["permissions"].([]any); len(got) != 1 || got[0] != "read" {
		t.Errorf("permissions to read: %v", got)
	}
	if got := document(t, s.token("/documents/doc1/edit"))["permissions"].([]any); len(got) != 3 {
		t.Errorf("permissions to edit: %v", got)
	}
	auth.setAnswer("HTTP/1.1 200 OK\nRemote-User: bob\nContent-Length: 0\n\n")
	if got := claims(t, s.token("/documents/doc1"))["user_id"]; got != "bob" {
		t.Errorf("user_id %v", got)
	}
	s.wantMints(3)
}

func basicAuth(t *testing.T, s *stage, text string) {
	s.load(site(t, text, "app:3000", "APP"))
	s.get("/documents/doc1", 401)
	if len(s.app.all()) != 0 {
		t.Fatal("somebody without a password reached the app")
	}
	req := httptest.NewRequest("GET", "/", nil)
	req.SetBasicAuth("alice", "change me")
	if got := claims(t, s.token("/documents/doc1", "Authorization", req.Header.Get("Authorization")))["user_id"]; got != "alice" {
		t.Errorf("user_id %v", got)
	}
}

func cookie(t *testing.T, s *stage, text string) {
	s.load(site(t, text, "app:3000", "APP"))
	s.get("/documents/doc1", 200, "Cookie", "session=mine; viewer_session=forged")
	got := strings.Join(s.app.last().values("Cookie"), "; ")
	if !strings.HasPrefix(got, "viewer_session=ey") || !strings.HasSuffix(got, "; session=mine") || strings.Contains(got, "forged") {
		t.Errorf("the app saw the cookies %q", got)
	}
	if len(s.app.last().values("X-Viewer-Session")) != 0 {
		t.Error("the token is in the header as well")
	}
}

func idsFromElsewhere(t *testing.T, s *stage, text string) {
	s.load(site(t, text, "app:3000", "APP"))
	for path, want := range map[string]string{
		"/view?doc=7":                 "7",
		"/view?doc=../7":              "",
		"/view?doc=7&doc=8":           "",
		"/view":                       "",
		"/archive/2019/report-42.pdf": "42",
		"/archive/2019/report.pdf":    "",
	} {
		s.get(path, 200)
		if want == "" {
			if got := s.app.last().values("X-Viewer-Session"); len(got) != 0 {
				t.Errorf("%s: a token", path)
			}
			continue
		}
		if got := document(t, s.app.last().token(t))["document_id"]; got != want {
			t.Errorf("%s: a token for %v, want %s", path, got, want)
		}
	}
	s.wantMints(2)
}

func staticSite(t *testing.T, s *stage, text string) {
	s.load(site(t, text))
	// Here the page itself holds the token, which is this example's point.
	resp, err := http.Get("http://" + s.gateway + "/documents/floor-plan")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	tokens := s.api.issued()
	if resp.StatusCode != 200 || len(tokens) != 1 || !strings.Contains(string(body), `session: "`+tokens[0]+`"`) {
		t.Fatalf("status %d, %d tokens: %s", resp.StatusCode, len(tokens), body)
	}
	if got := resp.Header.Get("Cache-Control"); got != "private, no-store" {
		t.Errorf("Cache-Control %q", got)
	}
	s.get("/documents/other", 404, "X-Viewer-Session", "forged")
	s.get("/", 200)
	s.wantMints(1)
}

// outboundProxy has the API behind a certificate that only the example's trust
// pool knows, and reachable only through the proxy.
func outboundProxy(t *testing.T, s *stage, text string) {
	tls := httptest.NewTLSServer(s.api)
	t.Cleanup(tls.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tls.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	proxy, connects := connectProxy(t)
	s.api.url = tls.URL
	s.load(site(t, text, "app:3000", "APP", "http://proxy.internal:3128", "http://"+proxy, "/etc/caddy/proxy-ca.pem", filepath.ToSlash(ca)))
	s.token("/documents/doc1")
	s.wantMints(1)
	if got := connects(); len(got) != 1 || got[0] != tls.Listener.Addr().String() {
		t.Errorf("the proxy was asked for %q", got)
	}
}

// connectProxy is an HTTP proxy that only knows CONNECT.
func connectProxy(t *testing.T) (address string, connects func() []string) {
	t.Helper()
	var mu sync.Mutex
	var asked []string
	var tunnels sync.WaitGroup
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.Host)
		mu.Unlock()
		upstream, err := net.Dial("tcp", r.Host)
		if r.Method != http.MethodConnect || err != nil {
			http.Error(w, "no", http.StatusBadGateway)
			return
		}
		client, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(client, "HTTP/1.1 200 Connected\r\n\r\n")
		tunnels.Go(func() { _, _ = io.Copy(upstream, client); upstream.Close() })
		tunnels.Go(func() { _, _ = io.Copy(client, upstream); client.Close() })
	}))
	t.Cleanup(func() {
		srv.Close()
		// Tunnels end when Caddy has been stopped.
	})
	return srv.Listener.Addr().String(), func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), asked...)
	}
}

// quickstart runs as it is, but for the ports.
func quickstart(t *testing.T, s *stage, text string) {
	api, app := freeAddress(t), freeAddress(t)
	s.gateway = strings.Replace(s.gateway, "127.0.0.1", "localhost", 1)
	text = s.logged(substitute(t, text,
		"localhost:8080", s.gateway, "127.0.0.1:8080", strings.Replace(s.gateway, "localhost", "127.0.0.1", 1), "127.0.0.1:8081", api, "127.0.0.1:8082", app,
		"admin localhost:2020", "admin "+s.admin))
	if err := loadText(text); err != nil {
		t.Fatal(err)
	}
	type page struct {
		Document string         `json:"document"`
		Result   string         `json:"result"`
		Claims   map[string]any `json:"claims"`
	}
	ask := func(id string) page {
		t.Helper()
		var p page
		body := s.get("/documents/"+id, 200)
		if err := json.Unmarshal([]byte(body), &p); err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		if p.Document != id || p.Claims["allowed_documents"].([]any)[0].(map[string]any)["document_id"] != id {
			t.Fatalf("asked for %s: %s", id, body)
		}
		return p
	}
	stats := func() emulator.Stats {
		t.Helper()
		var st emulator.Stats
		if err := json.Unmarshal([]byte(s.get("/stand-in/stats", 200)), &st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	first := ask("floor-plan")
	if first.Result != "minted" {
		t.Errorf("result %s", first.Result)
	}
	for range 999 {
		if again := ask("floor-plan"); again.Result != "hit" || again.Claims["jti"] != first.Claims["jti"] {
			t.Fatalf("result %s, another token: %t", again.Result, again.Claims["jti"] != first.Claims["jti"])
		}
	}
	if got := stats().Mints; got != 1 {
		t.Errorf("%d mints for 1,000 requests", got)
	}
	if ask("site-survey").Claims["jti"] == first.Claims["jti"] {
		t.Error("another document, but the same token")
	}
	if got := stats().Mints; got != 2 {
		t.Errorf("%d mints for two documents", got)
	}

	// The page holds the token, as the app's page does.
	_, html := s.fetch("GET", "/documents/floor-plan", "Accept", "text/html")
	if !strings.Contains(html, "<!doctype html>") || !strings.Contains(html, "floor-plan") {
		t.Error("no page for browsers")
	}
	// It shows what explain says of it.
	explained := regexp.MustCompile(`(?s)<pre id="explained">(.*?)</pre>`).FindStringSubmatch(html)
	if explained == nil {
		t.Fatal("nothing is explained")
	}
	config := filepath.Join(t.TempDir(), "Caddyfile")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, stdout, stderr := caddyCommand(t, nil, "viewer-session", "explain", "--config", config, "http://"+s.gateway+"/documents/floor-plan")
	for line := range strings.SplitSeq(explained[1], "\n") {
		if !strings.Contains("\n"+stdout, "\n"+line+"\n") {
			t.Errorf("the page says %q, and explain\n%s%s", line, stdout, stderr)
		}
	}
	if external := regexp.MustCompile(`(src|href)="(https?:)?//[^"]*\.(js|css|woff2?)`).FindString(html); external != "" {
		t.Errorf("the page loads %s", external)
	}
	s.get("/", 200, "Accept", "text/html")

	// The stand-in is told to fail, as the page says.
	tell(t, http.MethodPut, "http://"+api+"/emulator/fault", `{"mode":"status","status":500}`, 204)
	ask("floor-plan")
	if body := s.get("/documents/cold", 502, "Accept", "text/html"); !strings.Contains(body, "502") {
		t.Errorf("the error page: %s", body)
	}
}
