package viewersession

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

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

// The app may name the user, which is ground enough for what vary_by is empty for.
func TestAppsUserStandsInForAnEmptyVaryBy(t *testing.T) {
	h := newTestHandler(t, new(dwstest.API), "viewer_session {\ndocument_path /documents/:id {\npermissions read write\nvary_by {http.vars.team}\nsession_path /documents/:id/session\n}\n}")
	r, w := newRequest("GET", "/documents/doc/session")
	wantStatus(t, h.ServeHTTP(w, r, appAnswering(204)), 403, reasonNoPermission)
	r, w = newRequest("GET", "/documents/doc/session")
	wantSession(t, w, h.ServeHTTP(w, r, appAnswering(204, userHeader, "ann")))
	r, w = newRequest("GET", "/documents/doc/session")
	wantSession(t, w, h.ServeHTTP(w, r, appAnswering(204, permissionsHeader, "read")))
}

// What the app says to the gateway reaches no browser, and what a browser says of a
// rejected token no app, on any path of a handler that has session paths.
func TestWhatIsSaidToTheGatewayStaysInside(t *testing.T) {
	says := func(trailer bool) *app {
		return &app{do: func(w http.ResponseWriter, _ *http.Request) error {
			for _, name := range approvalHeaders {
				w.Header().Set(name, "secret")
			}
			w.Header().Set("Link", "kept")
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusOK)
			if trailer {
				w.Header().Set(http.TrailerPrefix+documentHeader, "secret")
			}
			return nil
		}}
	}
	sessions := newTestHandler(t, new(dwstest.API), sessionRoutes)
	stored := newTestHandler(t, new(dwstest.API), strings.Replace(sessionRoutes, "viewer_session {", "viewer_session {\nallow_store", 1))
	without := newTestHandler(t, new(dwstest.API), oneRoute)
	for _, target := range []string{"/documents/doc", "/elsewhere", "//documents/doc/session", "/documents/doc%2Fsession", "/documents/a.b/session", "/documents/doc/session/"} {
		for _, h := range []*Handler{sessions, stored, without} {
			for _, method := range []string{"GET", "OPTIONS", "POST"} {
				alias := "X_Viewer_Rejected"
				r, w := newRequest(method, target, rejectedHeader, "a.b.c", alias, "a.b.c")
				next := says(method == "POST")
				if err := h.ServeHTTP(w, r, next); err != nil {
					t.Fatal(err)
				}
				told := w.Header().Get(documentHeader)+w.Header().Get(permissionsHeader)+w.Header().Get(userHeader)+w.Header().Get(http.TrailerPrefix+documentHeader) != ""
				rejected := next.header.Get(rejectedHeader) != "" || next.header[alias] != nil
				if inside := h != without; told == inside || rejected == inside || w.Header().Get("Link") != "kept" {
					t.Errorf("%s %s, session paths %t: told %v, and of a rejected token %v", method, target, inside, w.Header(), next.header)
				}
			}
		}
	}
}

// An instance further in, with session paths of its own, leaves the app's words to
// the one that waits for them.
func TestApprovalPassesAnInnerInstance(t *testing.T) {
	outer := newTestHandler(t, new(dwstest.API), "viewer_session {\nsession_path /contracts/*/session\n}")
	inner := newTestHandler(t, new(dwstest.API), "viewer_session {\nsession_path /other/*/session\nrequest_header X-Inner\n}")
	r, w := newRequest("GET", "/contracts/7/session")
	err := outer.ServeHTTP(w, r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		return inner.ServeHTTP(w, r, appAnswering(204, documentHeader, "lease"))
	}))
	wantSession(t, w, err)
	if got := placeholder(r, "document_id"); got != "lease" {
		t.Errorf("document %q", got)
	}
}

// What a handler further out says under the app's names does not reach the browser
// on the gateway's own answers.
func TestOwnAnswersHoldNoApproval(t *testing.T) {
	h := newTestHandler(t, new(dwstest.API), strings.Replace(ownDocuments, "{", "{\n\tscript_path /v.js", 1))
	for _, target := range []string{"/v.js", "/editor", "/editor/session", "/elsewhere"} {
		r, w := newRequest("GET", target)
		for _, name := range approvalHeaders {
			w.Header().Set(name, "evil")
		}
		_ = h.ServeHTTP(w, r, appAnswering(204))
		if text := headerText(w.Header()); strings.Contains(text, "evil") {
			t.Errorf("%s: %s", target, text)
		}
	}
}
