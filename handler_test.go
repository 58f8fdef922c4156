package viewersession

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

// newTestHandler returns a handler as Provision makes it, with a fake API.
func newTestHandler(t *testing.T, api *dwstest.API, caddyfile string) *Handler {
	t.Helper()
	h, err := parseTestHandler(caddyfile)
	if err != nil {
		t.Fatal(err)
	}
	h.logger = zap.NewNop()
	h.member = newMember(api, nil, zap.NewNop(), "pdf_live_test")
	if h.pool, err = joinPool(testSettings(t), newEndpoint(), h.member, clock.Now); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Cleanup(); err != nil {
			t.Error(err)
		}
	})
	return h
}

const oneRoute = `viewer_session {
	document_path /documents/:id
}`

// newRequest returns a request as Caddy prepares it for its handlers.
func newRequest(method, target string, header ...string) (*http.Request, *httptest.ResponseRecorder) {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header[header[i]] = append(r.Header[header[i]], header[i+1])
	}
	return caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, nil), w
}

// app is the next handler: it keeps what it saw.
type app struct {
	calls  int
	header http.Header
	do     func(http.ResponseWriter, *http.Request) error
}

func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) error {
	a.calls++
	a.header = r.Header.Clone()
	if a.do != nil {
		return a.do(w, r)
	}
	_, err := io.WriteString(w, "page")
	return err
}

func placeholder(r *http.Request, name string) string {
	s, _ := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).GetString("http.viewer_session." + name)
	return s
}

func TestTokenReachesTheApp(t *testing.T) {
	h := newTestHandler(t, new(dwstest.API), oneRoute)
	var jwts []string
	for i, want := range []result{resultMinted, resultHit} {
		next := new(app)
		r, w := newRequest("GET", "/documents/doc1")
		if err := h.ServeHTTP(w, r, next); err != nil {
			t.Fatal(err)
		}
		if got := next.header[defaultRequestHeader]; len(got) != 1 || strings.Count(got[0], ".") != 2 {
			t.Fatalf("request %d: the app saw %q", i, got)
		}
		jwts = append(jwts, next.header.Get(defaultRequestHeader))
		if got := placeholder(r, "result"); got != want.String() {
			t.Errorf("request %d: result %s, want %s", i, got, want)
		}
		if placeholder(r, "document_id") != "doc1" || len(placeholder(r, "expires_at")) != 10 || placeholder(r, "error") != "" {
			t.Errorf("placeholders %q %q %q", placeholder(r, "document_id"), placeholder(r, "expires_at"), placeholder(r, "error"))
		}
		if r.Header.Get(defaultRequestHeader) != "" {
			t.Error("the token is still on the request after the app has answered")
		}
		if got := w.Header().Get("Cache-Control"); got != "private, no-store" {
			t.Errorf("Cache-Control %q", got)
		}
	}
	if jwts[0] != jwts[1] {
		t.Error("the cached token is another one")
	}
}

// For every branch: what a client sends under our names never reaches the app,
// and ours does exactly once where there is one.
func TestClientValuesNeverReachTheApp(t *testing.T) {
	forged := []string{
		"X-Viewer-Session", "forged1", "X_viewer_session", "forged2", "X.Viewer.Session", "forged3", "x-viewer-session", "forged4",
		"X-Viewer_Session", "forged5",
		"Cookie", "a=1; viewer=forged6; b=2", "Cookie", "viewer=forged7", "Cookie", "VIEWER = forged8; c=3",
		"Connection", "X-Viewer-Session, Upgrade, cookie", "Upgrade", "websocket",
	}
	for name, tc := range map[string]struct {
		method, target string
		answer         dwstest.Answer
		onError        string
		token          bool
		status         int
	}{
		"viewer route":         {"GET", "/documents/doc", nil, "fail", true, 0},
		"another method":       {"POST", "/documents/doc", nil, "fail", true, 0},
		"other route":          {"GET", "/elsewhere", nil, "fail", false, 0},
		"path not canonical":   {"GET", "/documents/a%2Fb", nil, "fail", false, 0},
		"id not in the format": {"GET", "/documents/a.b", nil, "fail", false, 0},
		"OPTIONS":              {"OPTIONS", "/documents/doc", nil, "fail", false, 0},
		"TRACE":                {"TRACE", "/documents/doc", nil, "fail", false, 0},
		"on_error pass":        {"GET", "/documents/doc", dwstest.Failing(500), "pass", false, 0},
		"on_error fail":        {"GET", "/documents/doc", dwstest.Failing(500), "fail", false, 502},
	} {
		t.Run(name, func(t *testing.T) {
			h := newTestHandler(t, &dwstest.API{Answer: tc.answer}, `viewer_session {
				document_path /documents/:id
				request_header X-Viewer-Session
				request_cookie viewer
				on_error `+tc.onError+`
			}`)
			next := new(app)
			r, w := newRequest(tc.method, tc.target, forged...)
			err := h.ServeHTTP(w, r, next)
			if he, ok := errors.AsType[caddyhttp.HandlerError](err); ok != (tc.status != 0) || he.StatusCode != tc.status {
				t.Fatalf("error %v, want status %d", err, tc.status)
			}
			// The request itself goes on to error routes.
			for what, header := range map[string]http.Header{"app": next.header, "error route": r.Header} {
				if text := headerText(header); strings.Contains(text, "forged") {
					t.Errorf("%s saw a client's value: %s", what, text)
				}
				if header == nil {
					continue
				}
				if got := header.Get("Connection"); got != "Upgrade" {
					t.Errorf("%s saw Connection: %q", what, got)
				}
				cookies := strings.Join(header["Cookie"], "; ")
				for _, honest := range []string{"a=1", "b=2", "c=3"} {
					if !strings.Contains(cookies, honest) {
						t.Errorf("%s lost the cookie %s: %q", what, honest, cookies)
					}
				}
				wantTokens := 0
				if tc.token && what == "app" {
					wantTokens = 1
				}
				if got := len(header["X-Viewer-Session"]); got != wantTokens {
					t.Errorf("%s saw %d of our headers, want %d", what, got, wantTokens)
				}
				if got := strings.Count(strings.ToLower(cookies), "viewer="); got != wantTokens {
					t.Errorf("%s saw %d of our cookies, want %d: %q", what, got, wantTokens, cookies)
				}
			}
		})
	}
}

func headerText(header http.Header) string {
	var b strings.Builder
	_ = header.Write(&b)
	return b.String()
}

func TestStatuses(t *testing.T) {
	for name, tc := range map[string]struct {
		options string
		answer  dwstest.Answer
		status  int
		reason  reason
		mints   int
	}{
		"user empty":           {"user_id {http.auth.user.id}", nil, 401, reasonNoUser, 0},
		"user unknown in part": {"user_id member:{http.vars.user}", nil, 401, reasonNoUser, 0},
		"no permission":        {"permissions {http.vars.permissions}\nshared", nil, 403, reasonNoPermission, 0},
		"claim empty":          {`claim team "{http.vars.team}"`, nil, 403, reasonNoClaim, 0},
		"claim empty in part":  {`document_claim_json who ` + "`" + `{"a":["x {http.vars.team}"]}` + "`", nil, 403, reasonNoClaim, 0},
		"unavailable":          {"", dwstest.Failing(503), 502, reasonUnavailable, 1},
		"throttled":            {"", dwstest.Failing(429, "Retry-After", "7"), 503, reasonThrottled, 1},
		"key refused":          {"", dwstest.Failing(403), 502, reasonKeyRefused, 1},
		"rejected":             {"", dwstest.Failing(404), 502, reasonRefused, 1},
		"rejected, both ways":  {"", dwstest.Failing(422), 502, reasonRefused, 2},
		"invalid reply":        {"", dwstest.Failing(201), 502, reasonInvalidReply, 1},
		"over-granted":         {"", dwstest.Granting(`{"permissions": ["read", "download"]}`), 502, reasonOverGranted, 1},
	} {
		for _, onError := range []string{"fail", "pass"} {
			t.Run(name+"/"+onError, func(t *testing.T) {
				api := &dwstest.API{Answer: tc.answer}
				h := newTestHandler(t, api, "viewer_session {\n document_path /documents/:id\non_error "+onError+"\n"+tc.options+"\n}")
				next := new(app)
				r, w := newRequest("GET", "/documents/doc", "If-None-Match", "x")
				err := h.ServeHTTP(w, r, next)
				if api.Count() != tc.mints {
					t.Errorf("%d mints, want %d", api.Count(), tc.mints)
				}
				if got := placeholder(r, "error"); got != string(tc.reason) {
					t.Errorf("{http.viewer_session.error} is %q, want %q", got, tc.reason)
				}
				if got := placeholder(r, "result"); got != resultError.String() {
					t.Errorf("{http.viewer_session.result} is %q", got)
				}
				if onError == "pass" {
					if err != nil || next.calls != 1 {
						t.Fatalf("%d calls of the app, error %v", next.calls, err)
					}
					if next.header.Get(defaultRequestHeader) != "" || next.header.Get("If-None-Match") != "" {
						t.Errorf("the app saw %s", headerText(next.header))
					}
					return
				}
				he, ok := errors.AsType[caddyhttp.HandlerError](err)
				if !ok || he.StatusCode != tc.status {
					t.Fatalf("error %v, want status %d", err, tc.status)
				}
				if next.calls != 0 {
					t.Error("the app was called")
				}
				if got := w.Header().Get("Cache-Control"); got != "no-store" {
					t.Errorf("Cache-Control %q", got)
				}
				if got := w.Header().Get("Retry-After"); (got != "") != (tc.status == 503) {
					t.Errorf("Retry-After %q with status %d", got, tc.status)
				} else if tc.reason == reasonThrottled && got != "7" {
					t.Errorf("Retry-After %q, want 7", got)
				}
				if text := err.Error(); strings.Contains(text, "pdf_live_test") || strings.Contains(text, "eyJ") {
					t.Errorf("the error holds a secret: %s", text)
				}
			})
		}
	}
}

func TestClientThatLeftGets499(t *testing.T) {
	for _, onError := range []string{"fail", "pass"} {
		h := newTestHandler(t, &dwstest.API{Delay: time.Minute}, "viewer_session {\n document_path /documents/:id\non_error "+onError+"\n}")
		r, w := newRequest("GET", "/documents/doc")
		ctx, cancel := context.WithCancel(r.Context())
		cancel()
		next := new(app)
		err := h.ServeHTTP(w, r.WithContext(ctx), next)
		if he, ok := errors.AsType[caddyhttp.HandlerError](err); !ok || he.StatusCode != 499 || next.calls != 0 {
			t.Errorf("%s: %v and %d calls of the app", onError, err, next.calls)
		}
	}
}

func TestWhatTheClientAskedForIsMatched(t *testing.T) {
	api := new(dwstest.API)
	h := newTestHandler(t, api, oneRoute)
	r, w := newRequest("GET", "/documents/asked")
	r.URL.Path = "/documents/rewritten" // as rewrite or handle_path would
	if err := h.ServeHTTP(w, r, new(app)); err != nil {
		t.Fatal(err)
	}
	r, w = newRequest("GET", "/elsewhere")
	r.URL.Path = "/documents/rewritten"
	if err := h.ServeHTTP(w, r, new(app)); err != nil {
		t.Fatal(err)
	}
	if len(api.Asked) != 1 || api.Asked[0].Document != "asked" {
		t.Errorf("minted for %v", api.Asked)
	}
}

func TestFirstRouteThatMatchesWins(t *testing.T) {
	api := new(dwstest.API)
	h := newTestHandler(t, api, `viewer_session {
		document_path /documents/:id/edit {
			permissions read write
			shared
		}
		document_path /documents/:id/*
		document_path /view {
			document_id {http.request.uri.query.doc}
		}
		document_path /view {
			document_id {http.vars.doc}
		}
	}`)
	get := func(target string, vars map[string]any) string {
		r, w := newRequest("GET", target)
		for name, value := range vars {
			caddyhttp.SetVar(r.Context(), name, value)
		}
		if err := h.ServeHTTP(w, r, new(app)); err != nil {
			t.Fatal(err)
		}
		return placeholder(r, "document_id")
	}
	for _, tc := range []struct {
		target string
		vars   map[string]any
		want   string
	}{
		{"/documents/a/edit", nil, "a"},
		{"/documents/b/read/on", nil, "b"},
		{"/documents/c", nil, ""},
		{"/view?doc=d", nil, "d"},
		{"/view?doc=d%2Fe", nil, ""},
		{"/view?doc=%7Benv.HOME%7D", nil, ""},
		{"/view?doc=d.d", map[string]any{"doc": "e"}, "e"},
		{"/view", nil, ""},
		{"/view", map[string]any{"doc": "f"}, "f"},
	} {
		if got := get(tc.target, tc.vars); got != tc.want {
			t.Errorf("%s %v: document %q, want %q", tc.target, tc.vars, got, tc.want)
		}
	}
}

func TestEmptyUserIsLoggedOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.DebugLevel)
		h, err := parseTestHandler("viewer_session {\ndocument_path /documents/:id\nuser_id {http.auth.user.id}\n}")
		if err != nil {
			t.Fatal(err)
		}
		h.logger = zap.New(core)
		h.pool = &pool{stats: new(stats)}
		for range 120 {
			r, w := newRequest("GET", "/documents/doc")
			if err := h.ServeHTTP(w, r, new(app)); err == nil {
				t.Fatal("no error")
			}
			time.Sleep(time.Second)
		}
		entries := logs.All()
		if len(entries) != 2 {
			t.Fatalf("%d log entries in two minutes, want 2", len(entries))
		}
		if !strings.Contains(entries[0].Message, "authentication likely runs after viewer_session") {
			t.Errorf("the message names no cause: %s", entries[0].Message)
		}
		if got := entries[1].ContextMap()["suppressed"]; got != int64(59) {
			t.Errorf("suppressed %v, want 59", got)
		}
	})
}

// Reloading, the old handlers are cleaned up while their requests are under way.
func TestCleanupIsSafeAtAnyTime(t *testing.T) {
	if err := new(Handler).Cleanup(); err != nil {
		t.Errorf("of a handler that was never provisioned: %v", err)
	}
	h := newTestHandler(t, new(dwstest.API), oneRoute)
	if err := h.Cleanup(); err != nil {
		t.Fatal(err)
	}
	next := new(app)
	r, w := newRequest("GET", "/documents/doc")
	if err := h.ServeHTTP(w, r, next); err != nil || next.header.Get(defaultRequestHeader) == "" {
		t.Errorf("a request of the old config: %v", err)
	}
	h.pool = nil // for the test's own cleanup
}

func TestOneUsersTokenIsNeverAnothers(t *testing.T) {
	api := new(dwstest.API)
	h := newTestHandler(t, api, `viewer_session {
		document_path /documents/:id
		user_id {http.vars.user}
		vary_by {http.vars.member}
		claim team "{http.vars.team}"
		permissions read {http.vars.permissions}
	}`)
	seen := make(map[string][]string)
	for range 2 {
		for _, vars := range [][]string{
			{"user", "a", "team", "t"},
			{"user", "b", "team", "t"},
			{"user", "a", "team", "u"},
			{"user", "a", "team", "t", "permissions", "write"},
			{"user", "a", "team", "t", "member", "x"},
			{"user", "a", "team", "t", "member", "y"},
		} {
			for _, document := range []string{"one", "two"} {
				next := new(app)
				r, w := newRequest("GET", "/documents/"+document)
				for i := 0; i < len(vars); i += 2 {
					caddyhttp.SetVar(r.Context(), vars[i], vars[i+1])
				}
				if err := h.ServeHTTP(w, r, next); err != nil {
					t.Fatal(err)
				}
				who := document + " " + strings.Join(vars, " ")
				if jwt := next.header.Get(defaultRequestHeader); !slices.Contains(seen[jwt], who) {
					seen[jwt] = append(seen[jwt], who)
				}
			}
		}
	}
	if len(seen) != 12 || api.Count() != 12 {
		t.Errorf("%d tokens from %d mints for 12 different requests", len(seen), api.Count())
	}
	for _, who := range seen {
		if len(who) != 1 {
			t.Errorf("one token for %q", who)
		}
	}
}

// A path that fits but for its id is passed on, and logged once a minute.
func TestIDsThatDoNotFitAreLogged(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	h := newTestHandler(t, new(dwstest.API), oneRoute)
	h.logger = zap.New(core)
	for range 3 {
		for _, target := range []string{"/documents/report.pdf", "/documents/", "/elsewhere/report.pdf", "/documents/a/b"} {
			r, w := newRequest("GET", target)
			next := new(app)
			if err := h.ServeHTTP(w, r, next); err != nil || next.header.Get("X-Viewer-Session") != "" || placeholder(r, "result") != "" {
				t.Errorf("%s: %v, result %q", target, err, placeholder(r, "result"))
			}
		}
	}
	if entries := logs.All(); len(entries) != 1 || entries[0].ContextMap()["document_id"] != "report.pdf" {
		t.Errorf("logged %v", entries)
	}
}

// Where vary_by is all that tells users apart, an empty one opens nothing.
func TestEmptyVaryByOpensNothing(t *testing.T) {
	for _, test := range []struct {
		options, team, user string
		status              int // 0: a token
	}{
		{"permissions read write\nvary_by {http.vars.team}", "", "", 403},
		{"permissions read write\nvary_by {http.vars.team}", "red", "", 0},
		{"permissions read write\nvary_by {http.vars.team} {http.vars.none}", "red", "", 403},
		{"permissions read\nvary_by {http.vars.team}", "", "", 0},
		{"permissions {http.vars.permissions}\nvary_by {http.vars.team}", "", "", 403},
		{"permissions read write\nvary_by {http.vars.team}\nshared", "", "", 0},
		{"permissions read write\nvary_by {http.vars.team}\nuser_id {http.vars.user}", "", "ann", 0},
	} {
		h := newTestHandler(t, new(dwstest.API), "viewer_session {\ndocument_path /documents/:id {\n"+test.options+"\n}\n}")
		r, w := newRequest("GET", "/documents/doc")
		for name, value := range map[string]string{"team": test.team, "user": test.user, "permissions": "read write"} {
			caddyhttp.SetVar(r.Context(), name, value)
		}
		err := h.ServeHTTP(w, r, new(app))
		if test.status == 0 && err != nil {
			t.Errorf("%q, team %q: %v", test.options, test.team, err)
		}
		if test.status != 0 {
			wantStatus(t, err, test.status, reasonNoPermission)
		}
	}
}

// Two values of vary_by in one argument are two parts of the key.
func TestValuesOfVaryByAreKeptApart(t *testing.T) {
	h := newTestHandler(t, new(dwstest.API), `viewer_session {
		document_path /editor {
			app_provided
			vary_by {http.vars.org}{http.auth.user.id}
		}
	}`)
	tokens := make(map[string]string)
	for user, org := range map[string]string{"joann": "o", "ann": "ojo"} {
		r, w := newRequest("GET", "/editor")
		repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
		repl.Set("http.vars.org", org)
		repl.Set("http.auth.user.id", user)
		next := new(app)
		if err := h.ServeHTTP(w, r, next); err != nil {
			t.Fatal(err)
		}
		tokens[next.header.Get(defaultRequestHeader)] = user
	}
	if len(tokens) != 2 {
		t.Errorf("they share a token: %v", tokens)
	}
	r, w := newRequest("GET", "/editor")
	r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).Set("http.vars.org", "o")
	wantStatus(t, h.ServeHTTP(w, r, new(app)), 403, reasonNoPermission) // one of the two is empty
}
