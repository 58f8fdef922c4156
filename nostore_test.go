package viewersession

import (
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	headerops "github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"

	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

func TestPagesWithATokenAreNotStored(t *testing.T) {
	write := func(header ...string) func(http.ResponseWriter, *http.Request) error {
		return func(w http.ResponseWriter, r *http.Request) error {
			for i := 0; i+1 < len(header); i += 2 {
				w.Header().Add(header[i], header[i+1])
			}
			_, err := io.WriteString(w, "page")
			return err
		}
	}
	const forbidden = "private, no-store"
	for name, tc := range map[string]struct {
		allowStore bool
		do         func(http.ResponseWriter, *http.Request) error
		want       string
	}{
		"says nothing":        {false, write(), forbidden},
		"public":              {false, write("Cache-Control", "public, max-age=60"), forbidden},
		"no-cache":            {false, write("Cache-Control", "no-cache"), forbidden},
		"no-store":            {false, write("Cache-Control", "max-age=0, No-Store"), "max-age=0, No-Store"},
		"no-store below":      {false, write("Cache-Control", "private", "Cache-Control", "no-store"), "private|no-store"},
		"allow_store":         {true, write("Cache-Control", "public"), "public"},
		"allow_store nothing": {true, write(), ""},
		"its own vary":        {false, write("Vary", "Accept", "Vary", "Cookie"), forbidden},
		"for shared caches":   {false, write("Surrogate-Control", "max-age=60", "CDN-Cache-Control", "max-age=60", "X-Accel-Expires", "60"), forbidden},
		"status only": {false, func(w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(http.StatusNoContent)
			return nil
		}, forbidden},
		"nothing at all": {false, func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("Cache-Control", "public")
			return nil
		}, forbidden},
		"flush": {false, func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("Cache-Control", "public")
			return http.NewResponseController(w).Flush()
		}, forbidden},
		"read from": {false, func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("Cache-Control", "public")
			_, err := io.Copy(w, strings.NewReader("page"))
			return err
		}, forbidden},
	} {
		t.Run(name, func(t *testing.T) {
			options := ""
			if tc.allowStore {
				options = "allow_store"
			}
			h := newTestHandler(t, new(dwstest.API), "viewer_session {\ndocument_path /documents/:id\n"+options+"\n}")
			next := &app{do: tc.do}
			r, w := newRequest("GET", "/documents/doc", "If-None-Match", `"x"`, "If-Modified-Since", "Mon, 01 Jan 2024 00:00:00 GMT")
			if err := h.ServeHTTP(w, r, next); err != nil {
				t.Fatal(err)
			}
			sent := w.Result().Header
			if got := strings.Join(sent["Cache-Control"], "|"); got != tc.want {
				t.Errorf("Cache-Control %q, want %q", got, tc.want)
			}
			if vary := sent["Vary"]; slices.Contains(vary, "*") == tc.allowStore || strings.Contains(name, "vary") != slices.Contains(vary, "Accept") {
				t.Errorf("Vary %q", vary)
			}
			conditional := next.header.Get("If-None-Match") != "" || next.header.Get("If-Modified-Since") != ""
			if conditional != tc.allowStore {
				t.Errorf("conditional headers reached the app: %t", conditional)
			}
			for _, name := range []string{"Surrogate-Control", "Cdn-Cache-Control", "X-Accel-Expires"} {
				if sent.Get(name) != "" {
					t.Errorf("%s is still there", name)
				}
			}
		})
	}
	t.Run("other routes are left alone", func(t *testing.T) {
		h := newTestHandler(t, new(dwstest.API), oneRoute)
		next := &app{do: write("Cache-Control", "public")}
		r, w := newRequest("GET", "/elsewhere", "If-None-Match", `"x"`)
		if err := h.ServeHTTP(w, r, next); err != nil {
			t.Fatal(err)
		}
		if w.Header().Get("Cache-Control") != "public" || next.header.Get("If-None-Match") == "" {
			t.Error("caching of a page without a token was changed")
		}
		if placeholder(r, "result") != "" {
			t.Error("placeholders are set off the viewer routes")
		}
	})
}

func TestEarlyHintsAreNotTheFinalHeader(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = new(Handler).forward(w, r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Set("Cache-Control", "public")
			w.WriteHeader(http.StatusOK)
			return nil
		}), new(requestInfo))
	}))
	defer srv.Close()
	resp, err := http.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Cache-Control"); got != "private, no-store" {
		t.Errorf("Cache-Control %q", got)
	}
}

// A header block further out with one deferred field replaces Cache-Control as the
// header is written. The page still varies by everything, and the log says so.
func TestReplacedCacheControlIsLogged(t *testing.T) {
	for target, next := range map[string]*app{"/documents/doc": {}, "/documents/doc/session": appAnswering(204)} {
		core, logs := observer.New(zap.WarnLevel)
		h := newTestHandler(t, new(dwstest.API), sessionRoutes)
		h.logger = zap.New(core)
		for range 3 {
			r, w := newRequest("GET", target)
			deferred := &headerops.Handler{Response: &headerops.RespHeaderOps{Deferred: true, HeaderOps: &headerops.HeaderOps{Set: http.Header{"Cache-Control": {"max-age=600"}}}}}
			err := deferred.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				return h.ServeHTTP(w, r, next)
			}))
			if got := w.Result().Header; err != nil || got.Get("Cache-Control") != "max-age=600" || !slices.Contains(got["Vary"], "*") {
				t.Errorf("%s: %v, %v", target, err, got)
			}
		}
		if entries := logs.All(); len(entries) != 1 || !strings.HasPrefix(entries[0].Message, "Cache-Control of a viewer page was replaced") {
			t.Errorf("%s: logged %v", target, entries)
		}
	}
}
