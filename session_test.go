package viewersession

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
	"github.com/viewersession/caddy-viewer-session/internal/mint"
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
		JWT string `json:"jwt"`
		Exp int64  `json:"exp"`
	}
	dec := json.NewDecoder(w.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&answer); err != nil {
		t.Fatalf("status %d: %v", w.Code, err)
	}
	if w.Code != 200 || strings.Count(answer.JWT, ".") != 2 || answer.Exp <= time.Now().Unix() {
		t.Fatalf("status %d, %+v", w.Code, answer)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/json", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
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

// Whatever the app answers but 204, the browser gets as it is.
func TestOtherAnswersPass(t *testing.T) {
	for _, status := range []int{200, 201, 203, 205, 206, 301, 302, 304, 400, 401, 403, 404, 410, 429, 500, 502, 503} {
		api := new(dwstest.API)
		h := newTestHandler(t, api, sessionRoutes)
		next := appAnswering(status, "Location", "/login", "Cache-Control", "public", "Etag", "x", "Access-Control-Allow-Origin", "*",
			documentHeader, "doc2", permissionsHeader, "write", userHeader, "alice")
		r, w := newRequest("GET", "/documents/doc1/session")
		if err := h.ServeHTTP(w, r, next); err != nil {
			t.Fatal(err)
		}
		want := http.Header{"Location": {"/login"}, "Cache-Control": {"public"}, "Etag": {"x"}, "Access-Control-Allow-Origin": {"*"}}
		if w.Code != status || fmt.Sprint(w.Header()) != fmt.Sprint(want) || w.Body.Len() != 0 {
			t.Errorf("status %d with %v became %d with %v", status, want, w.Code, w.Header())
		}
		if api.Count() != 0 || placeholder(r, "result") != "bypass" {
			t.Errorf("status %d: %d mints, result %s", status, api.Count(), placeholder(r, "result"))
		}
	}
}

func TestOtherAnswersPassInOtherWays(t *testing.T) {
	for name, do := range map[string]func(http.ResponseWriter, *http.Request) error{
		"implicit 200": func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set(userHeader, "alice")
			_, err := io.WriteString(w, "page")
			return err
		},
		"read from": func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set(userHeader, "alice")
			_, err := w.(io.ReaderFrom).ReadFrom(strings.NewReader("page"))
			return err
		},
		"trailers": func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("Trailer", userHeader)
			_, err := io.WriteString(w, "page")
			w.Header().Set(userHeader, "alice")
			w.Header().Set(http.TrailerPrefix+documentHeader, "doc2")
			return err
		},
	} {
		h := newTestHandler(t, new(dwstest.API), sessionRoutes)
		r, w := newRequest("GET", "/documents/doc1/session")
		if err := h.ServeHTTP(w, r, &app{do: do}); err != nil {
			t.Fatal(err)
		}
		answer := w.Result()
		if w.Code != 200 || w.Body.String() != "page" || answer.Header.Get("Cache-Control") != "" {
			t.Errorf("%s: %d, %v, %q", name, w.Code, answer.Header, w.Body)
		}
		if text := headerText(answer.Header) + headerText(answer.Trailer) + headerText(w.Header()); strings.Contains(text, "alice") || strings.Contains(text, "doc2") {
			t.Errorf("%s: the browser is told what the app told the gateway: %s", name, text)
		}
	}
	t.Run("nothing at all", func(t *testing.T) {
		h := newTestHandler(t, new(dwstest.API), sessionRoutes)
		r, w := newRequest("GET", "/documents/doc1/session")
		if err := h.ServeHTTP(w, r, &app{do: func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set(documentHeader, "doc2")
			return nil
		}}); err != nil || len(w.Header()) != 0 || w.Body.Len() != 0 {
			t.Errorf("%v, %v, %s", err, w.Header(), w.Body)
		}
	})
	t.Run("an error", func(t *testing.T) {
		api := new(dwstest.API)
		h := newTestHandler(t, api, sessionRoutes)
		for _, before := range []func(http.ResponseWriter){func(http.ResponseWriter) {}, func(w http.ResponseWriter) { w.WriteHeader(204) }} {
			r, w := newRequest("GET", "/documents/doc1/session")
			broken := caddyhttp.Error(418, errors.New("teapot"))
			if err := h.ServeHTTP(w, r, &app{do: func(w http.ResponseWriter, _ *http.Request) error { before(w); return broken }}); err != error(broken) { //nolint:errorlint // the very same
				t.Errorf("the app's error became %v", err)
			}
			if w.Body.Len() != 0 || api.Count() != 0 {
				t.Error("an error of the app is taken for a yes")
			}
		}
	})
	t.Run("a 204 with a body", func(t *testing.T) {
		h := newTestHandler(t, new(dwstest.API), sessionRoutes)
		r, w := newRequest("GET", "/documents/doc1/session")
		err := h.ServeHTTP(w, r, &app{do: func(w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(204)
			_, err := io.WriteString(w, "yes")
			return err
		}})
		wantSession(t, w, err)
	})
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

func TestTheAppSaysMoreThanTheURL(t *testing.T) {
	for _, test := range []struct {
		name, target string
		header       []string
		doc, user    string
		permissions  string
		reason       reason
		status       int
	}{
		{name: "nothing more", target: "/documents/doc1/session", doc: "doc1", permissions: "read,write"},
		{name: "another document", target: "/documents/doc1/session", header: []string{documentHeader, "doc2"}, doc: "doc2", permissions: "read,write"},
		{name: "permissions", target: "/documents/doc1/session", header: []string{permissionsHeader, "read"}, doc: "doc1", permissions: "read"},
		{name: "several permissions", target: "/documents/doc1/session", header: []string{permissionsHeader, "write, read download,read"}, doc: "doc1", permissions: "download,read,write"},
		{name: "permissions on two lines", target: "/documents/doc1/session", header: []string{permissionsHeader, "write", permissionsHeader, "read"}, doc: "doc1", permissions: "read,write"},
		{name: "a user", target: "/documents/doc1/session", header: []string{userHeader, "alice"}, doc: "doc1", user: "alice", permissions: "read,write"},
		{name: "a user beyond ASCII", target: "/documents/doc1/session", header: []string{userHeader, "Zoë"}, doc: "doc1", user: "Zoë", permissions: "read,write"},
		{name: "all of it", target: "/token", header: []string{documentHeader, "doc2", permissionsHeader, "download", userHeader, "alice"}, doc: "doc2", user: "alice", permissions: "download"},
		{name: "an id that the URL lacks", target: "/token", header: []string{documentHeader, "doc2"}, doc: "doc2", permissions: "read"},
		{name: "the URL's id in another format", target: "/contracts/42/token", header: []string{documentHeader, "doc2"}, doc: "doc2", permissions: "read"},
		{name: "the URL's id", target: "/contracts/42/token", doc: "42", permissions: "read"},
		{name: "the query's id", target: "/view/session?doc=doc3", doc: "doc3", permissions: "read"},
		{name: "no id in the query", target: "/view/session", header: []string{documentHeader, "doc2"}, doc: "doc2", permissions: "read"},
		{name: "the config's user", target: "/users/doc1/session", doc: "doc1", user: "bob", permissions: "read"},
		{name: "the app's user for the config's", target: "/users/doc1/session", header: []string{userHeader, "alice"}, doc: "doc1", user: "alice", permissions: "read"},

		{name: "no id from either side", target: "/token", reason: reasonAppAnswer, status: 502},
		{name: "no id from either side, query", target: "/view/session", reason: reasonAppAnswer, status: 502},
		{name: "an empty id", target: "/documents/doc1/session", header: []string{documentHeader, ""}, reason: reasonAppAnswer, status: 502},
		{name: "an id that does not fit", target: "/documents/doc1/session", header: []string{documentHeader, "a/b"}, reason: reasonAppAnswer, status: 502},
		{name: "an id that is too long", target: "/token", header: []string{documentHeader, strings.Repeat("x", 129)}, reason: reasonAppAnswer, status: 502},
		{name: "a placeholder for an id", target: "/token", header: []string{documentHeader, "{env.HOME}"}, reason: reasonAppAnswer, status: 502},
		{name: "two ids", target: "/documents/doc1/session", header: []string{documentHeader, "doc2", documentHeader, "doc3"}, reason: reasonAppAnswer, status: 502},
		{name: "two users", target: "/documents/doc1/session", header: []string{userHeader, "alice", userHeader, "bob"}, reason: reasonAppAnswer, status: 502},
		{name: "a user that is not UTF-8", target: "/documents/doc1/session", header: []string{userHeader, "a\xff"}, reason: reasonAppAnswer, status: 502},
		{name: "an empty user", target: "/documents/doc1/session", header: []string{userHeader, ""}, reason: reasonNoUser, status: 401},
		{name: "an empty user for the config's", target: "/users/doc1/session", header: []string{userHeader, ""}, reason: reasonNoUser, status: 401},
		{name: "no permissions", target: "/documents/doc1/session", header: []string{permissionsHeader, ""}, reason: reasonNoPermission, status: 403},
		{name: "only separators", target: "/documents/doc1/session", header: []string{permissionsHeader, " , "}, reason: reasonNoPermission, status: 403},
	} {
		t.Run(test.name, func(t *testing.T) {
			var body []byte
			api := new(dwstest.API)
			h := newTestHandler(t, api, sessionRoutes)
			h.member.transport = roundTripper(func(r *http.Request) (*http.Response, error) {
				var err error
				if body, err = io.ReadAll(r.Body); err != nil {
					return nil, err
				}
				r.Body = io.NopCloser(strings.NewReader(string(body)))
				return api.RoundTrip(r)
			})
			r, w := newRequest("GET", test.target)
			r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).Set("http.auth.user.id", "bob")
			err := h.ServeHTTP(w, r, appAnswering(204, test.header...))
			if test.reason != "" {
				wantStatus(t, err, test.status, test.reason)
				if api.Count() != 0 || w.Header().Get("Cache-Control") != "no-store" || w.Header().Get(userHeader) != "" {
					t.Errorf("%d mints, %v", api.Count(), w.Header())
				}
				return
			}
			wantSession(t, w, err)
			var asked struct {
				Documents []struct {
					ID          string   `json:"document_id"`
					Permissions []string `json:"document_permissions"`
				} `json:"allowed_documents"`
				UserID string `json:"user_id"`
			}
			if err := json.Unmarshal(body, &asked); err != nil {
				t.Fatal(err)
			}
			if got := asked.Documents[0]; got.ID != test.doc || strings.Join(got.Permissions, ",") != test.permissions || asked.UserID != test.user {
				t.Errorf("asked for %+v", asked)
			}
			if got := placeholder(r, "document_id"); got != test.doc {
				t.Errorf("placeholder %s", got)
			}
		})
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// What the app says belongs to this answer: the next without it gets what the
// config says.
func TestTheAppsWordsAreNotKept(t *testing.T) {
	api := new(dwstest.API)
	h := newTestHandler(t, api, sessionRoutes)
	fetch := func(header ...string) string {
		t.Helper()
		r, w := newRequest("GET", "/documents/doc1/session")
		err := h.ServeHTTP(w, r, appAnswering(204, header...))
		return wantSession(t, w, err)
	}
	all := fetch()
	alice := fetch(userHeader, "alice")
	readers := fetch(permissionsHeader, "read")
	if all == alice || all == readers || alice == readers {
		t.Error("tokens of different users or permissions are the same")
	}
	if fetch() != all || fetch(userHeader, "alice") != alice || fetch(permissionsHeader, "read") != readers {
		t.Error("a token was not found again")
	}
	if api.Count() != 3 {
		t.Errorf("%d mints, want 3", api.Count())
	}
}

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

// The outer instance takes the header off, and the inner one knows of it.
func TestRejectedTokenOfTwoInstances(t *testing.T) {
	api := new(dwstest.API)
	outer, inner := newTestHandler(t, api, sessionRoutes), newTestHandler(t, api, sessionRoutes)
	fetch := func(rejected string) string {
		t.Helper()
		next := appAnswering(204)
		r, w := newRequest("GET", "/documents/doc1/session", rejectedHeader, rejected)
		err := outer.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			return inner.ServeHTTP(w, r, next)
		}))
		if len(next.header) != 0 {
			t.Errorf("the app saw %v", next.header)
		}
		return wantSession(t, w, err)
	}
	first := fetch("")
	if fetch(first) == first {
		t.Error("the rejected token came again")
	}
}

// What the app says before an informational answer is said with the final one.
func TestAppsWordsSurviveInformationalAnswers(t *testing.T) {
	api := new(dwstest.API)
	h := newTestHandler(t, api, sessionRoutes)
	var informed http.Header
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, nil)
		err := h.ServeHTTP(w, r, &app{do: func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set(userHeader, "alice")
			w.Header().Set(permissionsHeader, "read")
			w.WriteHeader(103)
			w.WriteHeader(204)
			return nil
		}})
		if err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	trace := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(_ int, header textproto.MIMEHeader) error {
		informed = http.Header(header)
		return nil
	}})
	req, err := http.NewRequestWithContext(trace, http.MethodGet, srv.URL+"/documents/doc1/session", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || len(api.Asked) != 1 || api.Asked[0].User != "alice" {
		t.Errorf("status %d, asked for %+v", resp.StatusCode, api.Asked)
	}
	if informed == nil || len(informed[userHeader]) > 0 || len(resp.Header[userHeader]) > 0 {
		t.Errorf("the browser is told %v, %v", informed, resp.Header)
	}
}

func TestFlushOnASessionPath(t *testing.T) {
	h := newTestHandler(t, new(dwstest.API), sessionRoutes)
	r, w := newRequest("GET", "/documents/doc1/session")
	err := h.ServeHTTP(w, r, &app{do: func(inner http.ResponseWriter, _ *http.Request) error {
		inner.Header().Set("Content-Type", "text/event-stream")
		inner.Header().Set(userHeader, "alice")
		if err := http.NewResponseController(inner).Flush(); err != nil || !w.Flushed || w.Code != 200 {
			t.Errorf("%v, flushed %t, status %d", err, w.Flushed, w.Code)
		}
		return nil
	}})
	if sent := w.Result().Header; err != nil || sent.Get("Content-Type") != "text/event-stream" || sent.Get(userHeader) != "" {
		t.Errorf("%v, %v", err, sent)
	}
	r, w = newRequest("GET", "/documents/doc1/session")
	err = h.ServeHTTP(w, r, &app{do: func(inner http.ResponseWriter, _ *http.Request) error {
		inner.WriteHeader(204)
		if err := http.NewResponseController(inner).Flush(); err != nil || w.Flushed {
			t.Errorf("%v, a yes was flushed to the browser: %t", err, w.Flushed)
		}
		_, err := io.Copy(inner, strings.NewReader(strings.Repeat("x", 1000)))
		return err
	}})
	wantSession(t, w, err)
}

// A browser's token was rejected.

func unsigned(jwt string) string { return jwt[:strings.LastIndexByte(jwt, '.')] }

func TestRejectedTokenIsReplaced(t *testing.T) {
	for name, form := range map[string]func(string) string{"whole": func(jwt string) string { return jwt }, "unsigned": unsigned} {
		t.Run(name, func(t *testing.T) {
			withPool(t, nil, func(t *testing.T, p *poolTest) {
				first := p.want("doc", resultMinted)
				second, result, f := p.replace(t.Context(), testClaims("doc"), form(first.jwt()))
				if f != nil || result != resultMinted || second.jwt() == first.jwt() {
					t.Fatalf("%v, %s", f, result)
				}
				if p.want("doc", resultHit) != second {
					t.Error("the new token did not replace the old one")
				}
				// Who comes late with the old one gets the new one.
				if tok, result, f := p.replace(t.Context(), testClaims("doc"), form(first.jwt())); f != nil || result != resultHit || tok != second {
					t.Errorf("%v, %s", f, result)
				}
				p.wantMints(2)
			})
		})
	}
}

func TestOnlyTheVeryTokenIsReplaced(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		first := p.want("doc", resultMinted)
		other := p.want("other", resultMinted)
		for _, rejected := range []string{
			"", "x", ".", other.jwt(), unsigned(other.jwt()), first.jwt() + "x", first.jwt()[:len(first.jwt())-1], unsigned(first.jwt()) + ".", "." + first.jwt(),
			unsigned(unsigned(first.jwt())), strings.ToUpper(first.jwt()), first.jwt() + ", " + first.jwt(),
		} {
			if tok, result, f := p.replace(t.Context(), testClaims("doc"), rejected); f != nil || result != resultHit || tok != first {
				t.Errorf("%.40q: %v, %s", rejected, f, result)
			}
		}
		if tok, result, f := p.replace(t.Context(), testClaims("cold"), first.jwt()); f != nil || result != resultMinted || tok == first {
			t.Errorf("%v, %s", f, result)
		}
		p.wantMints(3)
	})
}

func TestRejectedTokensAreReplacedOnceInAWhile(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		current := p.want("doc", resultMinted)
		reject := func() (result, *failure) {
			tok, result, f := p.replace(t.Context(), testClaims("doc"), current.jwt())
			if f == nil {
				current = tok
			}
			return result, f
		}
		if _, f := reject(); f != nil {
			t.Fatal(f)
		}
		for range 4 {
			time.Sleep(time.Second)
			_, f := reject()
			if f == nil || f.reason != reasonTooSoon || f.reason.status() != 503 || clock.Now().Until(f.retryAt) <= 0 || clock.Now().Until(f.retryAt) > replacementRest {
				t.Fatalf("%v, retry in %s", f, clock.Now().Until(f.retryAt))
			}
			p.want("doc", resultHit) // nobody else is bothered
		}
		p.wantMints(2)
		time.Sleep(time.Second)
		if result, f := reject(); f != nil || result != resultMinted {
			t.Errorf("%v, %s", f, result)
		}
		p.wantMints(3)
		// Another key is not concerned.
		other := p.want("other", resultMinted)
		if _, _, f := p.replace(t.Context(), testClaims("other"), other.jwt()); f != nil {
			t.Error(f)
		}
	})
}

func TestManyBrowsersRejectAtOnce(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		rejected := p.want("doc", resultMinted)
		p.api.Delay = time.Second
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if tok, _, f := p.replace(t.Context(), testClaims("doc"), rejected.jwt()); f != nil || tok == rejected {
					t.Errorf("%v, the rejected one: %v", f, tok == rejected)
				}
			})
		}
		wg.Go(func() { p.asked("doc", resultHit) }) // pages go on with it meanwhile
		wg.Wait()
		p.wantMints(2)
	})
}

// The same when the key has been rotated meanwhile: the former key's token is
// the fallback for everybody else, but not for whom it was rejected.
func TestRejectedTokenOfAFormerKey(t *testing.T) {
	withRotatedKey(t, func(t *testing.T, p *poolTest, first *token) {
		p.api.Set(dwstest.Failing(500))
		if tok, result, f := p.replace(t.Context(), testClaims("doc"), first.jwt()); f == nil || f.reason != reasonUnavailable {
			t.Fatalf("%v, %s, %v", tok, result, f)
		}
		p.want("doc", resultStale)
		time.Sleep(2 * time.Second)
		if _, _, f := p.replace(t.Context(), testClaims("doc"), first.jwt()); f == nil || f.reason != reasonTooSoon {
			t.Fatalf("%v", f)
		}
		p.api.Set(nil)
		time.Sleep(4 * time.Second)
		second, _, f := p.replace(t.Context(), testClaims("doc"), first.jwt())
		if f != nil || second == first {
			t.Fatalf("%v", f)
		}
		if p.want("doc", resultHit) != second {
			t.Error("the new token is not used")
		}
		if _, _, f := p.replace(t.Context(), testClaims("doc"), second.jwt()); f == nil || f.reason != reasonTooSoon {
			t.Fatalf("%v", f)
		}
	})
}

// If no other can be minted, the browser is told why, and the token stays for
// those who can use it.
func TestRejectedTokenStaysWhenNoOtherCanBeMinted(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		first := p.want("doc", resultMinted)
		p.api.Set(dwstest.Failing(500))
		if _, _, f := p.replace(t.Context(), testClaims("doc"), first.jwt()); f == nil || f.reason != reasonUnavailable {
			t.Fatalf("%v", f)
		}
		if p.want("doc", resultHit) != first {
			t.Error("the token is gone")
		}
		p.api.Set(nil)
		time.Sleep(2 * time.Second)
		if _, _, f := p.replace(t.Context(), testClaims("doc"), first.jwt()); f == nil || f.reason != reasonTooSoon {
			t.Fatalf("%v", f)
		}
		time.Sleep(4 * time.Second)
		if tok, _, f := p.replace(t.Context(), testClaims("doc"), first.jwt()); f != nil || tok == first {
			t.Fatalf("%v", f)
		}
	})
}

// A rejection that joins the renewal of the same token gets what that brings.
func TestRejectionJoinsARenewal(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		first := p.want("doc", resultMinted)
		time.Sleep(30 * time.Minute)
		p.api.Delay = time.Second
		p.asked("doc", resultRenewing)
		synctest.Wait()
		tok, result, f := p.replace(t.Context(), testClaims("doc"), first.jwt())
		if f != nil || result != resultShared || tok == first {
			t.Fatalf("%v, %s", f, result)
		}
		p.wantMints(2)
	})
}

// Nobody gets a refusal that was meant for a browser whose token was rejected.
func TestExpiredTokenIsNoRejection(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		first := p.want("doc", resultMinted)
		first.replaceAfter.Store(1 << 62)
		time.Sleep(time.Hour)
		if tok, result, f := p.replace(t.Context(), testClaims("doc"), first.jwt()); f != nil || result != resultMinted || tok == first {
			t.Fatalf("%v, %s", f, result)
		}
		if _, _, f := p.mintOnce(p.flight(first), testClaims("doc"), flightOptions{rejected: first}); f != nil {
			t.Errorf("%v", f)
		}
	})
}

func TestRejectedHeaderReachesThePool(t *testing.T) {
	api := new(dwstest.API)
	h := newTestHandler(t, api, sessionRoutes)
	fetch := func(rejected string) (*httptest.ResponseRecorder, error) {
		r, w := newRequest("GET", "/documents/doc1/session", rejectedHeader, rejected)
		return w, h.ServeHTTP(w, r, appAnswering(204))
	}
	w, err := fetch("")
	first := wantSession(t, w, err)
	w, err = fetch("another.to.ken")
	if wantSession(t, w, err) != first {
		t.Error("another token was replaced")
	}
	w, err = fetch(first)
	second := wantSession(t, w, err)
	if first == second {
		t.Error("the rejected token came again")
	}
	w, err = fetch(second)
	wantStatus(t, err, 503, reasonTooSoon)
	if w.Header().Get("Retry-After") != "5" {
		t.Errorf("Retry-After %q", w.Header().Get("Retry-After"))
	}
	if api.Count() != 2 {
		t.Errorf("%d mints, want 2", api.Count())
	}
	// The app that says no has the last word.
	r, w := newRequest("GET", "/documents/doc1/session", rejectedHeader, second)
	if err := h.ServeHTTP(w, r, appAnswering(403)); err != nil || w.Code != 403 || api.Count() != 2 {
		t.Errorf("%v, %d, %d mints", err, w.Code, api.Count())
	}
}

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

// A flight that knows of no rejection may bring the rejected token itself.
func TestRejectionOutlivesAFlightThatDoesNotKnow(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		first := p.want("doc", resultMinted)
		release := make(chan struct{})
		p.flights.start(first.key()[len(mint.KeyID{}):], "another", p.minter.NewWaiters, func(f *flight) {
			<-release
			f.token = first
		})
		var wg sync.WaitGroup
		wg.Go(func() {
			if tok, _, f := p.replace(t.Context(), testClaims("doc"), first.jwt()); f != nil || tok == first {
				t.Errorf("%v, the rejected token: %t", f, tok == first)
			}
		})
		synctest.Wait()
		close(release)
		wg.Wait()
	})
}
