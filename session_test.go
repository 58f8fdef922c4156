package viewersession

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

const sessionRoutes = `viewer_session {
	session_path /token
	session_path /by-query /contracts/:id/token
	document_path /documents/:id {
		session_path /documents/:id/session
		permissions read write
		shared
	}
	document_path /users/:id {
		session_path /users/:id/session
		user_id {http.auth.user.id}
	}
	document_path /view {
		document_id {http.request.uri.query.doc}
		session_path /view/session
	}
}`

// appAnswering is an app that answers with a status and headers.
func appAnswering(status int, header ...string) *app {
	return &app{do: func(w http.ResponseWriter, _ *http.Request) error {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Add(header[i], header[i+1])
		}
		w.WriteHeader(status)
		return nil
	}}
}

// wantSession wants the answer of a session path with a token, and returns it.
func wantSession(t *testing.T, w *httptest.ResponseRecorder, err error) (jwt string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		JWT       string `json:"jwt"`
		Exp       int64  `json:"exp"`
		ExpiresIn int64  `json:"expires_in"`
	}
	dec := json.NewDecoder(w.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&answer); err != nil {
		t.Fatalf("status %d: %v", w.Code, err)
	}
	left := answer.Exp - time.Now().Unix()
	if w.Code != 200 || strings.Count(answer.JWT, ".") != 2 || left <= 0 || answer.ExpiresIn < left-2 || answer.ExpiresIn > left {
		t.Fatalf("status %d, %+v", w.Code, answer)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/json", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Vary": "*",
		"Access-Control-Allow-Origin": "", documentHeader: "", permissionsHeader: "", userHeader: "",
	} {
		if got := strings.Join(w.Header()[name], "|"); got != want {
			t.Errorf("%s %q, want %q", name, got, want)
		}
	}
	return answer.JWT
}

func wantStatus(t *testing.T, err error, status int, want reason) *failure {
	t.Helper()
	var handlerErr caddyhttp.HandlerError
	var f *failure
	if !errors.As(err, &handlerErr) || !errors.As(err, &f) || handlerErr.StatusCode != status || f.reason != want {
		t.Fatalf("got %v, want status %d and reason %s", err, status, want)
	}
	return f
}

func TestSessionGoesToTheAppFirst(t *testing.T) {
	api := new(dwstest.API)
	h := newTestHandler(t, api, sessionRoutes)
	next := appAnswering(204, "Set-Cookie", "app=1", "Content-Type", "text/plain", "Etag", "x", "Access-Control-Allow-Origin", "*",
		"Access-Control-Allow-Credentials", "true", "Content-Security-Policy", "default-src 'self'", "Cache-Control", "public, max-age=60", "Cdn-Cache-Control", "max-age=60", "X-Request-Id", "7")
	r, w := newRequest("GET", "/documents/doc1/session", "X-Viewer-Session", "forged", "X-Viewer-Rejected", "old.token.x", "X_viewer_rejected", "old.token.x")
	err := h.ServeHTTP(w, r, next)
	wantSession(t, w, err)
	if next.calls != 1 || len(next.header) != 0 {
		t.Errorf("the app was asked %d times and saw %v, want once and nothing of ours or the client's", next.calls, next.header)
	}
	for name, want := range map[string]string{"Set-Cookie": "app=1", "X-Request-Id": "7", "Content-Security-Policy": "default-src 'self'", "Etag": "", "Access-Control-Allow-Credentials": "", "Cdn-Cache-Control": ""} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s %q, want %q", name, got, want)
		}
	}
	if placeholder(r, "document_id") != "doc1" || placeholder(r, "result") != "minted" {
		t.Errorf("document %s, result %s", placeholder(r, "document_id"), placeholder(r, "result"))
	}
	if got := api.Asked[0].Document; got != "doc1" {
		t.Errorf("minted for %s", got)
	}

	// It is the page's token, and the other way round.
	page := new(app)
	r, w = newRequest("GET", "/documents/doc1")
	if err := h.ServeHTTP(w, r, page); err != nil || placeholder(r, "result") != "hit" {
		t.Errorf("%v, result %s", err, placeholder(r, "result"))
	}
	if api.Count() != 1 {
		t.Errorf("%d mints for one document", api.Count())
	}
}

func TestMethodsOnASessionPath(t *testing.T) {
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"} {
		api := new(dwstest.API)
		h := newTestHandler(t, api, sessionRoutes)
		next := appAnswering(204, userHeader, "alice", "X-Request-Id", "7")
		r, w := newRequest(method, "/documents/doc1/session", "X-Viewer-Session", "forged", "X-Viewer-Rejected", "old", "Sec-Fetch-Site", "cross-site")
		if err := h.ServeHTTP(w, r, next); err != nil {
			t.Fatal(err)
		}
		if w.Code != 204 || w.Body.Len() != 0 || api.Count() != 0 || w.Header().Get(userHeader) != "" || w.Header().Get("X-Request-Id") != "7" {
			t.Errorf("%s: %d, %v, %d mints", method, w.Code, w.Header(), api.Count())
		}
		if len(next.header) != 1 {
			t.Errorf("%s: the app saw %v", method, next.header)
		}
	}
	h := newTestHandler(t, new(dwstest.API), sessionRoutes)
	r, w := newRequest("HEAD", "/documents/doc1/session")
	if err := h.ServeHTTP(w, r, appAnswering(204)); err != nil || w.Code != 200 || w.Body.Len() != 0 || w.Header().Get("Content-Length") == "" || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("HEAD: %v, %d, %v, %s", err, w.Code, w.Header(), w.Body)
	}
}

// Another site's page must not be able to fetch a token with the user's
// cookies, though it could not read it.
func TestCrossSiteIsRefused(t *testing.T) {
	for site, allowed := range map[string]bool{"cross-site": false, "same-site": false, "same-origin": true, "none": true, "": true} {
		for _, method := range []string{"GET", "HEAD"} {
			api := new(dwstest.API)
			h := newTestHandler(t, api, sessionRoutes)
			next := appAnswering(204)
			r, w := newRequest(method, "/documents/doc1/session", "Sec-Fetch-Site", site)
			w.Header().Set(userHeader, "alice") // by a handler further out
			err := h.ServeHTTP(w, r, next)
			if allowed {
				if err != nil || w.Code != 200 {
					t.Errorf("%q: %v, %d", site, err, w.Code)
				}
				continue
			}
			wantStatus(t, err, 403, reasonCrossSite)
			if next.calls != 0 || api.Count() != 0 || w.Header().Get("Cache-Control") != "no-store" || w.Header().Get(userHeader) != "" || placeholder(r, "error") != "cross_site" {
				t.Errorf("%q: %d calls, %d mints, %v", site, next.calls, api.Count(), w.Header())
			}
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// The user is who authentication said before the app was called: the app's own
// reverse_proxy may set the same placeholders.
func TestUserIsResolvedBeforeTheAppIsCalled(t *testing.T) {
	api := new(dwstest.API)
	h := newTestHandler(t, api, sessionRoutes)
	r, w := newRequest("GET", "/users/doc1/session")
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	repl.Set("http.auth.user.id", "bob")
	err := h.ServeHTTP(w, r, &app{do: func(w http.ResponseWriter, _ *http.Request) error {
		repl.Set("http.auth.user.id", "mallory")
		w.WriteHeader(204)
		return nil
	}})
	wantSession(t, w, err)
	if got := api.Asked[0].User; got != "bob" {
		t.Errorf("minted for %s", got)
	}

	r, w = newRequest("GET", "/users/doc1/session")
	err = h.ServeHTTP(w, r, appAnswering(204))
	wantStatus(t, err, 401, reasonNoUser)
}

func TestSessionPathsThatAreNone(t *testing.T) {
	for _, target := range []string{
		"/documents/a%2Fb/session", "/documents/../x/session", "/documents//session", "/documents/doc1/session/x", "/documents/d.c/session",
		"/documents/doc1%2Fsession", "/token/x", "/view/session?doc=a/b", "//token", "/./token", "/token%00",
	} {
		api := new(dwstest.API)
		h := newTestHandler(t, api, sessionRoutes)
		r, w := newRequest("GET", target)
		if err := h.ServeHTTP(w, r, appAnswering(204)); err != nil || w.Code != 204 || api.Count() != 0 {
			t.Errorf("%s: %v, %d, %d mints", target, err, w.Code, api.Count())
		}
	}
}

// on_error has no say on session paths.
func TestSessionFailuresAreErrors(t *testing.T) {
	api := new(dwstest.API)
	api.Set(dwstest.Failing(500))
	h := newTestHandler(t, api, strings.Replace(sessionRoutes, "{\n", "{\n\ton_error pass\n\tallow_store\n", 1))
	r, w := newRequest("GET", "/documents/doc1/session")
	err := h.ServeHTTP(w, r, appAnswering(204, "Set-Cookie", "app=1", "Etag", "x", "Access-Control-Allow-Origin", "*"))
	wantStatus(t, err, 502, reasonUnavailable)
	header := w.Header()
	if header.Get("Cache-Control") != "no-store" || header.Get("X-Content-Type-Options") != "nosniff" || header.Get("Set-Cookie") != "app=1" || header.Get("Etag") != "" || header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("%v", header)
	}
	if placeholder(r, "result") != "error" || placeholder(r, "error") != "unavailable" {
		t.Errorf("result %s, error %s", placeholder(r, "result"), placeholder(r, "error"))
	}
}

func TestErrorRoutesGiveNoSession(t *testing.T) {
	api := new(dwstest.API)
	h := newTestHandler(t, api, sessionRoutes)
	r, w := newRequest("GET", "/documents/doc1/session", "X-Viewer-Session", "forged")
	r = r.WithContext(context.WithValue(r.Context(), caddyhttp.ErrorCtxKey, errors.New("broken")))
	next := appAnswering(204, userHeader, "alice")
	if err := h.ServeHTTP(w, r, next); err != nil || w.Code != 204 || api.Count() != 0 || len(next.header) != 0 || w.Header().Get(userHeader) != "" {
		t.Errorf("%v, %d, %d mints, %v", err, w.Code, api.Count(), next.header)
	}
}

func TestAppAnswersWithoutADocumentAreLoggedOnceInAWhile(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	h := newTestHandler(t, new(dwstest.API), sessionRoutes)
	h.logger = zap.New(core)
	for range 5 {
		r, w := newRequest("GET", "/token")
		wantStatus(t, h.ServeHTTP(w, r, appAnswering(204)), 502, reasonAppAnswer)
	}
	if logs.Len() != 1 || !strings.Contains(logs.All()[0].Message, documentHeader) {
		t.Errorf("%v", logs.All())
	}
}

// nested instances: the inner one answers, and the outer one passes it on.
func TestSessionOfTwoInstances(t *testing.T) {
	api := new(dwstest.API)
	outer, inner := newTestHandler(t, api, sessionRoutes), newTestHandler(t, api, sessionRoutes)
	r, w := newRequest("GET", "/documents/doc1/session")
	err := outer.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		return inner.ServeHTTP(w, r, appAnswering(204))
	}))
	wantSession(t, w, err)
	if api.Count() != 1 || placeholder(r, "result") != "minted" {
		t.Errorf("%d mints, result %s", api.Count(), placeholder(r, "result"))
	}
	if counted := gather(t, outer.pool.endpoint.Host); counted["requests_total minted"] != 1 || counted["requests_total bypass"] != 0 {
		t.Errorf("one request is counted as %v minted and %v bypass", counted["requests_total minted"], counted["requests_total bypass"])
	}
}

// A browser's token was rejected.

// A document_id without a document_path stands for all paths, with session
// paths as without.
func TestSessionPathTakesNoPageAway(t *testing.T) {
	for config, page := range map[string]bool{
		"document_id {http.request.uri.query.doc}\n\tsession_path /token":                                 true,
		"document_id {http.request.uri.query.doc}\n\tsession_path /token\n\tdocument_path /documents/:id": false,
		"session_path /token": false,
	} {
		h := newTestHandler(t, new(dwstest.API), "viewer_session {\n\t"+config+"\n}")
		next := new(app)
		r, w := newRequest("GET", "/anywhere?doc=doc1")
		if err := h.ServeHTTP(w, r, next); err != nil || (next.header.Get(defaultRequestHeader) != "") != page {
			t.Errorf("%s: %v, the page saw %v", config, err, next.header)
		}
		r, w = newRequest("GET", "/token?doc=doc1")
		err := h.ServeHTTP(w, r, appAnswering(204, documentHeader, "doc2"))
		wantSession(t, w, err)
	}
}

// What is left of the token's life is counted by the gateway's clock.
func TestExpiresIn(t *testing.T) {
	token := newTestToken("key", "a.b.c", testNow.Unix()+3600, testNow.Unix()+3600, testNow)
	for after, want := range map[time.Duration]string{0: "3600", 10 * time.Minute: "3000", 59*time.Minute + 1: "59"} {
		r, w := newRequest("GET", "/documents/doc/session")
		if err := writeSession(w, r, token, clock.At(testNow.Add(after))); err != nil || !strings.Contains(w.Body.String(), `"expires_in":`+want+"}") {
			t.Errorf("after %s: %v, %s", after, err, w.Body)
		}
	}
}
