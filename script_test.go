package viewersession

import (
	"context"
	"errors"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

// The script is the file, byte for byte, for those who do not have it yet; it is
// never a viewer route, and everything else on its path is the app's.
func TestScriptPath(t *testing.T) {
	want, err := os.ReadFile("web/viewer-session.js")
	if err != nil {
		t.Fatal(err)
	}
	api := new(dwstest.API)
	h := newTestHandler(t, api, `viewer_session {
		script_path /assets/viewer-session.js
		document_id {http.request.uri.query.doc}
		document_path /documents/:id /*
	}`)
	ask := func(method, target string, header ...string) (*httptest.ResponseRecorder, *app) {
		t.Helper()
		next := new(app)
		r, w := newRequest(method, target, append(header, "X-Viewer-Session", "forged")...)
		if err := h.ServeHTTP(w, r, next); err != nil {
			t.Fatal(err)
		}
		return w, next
	}

	etag := ""
	for _, path := range []string{"/assets/viewer-session.js", "/Assets/Viewer-Session.js?v=1", "/assets/viewer%2Dsession.js"} {
		w, next := ask("GET", path)
		if w.Code != 200 || w.Body.String() != string(want) || next.calls != 0 {
			t.Errorf("%s: status %d, %d bytes, %d calls of the app", path, w.Code, w.Body.Len(), next.calls)
		}
		for name, want := range map[string]string{"Content-Type": "text/javascript; charset=utf-8", "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"} {
			if got := w.Header().Get(name); got != want {
				t.Errorf("%s: %s %q, want %q", path, name, got, want)
			}
		}
		etag = w.Header().Get("ETag")
	}
	for _, test := range []struct {
		method, match string
		status        int
	}{{"HEAD", "", 200}, {"GET", etag, 304}, {"GET", "W/" + etag, 304}, {"HEAD", etag, 304}, {"GET", `"older"`, 200}} {
		w, next := ask(test.method, "/assets/viewer-session.js", "If-None-Match", test.match)
		if got := w.Body.Len(); w.Code != test.status || next.calls != 0 || (got != 0) != (test.method == "GET" && test.status == 200) {
			t.Errorf("%+v: status %d, %d bytes", test, w.Code, got)
		}
	}

	// It is always the whole of it.
	for _, ranges := range []string{"bytes=0-9", "bytes=0-1,3-4,6-7", "bytes=999999-"} {
		if w, _ := ask("GET", "/assets/viewer-session.js", "Range", ranges); w.Code != 200 || w.Body.String() != string(want) || w.Header().Get("Cache-Control") != "no-cache" {
			t.Errorf("%s: status %d, %d bytes, %v", ranges, w.Code, w.Body.Len(), w.Header())
		}
	}

	// What is not for the script goes to the app, stripped and without a token.
	for _, request := range []string{
		"POST /assets/viewer-session.js", "OPTIONS /assets/viewer-session.js", "TRACE /assets/viewer-session.js",
		"POST /assets/viewer-session.js?doc=42", "DELETE /assets/viewer-session.js?doc=42",
		// Its neighbours are as they were.
		"GET //assets/viewer-session.js", "GET /assets/x/../viewer-session.js", "GET /assets%2Fviewer-session.js", "GET /viewer-session.js",
	} {
		method, target, _ := strings.Cut(request, " ")
		if w, next := ask(method, target); next.calls != 1 || next.header.Get("X-Viewer-Session") != "" || w.Body.String() != "page" {
			t.Errorf("%s: %d calls of the app, which saw %v", request, next.calls, next.header)
		}
	}
	next := new(app)
	r, w := newRequest("GET", "/assets/viewer-session.js")
	r = r.WithContext(context.WithValue(r.Context(), caddyhttp.ErrorCtxKey, errors.New("failed")))
	if err := h.ServeHTTP(w, r, next); err != nil || next.calls != 1 {
		t.Errorf("in an error route: %v, %d calls of the app", err, next.calls)
	}
	if api.Count() != 0 {
		t.Errorf("%d mints", api.Count())
	}
	if _, next := ask("GET", "/documents/42"); strings.Count(next.header.Get("X-Viewer-Session"), ".") != 2 {
		t.Error("pages get no token any more")
	}
}

// Whoever copies the script or its types can tell what they are.
func TestScriptSaysWhatItIs(t *testing.T) {
	var version string
	for _, file := range []string{"web/viewer-session.js", "web/viewer-session.d.ts"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		said := regexp.MustCompile(`\A/\*! viewer-session (\d+\.\d+\.\d+), Apache-2\.0, https://github\.com/viewersession/caddy-viewer-session \*/\n`).FindSubmatch(text)
		if said == nil {
			t.Errorf("%s does not say version, license and address", file)
			continue
		}
		if version != "" && version != string(said[1]) {
			t.Errorf("%s is %s, and the script %s", file, said[1], version)
		}
		version = string(said[1])
	}
	if manifest, err := os.ReadFile("web/package.json"); err != nil || !strings.Contains(string(manifest), `"version": "`+version+`"`) {
		t.Errorf("web/package.json is not version %s: %v", version, err)
	}
}
