package viewersession

import (
	"errors"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

// Every message that is logged stands in docs/operations.md, and no other.
func TestEveryMessageIsDocumented(t *testing.T) {
	var logged []string
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.DebugLevel)
		api := new(dwstest.API)
		h := newTestHandler(t, api, `viewer_session {
			document_path /documents/:id
			document_path /users/:id {
				user_id {http.auth.user.id}
			}
			document_path /permissions/:id {
				permissions {http.vars.none}
				shared
			}
			document_path /claims/:id {
				claim who {http.vars.none}
			}
			document_path /annotated/:id {
				permissions annotate
				shared
				session_path /annotated/:id/session
			}
			document_path /latin1/:id {
				user_id {http.vars.latin1}
			}
			session_path /token
		}`)
		h.logger = zap.New(core)
		h.member.logger = h.logger
		serve := func(target string, next *app) {
			r, w := newRequest("GET", target)
			caddyhttp.SetVar(r.Context(), "latin1", "Andr\xe9")
			_ = h.ServeHTTP(w, r, next)
			time.Sleep(time.Minute)
		}
		h.warn(&url.URL{Scheme: "https", Host: "api.example.com"})
		serve("/users/doc", new(app))
		serve("/permissions/doc", new(app))
		serve("/claims/doc", new(app))
		serve("/latin1/doc", new(app))
		serve("/claims/report.pdf", new(app))
		serve("/annotated/doc", &app{do: func(w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(200)
			w.Header().Set("Cache-Control", "public") // as a header block further out does
			return nil
		}})
		serve("/token", appAnswering(204))
		store := newFakeStore()
		h.member.store = store
		store.fail(errors.New("down"))
		api.Set(dwstest.Failing(500))
		serve("/documents/fails", new(app))
		api.Set(nil)
		store.fail(nil)
		serve("/documents/fails", new(app))
		api.Set(func(dwstest.Request) (*http.Response, error) { panic("bug") })
		serve("/documents/panics", new(app))
		api.Set(func(dwstest.Request) (*http.Response, error) {
			return dwstest.Respond(201, `{"jwt":"`+dwstest.JWT(map[string]any{"jti": "1"})+`"}`)
		})
		serve("/documents/endless", new(app))
		api.Set(documentedOnly(422, dwstest.Granting(`{"permissions": ["annotate", "read"]}`)))
		serve("/documents/documented", new(app))
		api.Set(dwstest.Granting(`{"permissions": []}`))
		serve("/documents/unstated", new(app))
		api.Set(dwstest.Granting(`{"permissions": ["other"]}`))
		serve("/documents/fewer", new(app))
		api.Set(func(r dwstest.Request) (*http.Response, error) {
			resp, err := dwstest.Grant(dwstest.Token(1, r.Exp))
			resp.Header.Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
			return resp, err
		})
		serve("/documents/clock", new(app))
		for _, entry := range logs.All() {
			logged = append(logged, entry.Message)
		}
	})

	text, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (?:warn|error|info)").FindAllStringSubmatch(string(text), -1) {
		documented = append(documented, row[1])
	}
	for _, message := range logged {
		if !slices.ContainsFunc(documented, func(row string) bool { return strings.HasPrefix(message, row) }) {
			t.Errorf("not documented: %s", message)
		}
	}
	for _, row := range documented {
		if !slices.ContainsFunc(logged, func(message string) bool { return strings.HasPrefix(message, row) }) {
			t.Errorf("documented, and never logged here: %s", row)
		}
	}

	// And the code has no others.
	calls := 0
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if !strings.HasSuffix(file.Name(), ".go") || strings.HasSuffix(file.Name(), "_test.go") {
			continue
		}
		source, err := os.ReadFile(file.Name())
		if err != nil {
			t.Fatal(err)
		}
		calls += len(regexp.MustCompile(`(?:logger(?:\(\))?\.(?:Debug|Info|Warn|Error)|\blog)\((?:"|hint)`).FindAll(source, -1))
	}
	if want := len(documented) - len(unresolvedHints) - 1 + 1; calls != want {
		t.Errorf("%d places in the code log something, and %d are documented", calls, want)
	}
}
