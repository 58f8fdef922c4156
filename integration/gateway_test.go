package integration

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/fcgi"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/emulator"
)

// claims returns the payload of a token.
func claims(t *testing.T, jwt string) map[string]any {
	t.Helper()
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(jwt, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var c map[string]any
	if err := json.Unmarshal(payload, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDocumentPageGetsItsToken(t *testing.T) {
	s := newStage(t)
	s.load(simpleSite)
	first := s.token("/documents/doc1")
	allowed := claims(t, first)["allowed_documents"].([]any)[0].(map[string]any)
	if allowed["document_id"] != "doc1" || permissionsOf(allowed) != "[read]" {
		t.Errorf("the token allows %v", allowed)
	}
	for range 100 {
		if s.token("/documents/doc1") != first {
			t.Fatal("another token")
		}
	}
	s.wantMints(1)
	if s.token("/documents/doc2") == first {
		t.Fatal("one token for two documents")
	}
	s.wantMints(2)
	s.get("/elsewhere", 200)
	if got := s.app.last().values("X-Viewer-Session"); len(got) != 0 {
		t.Errorf("off the viewer routes the app saw %q", got)
	}
	if config := s.config(); !strings.Contains(config, "viewer_session") || strings.Contains(config, testKey) {
		t.Errorf("the config as the admin API shows it: %s", config)
	}
}

func TestBurstForOneColdDocument(t *testing.T) {
	s := newStage(t)
	s.load(simpleSite)
	s.api.SetFault(emulator.Fault{Delay: caddy.Duration(300 * time.Millisecond)})
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() { s.get("/documents/cold", 200) })
	}
	wg.Wait()
	s.wantMints(1)
	tokens := make(map[string]int)
	for _, request := range s.app.all() {
		tokens[request.token(t)]++
	}
	if len(tokens) != 1 || len(s.app.all()) != 200 {
		t.Errorf("%d different tokens in %d requests", len(tokens), len(s.app.all()))
	}
}

func TestDeadAPI(t *testing.T) {
	s := newStage(t)
	s.load(strings.Replace(simpleSite, "document_path", "timeout 500ms\n\t\tdocument_path", 1))
	cached := s.token("/documents/cached")

	t.Run("hangs", func(t *testing.T) {
		s.api.SetFault(emulator.Fault{Mode: "hang"})
		if body := s.get("/documents/cold", http.StatusGatewayTimeout); body != "" {
			t.Errorf("body %q", body)
		}
		if s.token("/documents/cached") != cached {
			t.Error("the cached token is not used")
		}
		s.api.SetFault(emulator.Fault{})
	})
	t.Run("answers 500", func(t *testing.T) {
		s.api.SetFault(emulator.Fault{Mode: "status", Status: 500})
		resp, _ := s.do("GET", "/documents/failing")
		if resp.StatusCode != 502 || resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("status %d, Cache-Control %q", resp.StatusCode, resp.Header.Get("Cache-Control"))
		}
		s.api.SetFault(emulator.Fault{})
	})
	t.Run("throttles", func(t *testing.T) {
		s.api.SetFault(emulator.Fault{Mode: "status", Status: 429, RetryAfter: "1"})
		resp, _ := s.do("GET", "/documents/throttled")
		if resp.StatusCode != 503 || resp.Header.Get("Retry-After") != "1" {
			t.Errorf("status %d, Retry-After %q", resp.StatusCode, resp.Header.Get("Retry-After"))
		}
		s.api.SetFault(emulator.Fault{})
		s.eventually("/documents/throttled")
	})
	t.Run("is gone", func(t *testing.T) {
		s.api.stop()
		s.get("/documents/gone", http.StatusBadGateway)
		if s.token("/documents/cached") != cached {
			t.Error("the cached token is not used")
		}
		s.api.restart(t)
		s.eventually("/documents/gone")
		s.eventually("/documents/cold")
	})
}

// eventually asks until there is a token, for as long as the back-off may last.
func (s *stage) eventually(path string) {
	s.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for time.Now().Before(deadline) {
		// A listener that changes hands may drop a connection: that is Caddy's.
		if resp, err := http.Get("http://" + s.gateway + path); err == nil {
			resp.Body.Close()
			if resp.StatusCode == 200 {
				s.app.last().token(s.t)
				return
			}
		}
		<-tick.C
	}
	s.t.Fatalf("%s: no token although the API is back", path)
}

// forward_auth leaves the auth server's address in the request; the API key
// must not follow it there.
func TestKeyGoesToTheEndpointOnly(t *testing.T) {
	s := newStage(t)
	auth := newApp(t)
	auth.setAnswer("HTTP/1.1 200 OK\nContent-Length: 0\nRemote-User: alice\n\n")
	site := strings.ReplaceAll(`GATEWAY {
	forward_auth AUTH {
		uri /verify
		copy_headers Remote-User
	}
	viewer_session {
		endpoint API/viewer/sessions
		user_id {http.reverse_proxy.header.Remote-User}
		document_path /documents/:id
	}
	reverse_proxy APP
}
`, "AUTH", auth.address)
	s.load(site)
	for i := range 20 {
		if got := claims(t, s.token(fmt.Sprint("/documents/doc", i)))["user_id"]; got != "alice" {
			t.Fatalf("user_id %v", got)
		}
	}
	s.wantMints(20)
	for _, request := range append(auth.all(), s.app.all()...) {
		if strings.Contains(request.head+request.body, testKey) || strings.Contains(request.head, "/viewer/sessions") {
			t.Fatalf("the key went astray:\n%s", request.head)
		}
	}

	t.Run("the user is who the auth server says", func(t *testing.T) {
		got := claims(t, s.token("/documents/doc0", "Remote-User", "mallory"))
		if got["user_id"] != "alice" {
			t.Errorf("user_id %v", got["user_id"])
		}
		auth.setAnswer("HTTP/1.1 200 OK\nContent-Length: 0\nRemote-User: bob\n\n")
		if got := claims(t, s.token("/documents/doc0"))["user_id"]; got != "bob" {
			t.Errorf("user_id %v", got)
		}
		auth.setAnswer("HTTP/1.1 200 OK\nContent-Length: 0\n\n")
		s.get("/documents/doc0", 401, "Remote-User", "mallory")
		auth.setAnswer("HTTP/1.1 403 Forbidden\nContent-Length: 0\n\n")
		s.app.forget()
		s.get("/documents/doc0", 403)
		if len(s.app.all()) != 0 {
			t.Error("the app was asked although the auth server said no")
		}
	})
}

func TestErrorRoutesGetNoToken(t *testing.T) {
	s := newStage(t)
	s.load(`GATEWAY {
	viewer_session {
		endpoint API/viewer/sessions
		document_path /documents/:id
	}
	handle /documents/broken {
		error 418
	}
	reverse_proxy APP
	handle_errors {
		rewrite * /error-page
		reverse_proxy APP
	}
}
`)
	s.token("/documents/fine")
	s.api.SetFault(emulator.Fault{Mode: "status", Status: 500, DocumentID: "failing"})
	for _, path := range []string{"/documents/broken", "/documents/failing"} {
		s.app.forget()
		s.do("GET", path, "X-Viewer-Session", "forged")
		got := s.app.last()
		if !strings.HasPrefix(got.head, "GET /error-page") {
			t.Fatalf("%s: the error route was not taken:\n%s", path, got.head)
		}
		if values := got.values("X-Viewer-Session"); len(values) != 0 {
			t.Errorf("%s: the error route saw %q", path, values)
		}
	}
}

// Where an error comes before the directive has run, the directive in the error
// routes strips as well; it gives them no token.
func TestDirectiveInErrorRoutesOnlyStrips(t *testing.T) {
	s := newStage(t)
	s.load(`(viewer) {
	viewer_session {
		endpoint API/viewer/sessions
		document_path /documents/:id
	}
}
GATEWAY {
	forward_auth 127.0.0.1:1 {
		uri /
	}
	import viewer
	reverse_proxy APP
	handle_errors {
		import viewer
		reverse_proxy APP
	}
}
`)
	s.do("GET", "/documents/doc", "X-Viewer-Session", "forged")
	if got := s.app.last(); !strings.HasPrefix(got.head, "GET /documents/doc") || len(got.values("X-Viewer-Session")) != 0 {
		t.Errorf("the error route saw\n%s", got.head)
	}
	s.wantMints(0)
}

func TestPurge(t *testing.T) {
	s := newStage(t)
	s.load(simpleSite)
	purge := func(body string, status int) string {
		t.Helper()
		resp, err := http.Post("http://"+s.admin+"/viewer_session/purge", "application/x-www-form-urlencoded", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		s.wantNoSecretIn("the admin API's answer", answer)
		if resp.StatusCode != status {
			t.Fatalf("purge %s: status %d, want %d: %s", body, resp.StatusCode, status, answer)
		}
		return string(answer)
	}
	a, b := s.token("/documents/a"), s.token("/documents/b")
	if got := purge(`{"all":true,"document_id":"a"}`, 400); !strings.Contains(got, "say what to purge") {
		t.Errorf("the error does not help: %s", got)
	}
	if got := purge(`{"document_id":"a"}`, 200); !strings.Contains(got, `"purged": 1,`) {
		t.Errorf("purged: %s", got)
	}
	if s.token("/documents/a") == a || s.token("/documents/b") != b {
		t.Error("not just the one document was forgotten")
	}
	s.wantMints(3)
	purge(`{"all":true}`, 200)
	if s.token("/documents/b") == b {
		t.Error("a token is left after all were purged")
	}
	s.wantMints(4)
}

func TestReloadInTheMiddleOfTraffic(t *testing.T) {
	s := newStage(t)
	s.load(simpleSite)
	s.api.SetFault(emulator.Fault{Delay: caddy.Duration(100 * time.Millisecond)})
	const documents = 5
	var stop atomic.Bool
	var requests atomic.Int64
	var wg sync.WaitGroup
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}}
	defer client.CloseIdleConnections()
	for i := range 8 {
		wg.Go(func() {
			for j := 0; !stop.Load(); j++ {
				resp, err := client.Get("http://" + s.gateway + fmt.Sprint("/documents/doc", (i+j)%documents))
				if err != nil {
					// A listener that changes hands may drop a connection that
					// it has not accepted yet: that is Caddy's, not ours.
					continue
				}
				resp.Body.Close()
				requests.Add(1)
				if resp.StatusCode != 200 {
					t.Errorf("status %d in the middle of a reload", resp.StatusCode)
				}
			}
		})
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for i := range 10 {
		for before := requests.Load(); requests.Load() < before+50; {
			<-tick.C
		}
		if i%3 == 2 {
			if err := s.tryLoad(strings.Replace(simpleSite, "reverse_proxy", "reverse_proxy {\n transport http {\n versions 9\n}\n}\nreverse_proxy", 1)); err == nil {
				t.Error("a broken config was loaded")
			}
			continue
		}
		s.load(strings.Replace(simpleSite, "reverse_proxy", fmt.Sprintf("header X-Config %d\n\treverse_proxy", i), 1))
	}
	stop.Store(true)
	wg.Wait()
	s.wantMints(documents)
	for _, request := range s.app.all() {
		request.token(t)
	}
}

// The config that is loaded is not touched by one that is refused, and an API
// key that is missing is told when the config loads.
func TestBadConfigIsRefusedWhenItLoads(t *testing.T) {
	s := newStage(t)
	s.load(simpleSite)
	token := s.token("/documents/doc")
	for name, tc := range map[string]struct{ from, to, want string }{
		"key not set":   {"document_path", "api_key {env.NO_SUCH_KEY}\n\t\tdocument_path", "{env.NO_SUCH_KEY} is empty or unknown"},
		"key literal":   {"document_path", "api_key " + testKey + "\n\t\tdocument_path", "write one placeholder"},
		"everybody":     {"document_path", "permissions read write\n\t\tdocument_path", "everybody would get the same token"},
		"no id":         {"/documents/:id", "/documents/*", "has no :id"},
		"unknown unit":  {"document_path", "ttl 1w\n\t\tdocument_path", "is not a duration"},
		"matcher given": {"viewer_session {", "viewer_session /documents/* {", "takes no matcher"},
	} {
		t.Run(name, func(t *testing.T) {
			err := s.tryLoad(strings.Replace(simpleSite, tc.from, tc.to, 1))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error %v, want one that says %q", err, tc.want)
			}
			if strings.Contains(err.Error(), testKey) {
				t.Errorf("the error holds the key: %v", err)
			}
			if s.token("/documents/doc") != token {
				t.Error("the refused config took the token with it")
			}
		})
	}
	s.wantMints(1)
}

func TestRotatedKeyFileNeedsNoReload(t *testing.T) {
	s := newStage(t)
	file := s.logFile + ".key"
	if err := os.WriteFile(file, []byte("pdf_live_wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.load(strings.Replace(simpleSite, "document_path", "api_key {file."+file+"}\n\t\tdocument_path", 1))
	s.get("/documents/doc", 502)
	if err := os.WriteFile(file, []byte(testKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.token("/documents/doc")
}

func TestPassCarriesOnWithoutAToken(t *testing.T) {
	s := newStage(t)
	s.load(`GATEWAY {
	viewer_session {
		endpoint API/viewer/sessions
		document_path /documents/:id
		on_error pass
	}
	reverse_proxy APP {
		header_up X-Why {http.viewer_session.error}
	}
}
`)
	s.api.SetFault(emulator.Fault{Mode: "status", Status: 403})
	s.get("/documents/doc", 200, "X-Viewer-Session", "forged")
	got := s.app.last()
	if len(got.values("X-Viewer-Session")) != 0 || fmt.Sprint(got.values("X-Why")) != "[key_refused]" {
		t.Errorf("the app saw\n%s", got.head)
	}
}

func TestAccessLogSaysWhatHappened(t *testing.T) {
	s := newStage(t)
	s.load(strings.Replace(simpleSite, "viewer_session {", "log\n\tviewer_session {", 1))
	s.token("/documents/doc")
	s.token("/documents/doc")
	s.get("/elsewhere", 200)
	s.api.SetFault(emulator.Fault{Mode: "status", Status: 422})
	s.get("/documents/refused", 502)
	s.do("OPTIONS", "/documents/doc")

	log, err := os.ReadFile(s.logFile)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(log)) {
		var entry struct {
			Logger  string
			Request struct{ URI string }
			Session struct {
				DocumentID string `json:"document_id"`
				Result     string
				ExpiresAt  int64 `json:"expires_at"`
				Error      string
			} `json:"viewer_session"`
		}
		if json.Unmarshal([]byte(line), &entry) != nil || !strings.HasPrefix(entry.Logger, "http.log.access") {
			continue
		}
		v := entry.Session
		got = append(got, fmt.Sprint(entry.Request.URI, " ", v.DocumentID, " ", v.Result, " ", v.ExpiresAt > time.Now().Unix(), " ", v.Error))
	}
	want := []string{
		"/documents/doc doc minted true ", "/documents/doc doc hit true ", "/elsewhere   false ",
		"/documents/refused refused error false rejected", "/documents/doc doc bypass false ",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("the access log says\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// With request headers logged in the clear as reverse_proxy does at debug level,
// the filter of docs/security.md is what keeps tokens out; without it they show.
func TestLogFilterIsNeeded(t *testing.T) {
	s := newStage(t)
	if err := loadText(strings.Replace(s.fill(globalOptions+simpleSite),
		"request>headers>X-Viewer-Session delete", "request>headers>X-Nothing delete", 1)); err != nil {
		t.Fatal(err)
	}
	token := s.token("/documents/doc")
	log, err := os.ReadFile(s.logFile)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(log), token) {
		t.Error("debug logs hold no request headers any more: the docs need not warn of it")
	}
	if err := os.WriteFile(s.logFile, []byte("searched already\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// The debug log of php_fastcgi shows headers as variables. The filter knows them.
func TestLogFilterForFastCGI(t *testing.T) {
	s := newStage(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		_ = fcgi.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, strings.Count(r.Header.Get("X-Viewer-Session"), "."))
		}))
	}()
	site := strings.Replace(simpleSite, "reverse_proxy APP", "reverse_proxy "+listener.Addr().String()+" {\n\t\ttransport fastcgi\n\t}", 1)
	for _, filtered := range []bool{true, false} {
		text := s.fill(globalOptions + site)
		if !filtered {
			text = strings.Replace(text, "env>HTTP_X_VIEWER_SESSION delete", "env>HTTP_X_NOTHING delete", 1)
		}
		if err := loadText(text); err != nil {
			t.Fatal(err)
		}
		if body := s.get("/documents/doc", 200); body != "2" {
			t.Errorf("the app sees a token with %s dots", body)
		}
		log, err := os.ReadFile(s.logFile)
		if err != nil || !strings.Contains(string(log), `"env":`) || (secretIn(log) == nil) != filtered {
			t.Errorf("%v; filtered %t: the variables are logged: %t; with a token: %t", err, filtered, strings.Contains(string(log), `"env":`), secretIn(log) != nil)
		}
	}
	if err := os.WriteFile(s.logFile, []byte("searched already\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}
