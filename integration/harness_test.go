// Package integration runs the middleware in a real Caddy, against the
// stand-in of the API and an app that records the raw bytes it receives.
package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/viewersession/caddy-viewer-session"
	"github.com/viewersession/caddy-viewer-session/emulator"
)

const (
	keyEnv  = "NUTRIENT_DWS_VIEWER_API_KEY"
	testKey = "pdf_live_integration_test_key"
)

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		caddycmd.Main()
		return
	}
	// Caddy keeps state in the user's directories.
	home, err := os.MkdirTemp("", "viewer-session-test")
	if err != nil {
		panic(err)
	}
	for _, name := range []string{"HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "AppData"} {
		if err := os.Setenv(name, home); err != nil {
			panic(err)
		}
	}
	if err := os.Setenv(keyEnv, testKey); err != nil {
		panic(err)
	}
	code := m.Run()
	if browser.end != nil {
		browser.end()
	}
	_ = os.RemoveAll(home)
	os.Exit(code)
}

// stage is what a test plays on: the stand-in, the app and Caddy between them.
type stage struct {
	t   *testing.T
	api *standIn
	app *app

	gateway string // address of the site under test
	admin   string // address of the admin API
	logFile string
}

// apiBehaves is how the stand-in of a stage behaves. Tests that change it put it back.
var apiBehaves = emulator.Options{APIKey: testKey}

// newStage starts the stand-in and the app. Caddy starts with load.
func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{
		t:       t,
		api:     newStandIn(t, apiBehaves),
		app:     newApp(t),
		gateway: freeAddress(t),
		admin:   freeAddress(t),
	}
	// Not t.TempDir, which holds the test's name: Caddy would take braces in
	// it for a placeholder.
	folder, err := os.MkdirTemp("", "viewer-session-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	s.logFile = filepath.Join(folder, "caddy.log")
	t.Cleanup(func() {
		if config := s.config(); config != "" {
			s.wantNoSecretIn("the config in the admin API", []byte(config))
		}
		if err := caddy.Stop(); err != nil {
			t.Errorf("stopping Caddy: %v", err)
		}
		s.wantNoSecrets()
	})
	return s
}

// globalOptions logs everything that Caddy and its modules have to say, and
// every site has an access log. The filter is the one of docs/security.md.
const globalOptions = `{
	admin ADMIN
	auto_https off
	persist_config off
	default_bind 127.0.0.1
	grace_period 5s
	log {
		level DEBUG
		output file "LOGFILE"
		format filter {
			request>headers>X-Viewer-Session delete
			request>headers>X-Viewer-Rejected delete
			env>HTTP_X_VIEWER_SESSION delete
		}
	}
	servers {
		SERVERS
	}
}
`

// load replaces Caddy's config. In the text, GATEWAY, APP and API stand for
// the addresses.
func (s *stage) load(caddyfile string, servers ...string) {
	s.t.Helper()
	if err := s.tryLoad(caddyfile, servers...); err != nil {
		s.t.Fatalf("loading the config: %v", err)
	}
}

func (s *stage) tryLoad(caddyfile string, servers ...string) error {
	return loadText(s.fill(globalOptions+caddyfile, servers...))
}

func loadText(caddyfile string) error {
	config, err := adapt(caddyfile, "Caddyfile")
	if err != nil {
		return err
	}
	return caddy.Load(config, true)
}

func (s *stage) fill(text string, servers ...string) string {
	return strings.NewReplacer(
		"ADMIN", s.admin, "GATEWAY {", "http://"+s.gateway+" {\n\tlog\n", "GATEWAY", "http://"+s.gateway, "APP", s.app.address, "API", s.api.url,
		"LOGFILE", filepath.ToSlash(s.logFile), "SERVERS", strings.Join(servers, "\n\t\t"),
	).Replace(text)
}

func adapt(caddyfile, name string) ([]byte, error) {
	adapter := caddyconfig.GetAdapter("caddyfile")
	config, warnings, err := adapter.Adapt([]byte(caddyfile), map[string]any{"filename": name})
	if err != nil {
		return nil, err
	}
	for _, w := range warnings {
		if !strings.Contains(w.Message, "not formatted") {
			return nil, fmt.Errorf("warning: %s", w)
		}
	}
	return config, nil
}

const simpleSite = `GATEWAY {
	viewer_session {
		endpoint API/viewer/sessions
		document_path /documents/:id
	}
	reverse_proxy APP
}
`

// do sends a request to the gateway and returns the answer with its body read,
// which must not hold a token.
func (s *stage) do(method, path string, header ...string) (*http.Response, string) {
	s.t.Helper()
	resp, body := s.fetch(method, path, header...)
	s.wantNoSecretIn("an answer's body", []byte(body))
	s.wantNoSecretIn("an answer's header", fmt.Append(nil, resp.Header))
	return resp, body
}

// fetch is do for answers that may hold a token.
func (s *stage) fetch(method, path string, header ...string) (*http.Response, string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, "http://"+s.gateway+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	for range 3 {
		if err == nil || !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.EOF) {
			break
		}
		// Right after a reload, a listener that changes hands may reset or close
		// a connection: plain Caddy does so too.
		resp, err = http.DefaultTransport.RoundTrip(req)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp, string(body)
}

// get wants this status.
func (s *stage) get(path string, status int, header ...string) string {
	s.t.Helper()
	resp, body := s.do("GET", path, header...)
	if resp.StatusCode != status {
		s.t.Fatalf("GET %s: status %d, want %d: %s", path, resp.StatusCode, status, body)
	}
	return body
}

// token wants the app to see exactly one token for a document, and returns it.
func (s *stage) token(path string, header ...string) string {
	s.t.Helper()
	s.get(path, 200, header...)
	return s.app.last().token(s.t)
}

func (s *stage) wantMints(want int64) {
	s.t.Helper()
	if got := s.api.Stats().Mints; got != want {
		s.t.Fatalf("the stand-in counts %d mints, want %d", got, want)
	}
}

// raw sends lines, with HOST for the gateway, and returns the answer's bytes.
func (s *stage) raw(request string) string {
	s.t.Helper()
	request = strings.ReplaceAll(request, "HOST", s.gateway)
	return s.rawBytes(strings.ReplaceAll(request, "\n", "\r\n"))
}

// rawBytes sends bytes as they are and returns the answer's bytes.
func (s *stage) rawBytes(request string) string {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.gateway)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		s.t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(answer)
}

// wantNoSecrets looks for every token and key of the test in all that Caddy wrote.
func (s *stage) wantNoSecrets() {
	s.t.Helper()
	log, err := os.ReadFile(s.logFile)
	if err != nil {
		s.t.Fatal(err)
	}
	if len(log) == 0 {
		s.t.Error("Caddy logged nothing, so nothing was searched for secrets")
	}
	s.wantNoSecretIn("the log", log)
}

func (s *stage) wantNoSecretIn(where string, text []byte) {
	s.t.Helper()
	if found := secretIn(text); found != nil {
		s.t.Errorf("%s holds a token or key: …%s…", where, text[max(0, found[0]-200):min(len(text), found[0]+60)])
	}
}

// A token without its signature is no secret: nobody accepts it.
var secrets = regexp.MustCompile(regexp.QuoteMeta(testKey) + `|eyJ[\w-]+\.[\w-]+\.[\w-]`)

func secretIn(text []byte) []int { return secrets.FindIndex(text) }

// TestSecretsAreFound shows that the search finds what it is for.
func TestSecretsAreFound(t *testing.T) {
	s := newStage(t)
	s.load(simpleSite)
	token := s.token("/documents/doc")
	for text, want := range map[string]bool{token: true, "key=" + testKey + ";": true, token[:len(token)-20]: true, token[:strings.LastIndex(token, ".")]: false, "": false} {
		if found := secretIn([]byte("before " + text + " after")); (found != nil) != want {
			t.Errorf("%.60s: found %v", text, found)
		}
	}
}

// config returns what the admin API says of the running config, or nothing if
// none is running.
func (s *stage) config() string {
	s.t.Helper()
	resp, err := http.Get("http://" + s.admin + "/config/")
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

// freePorts are outside of the range from which systems give ports to others,
// who would take them between here and Caddy.
var freePorts atomic.Int32

func init() { freePorts.Store(int32(10_000 + os.Getpid()*50%20_000)) } //nolint:gosec // small

func freeAddress(tb testing.TB) string {
	tb.Helper()
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", 10_000+freePorts.Add(1)%20_000)
		if ln, err := net.Listen("tcp", address); err == nil {
			ln.Close()
			return address
		}
	}
	tb.Fatal("no port is free")
	return ""
}

// waitFor waits for something that another process does without telling.
func waitFor(tb testing.TB, what string, done func() bool) {
	tb.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			tb.Fatalf("in 30 seconds, %s", what)
		}
	}
}
