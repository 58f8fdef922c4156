package integration

import (
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
			filter := strings.TrimSpace(regexp.MustCompile(`\trequest>.*`).FindString(text))
			if !strings.Contains(globalOptions, filter) || filter == "" {
				t.Errorf("the tests run with another log filter than the README's %q", filter)
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
				s.token("/documents/doc1")
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
	if ran < 4 {
		t.Errorf("only %d blocks were found and run", ran)
	}
}
