package integration

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// Every Caddyfile in the README is loaded and run, the JSON as well.
func TestREADME(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```(caddyfile|json)\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	ran := 0
	for _, block := range blocks {
		kind, text := block[1], block[2]
		switch {
		case kind == "caddyfile" && strings.HasPrefix(text, "{\n"):
			if _, err := adapt(text, "README.md"); err != nil {
				t.Errorf("%v in\n%s", err, text)
			}
			filter := regexp.MustCompile(`(?m)^\s+request>.*`)
			if readmes, tests := filter.FindAllString(text, -1), filter.FindAllString(globalOptions, -1); fmt.Sprint(readmes) != fmt.Sprint(tests) {
				t.Errorf("the tests run with another log filter than the README's %q", readmes)
			}
		case kind == "caddyfile" && strings.Contains(text, "dws_emulator"):
			t.Run("stand-in", func(t *testing.T) {
				s := newStage(t)
				address := freeAddress(t)
				s.load(strings.Replace(strings.ReplaceAll(text, "127.0.0.1:8081", address)+simpleSite, "endpoint API", "endpoint http://"+address, 1))
				s.token("/documents/doc1")
				s.wantMints(0) // not the test's own stand-in
			})
			ran++
		case kind == "caddyfile":
			if _, err := adapt(text, "README.md"); err != nil {
				t.Errorf("%v in\n%s", err, text)
				continue
			}
			t.Run("site", func(t *testing.T) {
				s := newStage(t)
				auth := newApp(t)
				auth.setAnswer("HTTP/1.1 200 OK\nRemote-User: alice\nContent-Length: 0\n\n")
				s.load(strings.ReplaceAll(site(t, text, "app:3000", "APP"), "auth:9091", auth.address))
				if strings.Contains(text, "document_path /documents/:id") {
					s.token("/documents/doc1")
				}
				s.app.setAnswer("HTTP/1.1 204 No Content\nX-Viewer-Document: doc1\n\n")
				for path := range strings.SplitSeq("/documents/1/session /contracts/1/session", " ") {
					pattern := strings.Replace(path, "1", "[:*](id)?", 1)
					if regexp.MustCompile("session_path " + pattern).MatchString(text) {
						s.session(path)
					}
				}
				s.wantMints(1)
			})
			ran++
		case kind == "json":
			t.Run("json", func(t *testing.T) {
				config := `{"admin":{"disabled":true},"apps":{"http":{"servers":{"s":{"routes":[{"handle":[` + text + `]}]}}}}}`
				if err := caddy.Load([]byte(config), true); err != nil {
					t.Error(err)
				}
				if err := caddy.Stop(); err != nil {
					t.Error(err)
				}
			})
			ran++
		}
	}
	if ran < 7 {
		t.Errorf("only %d blocks were found and run", ran)
	}
}
