package integration

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// local runs an example of the quickstart's kind, which is as it is but for
// the ports.
func (s *stage) local(text string, pairs ...string) (api string) {
	s.t.Helper()
	api = freeAddress(s.t)
	s.gateway = strings.Replace(s.gateway, "127.0.0.1", "localhost", 1)
	text = s.logged(substitute(s.t, text, append(pairs, "localhost:8080", s.gateway, "127.0.0.1:8081", api, "admin localhost:2020", "admin "+s.admin)...))
	if err := loadText(text); err != nil {
		s.t.Fatal(err)
	}
	return api
}

// logged has an example with global options log into the file that is looked
// through for secrets.
func (s *stage) logged(text string) string {
	output := "\tlog {\n\t\toutput file \"" + filepath.ToSlash(s.logFile) + "\"\n"
	if logFilter.MatchString(text) {
		return strings.Replace(text, "\tlog {\n", output, 1)
	}
	return strings.Replace(text, "\tadmin ", output+"\t}\n\tadmin ", 1)
}

// startApp runs an example's app until the test ends, and returns its address.
func startApp(t *testing.T, name string, args ...string) (address string) {
	t.Helper()
	address = freeAddress(t)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "PORT="+port)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatalf("%v; scripts/setup.sh installs what the examples need", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			return address
		}
		select {
		case <-tick.C:
		case err := <-ended:
			ended <- err
			t.Fatalf("%s ended: %v\n%s", name, err, said.String())
		case <-deadline:
			t.Fatalf("%s does not listen\n%s", name, said.String())
		}
	}
}

// wantViewer waits for the stand-in of the SDK to show this.
func (p *tab) wantViewer(want string) {
	p.s.t.Helper()
	p.until(`document.querySelector(".nutrient-viewer-stand-in")?.textContent.startsWith(` + "`" + want + "`)")
}

// screenshot keeps a picture where VIEWER_SESSION_SCREENSHOTS says, for whoever
// wants to look at the examples.
func (p *tab) screenshot(name string) {
	p.s.t.Helper()
	folder := os.Getenv("VIEWER_SESSION_SCREENSHOTS")
	if folder == "" {
		return
	}
	picture, err := chromedp.Run(p.ctx, chromedp.FullScreenshot(100))
	if err == nil {
		err = os.WriteFile(filepath.Join(folder, name+".png"), picture, 0o600)
	}
	if err != nil {
		p.s.t.Error(err)
	}
}

func serverRendered(t *testing.T, s *stage, text string) {
	api := s.local(text, "127.0.0.1:3000", startApp(t, "node", "examples/server-rendered/app.js"))
	p := s.newTab()
	p.open("/")
	p.must(`document.querySelector("a").click()`)
	p.wantViewer("Document floor-plan (read), session good for ")
	p.screenshot("server-rendered")
	if title := p.must(`return document.title`); title != "Floor plan" {
		t.Errorf("the page is %s", title)
	}
	// The first token was in the page, and the next one is fetched.
	if got := p.must(`return performance.getEntriesByType("resource").filter((e) => e.name.endsWith("/session")).length`); got != "0" {
		t.Errorf("%s fetches, although the page had a token", got)
	}
	if resp, body := s.fetch("GET", "/documents/floor-plan/session"); resp.StatusCode != 200 || !strings.Contains(body, `"jwt"`) {
		t.Errorf("status %d: %s", resp.StatusCode, body)
	}
	s.get("/documents/unknown", 404)
	s.get("/documents/unknown/session", 404)
	wantCounted(t, api, "floor-plan", 1)
}

// wantCounted asks the example's own stand-in how often it minted.
func wantCounted(t *testing.T, api, document string, want int64) {
	t.Helper()
	var counted struct {
		Documents map[string]int64 `json:"documents"`
	}
	getJSON(t, "http://"+api+"/emulator/stats", &counted)
	if got := counted.Documents[document]; got != want {
		t.Errorf("%d mints for %s, want %d", got, document, want)
	}
}

func singlePageApp(t *testing.T, s *stage, text string) {
	api := s.local(text)
	p := s.newTab()
	p.open("/")
	p.must(`window.first = performance.timeOrigin`)
	for _, id := range []string{"floor-plan", "site-survey", "lease-agreement", "floor-plan"} {
		p.must(`document.querySelector("a[href='/` + id + `']").click()`)
		p.wantViewer("Document " + id + " (read), session good for ")
		if got := p.must(`return location.pathname + " " + document.querySelectorAll(".nutrient-viewer-stand-in").length`); got != "/"+id+" 1" {
			t.Errorf("address and viewers: %s", got)
		}
	}
	p.screenshot("single-page-app")
	p.must(`history.back()`)
	p.wantViewer("Document lease-agreement (read), session good for ")
	// Quickly from one to the other: the last one stays.
	p.must(`for (const link of document.querySelectorAll("a")) link.click()`)
	p.until(`document.querySelector("main [role=alert]")?.textContent === "You may not open this document."`)
	if got := p.must(`return (performance.timeOrigin === first) + " " + document.querySelectorAll(".nutrient-viewer-stand-in").length`); got != "true 0" {
		t.Errorf("the same page, and viewers: %s", got)
	}
	wantCounted(t, api, "floor-plan", 1)
	wantCounted(t, api, "minutes", 0)
	p.mu.Lock()
	navigated := p.navigated
	p.mu.Unlock()
	if navigated != 1 {
		t.Errorf("%d pages were loaded", navigated)
	}
	p.open("/site-survey") // by its address
	p.wantViewer("Document site-survey (read), session good for ")
}

func ownIDs(t *testing.T, s *stage, text string) {
	folder := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(folder, "app.exe"), "./examples/own-ids/go")
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	python := "python3"
	for _, name := range []string{".venv/bin/python", ".venv/Scripts/python.exe", "python3", "/usr/bin/python3"} {
		if exec.CommandContext(t.Context(), name, "-c", "import flask").Run() == nil { //nolint:gosec // the tests' own
			python = name
			break
		}
	}
	for name, app := range map[string][]string{
		"express": {"node", "examples/own-ids/express/app.js"},
		"go":      {filepath.Join(folder, "app.exe")},
		"flask":   {python, "examples/own-ids/flask/app.py"},
	} {
		t.Log(name)
		api := s.local(text, "127.0.0.1:3000", startApp(t, app[0], app[1:]...))
		tell(t, http.MethodPost, "http://"+api+"/emulator/reset", "", 204) // it is the same as before
		logIn := func(user string) *tab {
			p := s.newTab()
			p.open("/")
			p.must(`document.querySelector("button[value=` + user + `]").click()`)
			p.until(`document.querySelector("h1")?.textContent === "Contracts" && document.querySelector("p").textContent === "` + user + `"`)
			return p
		}
		alice := logIn("alice")
		alice.must(`document.querySelector("a[href='/contracts/42']").click()`)
		alice.wantViewer("Document lease-2026 (read, write) for alice, session good for ")
		alice.screenshot("own-ids-" + name)

		// Bob may read one contract, and not open the other.
		bob := logIn("bob")
		bob.must(`document.querySelector("a[href='/contracts/42']").click()`)
		bob.wantViewer("Document lease-2026 (read) for bob, session good for ")
		wantCounted(t, api, "lease-2026", 2)

		bob = logIn("bob")
		bob.open("/contracts/43")
		for path, want := range map[string]string{
			"/contracts/43": "403", "/contracts/43/session": "403", "/contracts/44/session": "404",
			"/contracts/nda-2025/session": "404", "/contracts/43/session?id=42": "403",
		} {
			if got := bob.must(`const r = await fetch("` + path + `"); await r.text(); return r.status`); got != want {
				t.Errorf("%s: status %s, want %s", path, got, want)
			}
		}
		bodies := bob.bodies()
		if len(bodies) < 6 {
			t.Errorf("only %d answers were looked at", len(bodies))
		}
		for _, body := range bodies {
			s.wantNoSecretIn("an answer to bob", []byte(body))
		}
		s.get("/contracts/42/session", 401) // without a login
		wantCounted(t, api, "nda-2025", 0)
	}
}

func getJSON(t *testing.T, url string, value any) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(value); err != nil {
		t.Fatal(err)
	}
}

// tell asks for something with a method and a body, and wants a status.
func tell(t *testing.T, method, url, body string, status int) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != status {
		t.Fatalf("%s %s: status %d, want %d", method, url, resp.StatusCode, status)
	}
}
