package viewersession

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/standard" // the directives beside ours
)

const adaptSeparator = "\n----------\n"

// TestAdapt runs Caddy's own Caddyfile adapter over testdata/adapt. Each file
// holds a Caddyfile, a line of dashes, and the JSON or the error that it must
// give. With UPDATE_ADAPT=1 in the environment the second half is rewritten.
func TestAdapt(t *testing.T) {
	files, err := filepath.Glob("testdata/adapt/*.caddyfiletest")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".caddyfiletest"), func(t *testing.T) {
			t.Setenv("VIEWER_SESSION_TEST_KEY", "pdf_live_test")
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			input, want, found := strings.Cut(string(content), adaptSeparator)
			if !found {
				t.Fatal("no line of dashes")
			}
			input += "\n"
			got := adapt(t, input)
			if strings.Contains(got, "pdf_live_test") {
				t.Errorf("the outcome holds the key: %s", got)
			}
			if os.Getenv("UPDATE_ADAPT") != "" {
				if err := os.WriteFile(file, []byte(strings.TrimSuffix(input, "\n")+adaptSeparator+got+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			if want = strings.TrimSpace(want); got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// adapt returns the JSON, indented, or the error.
func adapt(t *testing.T, input string) string {
	t.Helper()
	result, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(input), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return err.Error()
	}
	for _, warning := range warnings {
		t.Errorf("warning: %v", warning)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, result, "", "\t"); err != nil {
		t.Fatal(err)
	}
	return indented.String()
}

// The order of the directives is what keeps authentication in front and the
// app behind, however the Caddyfile is sorted. The golden file shows it; here
// it is read off, so that nobody rewrites it by accident.
func TestDirectiveRunsAfterAuthenticationAndBeforeTheApp(t *testing.T) {
	got := adapt(t, `localhost

reverse_proxy app:3000
templates
viewer_session {
	document_path /documents/:id
}
request_header X-A b
forward_auth auth:9091 {
	uri /verify
}
basic_auth {
	bob $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG
}
encode gzip
`)
	last := -1
	for _, what := range []string{
		`"handler": "authentication"`,
		`"uri": "/verify"`,
		`"X-A"`,
		`"handler": "viewer_session"`,
		`"handler": "encode"`,
		`"handler": "templates"`,
		`"app:3000"`,
	} {
		at := strings.Index(got, what)
		if at < 0 || at < last {
			t.Fatalf("%s is missing or too early:\n%s", what, got)
		}
		last = at
	}
}

// What is adapted must load: the JSON of every golden file unmarshals strictly
// into the handler and gives the same settings again.
func TestAdaptedHandlersCompile(t *testing.T) {
	files, err := filepath.Glob("testdata/adapt/*.caddyfiletest")
	if err != nil {
		t.Fatal(err)
	}
	handlers := 0
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, want, _ := strings.Cut(string(content), adaptSeparator)
		if !strings.HasPrefix(want, "{") {
			continue
		}
		var config any
		if err := json.Unmarshal([]byte(want), &config); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		eachHandler(config, func(raw []byte) {
			handlers++
			h, err := handlerFromJSON(string(raw))
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if err := h.compile(); err != nil {
				t.Errorf("%s: %v", file, err)
			}
			if _, _, err := h.settings(); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		})
	}
	if handlers < 8 {
		t.Errorf("only %d handlers found", handlers)
	}
}

// eachHandler calls f with every viewer_session handler inside a config,
// without the member that names it.
func eachHandler(config any, f func([]byte)) {
	switch v := config.(type) {
	case []any:
		for _, item := range v {
			eachHandler(item, f)
		}
	case map[string]any:
		if v["handler"] == "viewer_session" {
			delete(v, "handler")
			raw, _ := json.Marshal(v)
			f(raw)
			return
		}
		for _, item := range v {
			eachHandler(item, f)
		}
	}
}
