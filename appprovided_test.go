package viewersession

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

const ownDocuments = `viewer_session {
	permissions read write
	document_claim page 3
	claim team blue
	user_id {http.auth.user.id}
	document_path /editor /drafts/* {
		app_provided
		session_path /editor/session
	}
	document_path /documents/:id
}`

type httpAnswer struct {
	*httptest.ResponseRecorder
	err   error
	token string // that the app saw
}

// visit sends a request of a user's and returns what came of it. No user: "".
func visit(h *Handler, next *app, user, method, target string, header ...string) (*http.Request, *httpAnswer) {
	r, w := newRequest(method, target, header...)
	if user != "" {
		r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).Set("http.auth.user.id", user)
	}
	next.header = nil
	err := h.ServeHTTP(w, r, next)
	return r, &httpAnswer{w, err, next.header.Get(defaultRequestHeader)}
}

func TestAppProvided(t *testing.T) {
	api := new(dwstest.API)
	h := newTestHandler(t, api, ownDocuments)
	next := new(app)

	// The request has neither a document nor permissions, the token is told apart by nothing but the user, and is reused.
	r, first := visit(h, next, "ann", "GET", "/editor?x=1", defaultRequestHeader, "forged")
	if first.err != nil || strings.Count(first.token, ".") != 2 {
		t.Fatalf("%v, token %q", first.err, first.token)
	}
	var body map[string]any
	if err := json.Unmarshal([]byte(api.Asked[0].Body), &body); err != nil {
		t.Fatal(err)
	}
	exp, _ := body["exp"].(float64)
	delete(body, "exp")
	if got := fmt.Sprint(body); exp == 0 || got != "map[team:blue user_id:ann]" {
		t.Errorf("asked for %s, exp %v", got, exp)
	}
	if placeholder(r, "document_id") != "" || placeholder(r, "result") != "minted" || len(placeholder(r, "expires_at")) != 10 {
		t.Errorf("placeholders %q %q %q", placeholder(r, "document_id"), placeholder(r, "result"), placeholder(r, "expires_at"))
	}
	if got := first.Header().Get("Cache-Control"); got != "private, no-store" {
		t.Errorf("Cache-Control %q", got)
	}
	for _, target := range []string{"/editor", "/Editor/", "/drafts/7", "/drafts/a/b"} {
		r, again := visit(h, next, "ann", "GET", target)
		if again.token != first.token || placeholder(r, "result") != "hit" {
			t.Errorf("%s: %v, result %s", target, again.err, placeholder(r, "result"))
		}
	}

	// Others do not share it.
	_, bob := visit(h, next, "bob", "GET", "/editor")
	_, annsDocument := visit(h, next, "ann", "GET", "/documents/editor")
	if bob.token == first.token || bob.token == "" || annsDocument.token == first.token || annsDocument.token == "" {
		t.Errorf("shared: %v, %v", bob.err, annsDocument.err)
	}
	mints := api.Count()
	if r, nobody := visit(h, next, "", "GET", "/editor", defaultRequestHeader, "forged"); next.header != nil || api.Count() != mints {
		t.Errorf("nobody: %v, result %s", nobody.err, placeholder(r, "result"))
	} else {
		wantStatus(t, nobody.err, 401, reasonNoUser)
	}

	// Paths that are not the route's.
	for _, target := range []string{"/drafts", "/drafts/", "/editors", "/editor//", "/editor/x"} {
		if r, other := visit(h, next, "ann", "GET", target, defaultRequestHeader, "forged"); other.err != nil || other.token != "" || placeholder(r, "result") != "" {
			t.Errorf("%s: %v, token %q", target, other.err, other.token)
		}
	}
	if _, options := visit(h, next, "ann", "OPTIONS", "/editor"); options.token != "" {
		t.Error("OPTIONS got a token")
	}
}

// What the handler says of documents does not apply, even if it comes out empty.
func TestAppProvidedBesideSettingsForDocuments(t *testing.T) {
	api := new(dwstest.API)
	h := newTestHandler(t, api, `viewer_session {
		permissions {http.vars.permissions}
		document_claim page {http.vars.page}
		document_id {http.vars.document}
		user_id {http.auth.user.id}
		document_path /editor {
			app_provided
		}
		document_path /view
	}`)
	if _, got := visit(h, new(app), "ann", "GET", "/editor"); got.err != nil || got.token == "" {
		t.Fatal(got.err)
	}
	if got := api.Asked[0].Body; strings.Contains(got, "page") || strings.Contains(got, "permissions") || strings.Contains(got, "document") {
		t.Errorf("asked for %s", got)
	}
}

// What the access log says: there is no document.
func TestAppProvidedInTheAccessLog(t *testing.T) {
	h := newTestHandler(t, new(dwstest.API), ownDocuments)
	for target, want := range map[string]bool{"/editor": false, "/documents/42": true} {
		r, _ := visit(h, new(app), "ann", "GET", target)
		entry := zapcore.NewMapObjectEncoder()
		if err := requestInfoFrom(r).MarshalLogObject(entry); err != nil {
			t.Fatal(err)
		}
		if _, ok := entry.Fields["document_id"]; ok != want || entry.Fields["result"] != "minted" {
			t.Errorf("%s: %v", target, entry.Fields)
		}
	}
}

func TestAppProvidedTokenThatNamesADocument(t *testing.T) {
	for claims, want := range map[string]int{
		`{}`:                          0,
		`{"allowed_documents": []}`:   0,
		`{"allowed_documents": null}`: 0,
		`{"allowed_documents": [{"document_id": "doc"}]}`:                  502,
		`{"allowed_documents": [{}]}`:                                      502,
		`{"allowed_documents": ["*"]}`:                                     502,
		`{"allowed_documents": {}}`:                                        502,
		`{"document_id": "doc"}`:                                           502,
		`{"document_id": ""}`:                                              502,
		`{"user_id": "bob"}`:                                               502,
		`{"user_id": "ann", "permissions": ["read", "write", "download"]}`: 0,
		`{"permissions": ["anything"], "allowed_operations": ["instant"]}`: 0,
	} {
		t.Run(claims, func(t *testing.T) {
			h := newTestHandler(t, &dwstest.API{Answer: dwstest.Granting(claims)}, ownDocuments)
			next := new(app)
			_, got := visit(h, next, "ann", "GET", "/editor")
			if want == 0 {
				if got.err != nil || got.token == "" {
					t.Error(got.err)
				}
				return
			}
			wantStatus(t, got.err, want, reasonInvalidReply)
			if next.calls != 0 {
				t.Error("the app was asked")
			}
		})
	}
}

// No permissions have been asked for: there is no documented form of them to fall back to, and nothing to warn of.
func TestAppProvidedHasNoPermissionsToCheck(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	api := &dwstest.API{Answer: dwstest.Failing(422)}
	h := newTestHandler(t, api, ownDocuments)
	h.member.logger, h.logger = zap.New(core), zap.NewNop()
	_, got := visit(h, new(app), "ann", "GET", "/editor")
	wantStatus(t, got.err, 502, reasonRefused)
	if api.Count() != 1 {
		t.Errorf("%d requests, want one", api.Count())
	}
	logs.TakeAll()

	api.Set(dwstest.Granting(`{}`))
	if _, got = visit(h, new(app), "bob", "GET", "/editor"); got.err != nil {
		t.Fatal(got.err)
	}
	if entries := logs.TakeAll(); len(entries) != 0 {
		t.Errorf("logged %v", entries)
	}
}

func TestAppProvidedSessionPath(t *testing.T) {
	for _, test := range []struct {
		name, user string
		header     []string
		sent       string // user_id
		status     int
		reason     reason
	}{
		{"the config's user", "ann", nil, "ann", 0, ""},
		{"the app's user", "ann", []string{userHeader, "bob"}, "bob", 0, ""},
		{"the app's user where there is no other", "", []string{userHeader, "bob"}, "bob", 0, ""},
		{"nobody", "", nil, "", 401, reasonNoUser},
		{"a document", "ann", []string{documentHeader, "42"}, "", 502, reasonAppAnswer},
		{"an empty document", "ann", []string{documentHeader, ""}, "", 502, reasonAppAnswer},
		{"permissions", "ann", []string{permissionsHeader, "read"}, "", 502, reasonAppAnswer},
		{"empty permissions", "ann", []string{permissionsHeader, ""}, "", 502, reasonAppAnswer},
		{"two users", "ann", []string{userHeader, "bob", userHeader, "eve"}, "", 502, reasonAppAnswer},
	} {
		t.Run(test.name, func(t *testing.T) {
			api := new(dwstest.API)
			h := newTestHandler(t, api, ownDocuments)
			_, got := visit(h, appAnswering(204, test.header...), test.user, "GET", "/editor/session", defaultRequestHeader, "forged")
			if test.status != 0 {
				wantStatus(t, got.err, test.status, test.reason)
				if api.Count() != 0 {
					t.Errorf("%d mints", api.Count())
				}
				return
			}
			jwt := wantSession(t, got.ResponseRecorder, got.err)
			if api.Asked[0].User != test.sent || api.Asked[0].Document != "" || strings.Contains(api.Asked[0].Body, "permissions") {
				t.Errorf("asked for %s", api.Asked[0].Body)
			}
			// The page that the same user asks for gets the same token.
			if _, page := visit(h, new(app), test.sent, "GET", "/editor"); page.token != jwt {
				t.Errorf("the page has another token: %v", page.err)
			}
		})
	}
	t.Run("the app says no", func(t *testing.T) {
		api := new(dwstest.API)
		h := newTestHandler(t, api, ownDocuments)
		if _, got := visit(h, appAnswering(403, userHeader, "bob"), "ann", "GET", "/editor/session"); got.Code != 403 || api.Count() != 0 || got.Header().Get(userHeader) != "" {
			t.Errorf("%d, %d mints, %v", got.Code, api.Count(), got.Header())
		}
	})
	t.Run("rejected", func(t *testing.T) {
		h := newTestHandler(t, new(dwstest.API), ownDocuments)
		_, got := visit(h, appAnswering(204), "ann", "GET", "/editor/session")
		jwt := wantSession(t, got.ResponseRecorder, got.err)
		_, got = visit(h, appAnswering(204), "ann", "GET", "/editor/session", "X-Viewer-Rejected", jwt)
		if wantSession(t, got.ResponseRecorder, got.err) == jwt {
			t.Error("the rejected token came back")
		}
	})
}

// A vary_by that comes out empty tells nobody apart.
func TestAppProvidedWithAnEmptyVaryBy(t *testing.T) {
	const config = `viewer_session {
		vary_by {http.vars.team}
		document_path /editor {
			app_provided
			session_path /editor/session
		}
	}`
	api := new(dwstest.API)
	h := newTestHandler(t, api, config)
	_, got := visit(h, new(app), "", "GET", "/editor")
	if f := wantStatus(t, got.err, 403, reasonNoPermission); !strings.Contains(f.Error(), "vary_by {http.vars.team} is empty, and it is what allows app_provided") {
		t.Error(f)
	}
	_, got = visit(h, appAnswering(204), "", "GET", "/editor/session")
	wantStatus(t, got.err, 403, reasonNoPermission)
	if api.Count() != 0 {
		t.Errorf("%d mints", api.Count())
	}
	_, got = visit(h, appAnswering(204, userHeader, "ann"), "", "GET", "/editor/session") // a user is ground enough
	wantSession(t, got.ResponseRecorder, got.err)

	tokens := make(map[string]string)
	for _, team := range []string{"blue", "red"} {
		r, w := newRequest("GET", "/editor")
		r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).Set("http.vars.team", team)
		next := new(app)
		if err := h.ServeHTTP(w, r, next); err != nil {
			t.Fatal(err)
		}
		tokens[next.header.Get(defaultRequestHeader)] = team
	}
	if len(tokens) != 2 {
		t.Errorf("the teams share a token: %v", tokens)
	}
}

func TestAppProvidedAndPurges(t *testing.T) {
	h := newTestHandler(t, new(dwstest.API), ownDocuments)
	_, first := visit(h, new(app), "ann", "GET", "/editor")
	_, document := visit(h, new(app), "ann", "GET", "/documents/editor")
	if n := h.pool.purge("editor"); n != 1 {
		t.Errorf("%d tokens purged, want that of the document", n)
	}
	if _, again := visit(h, new(app), "ann", "GET", "/editor"); again.token != first.token {
		t.Error("the purge of a document took a token without one")
	}
	if _, again := visit(h, new(app), "ann", "GET", "/documents/editor"); again.token == document.token {
		t.Error("the purge left the document's token")
	}
	h.pool.purge("")
	if _, again := visit(h, new(app), "ann", "GET", "/editor"); again.token == first.token || again.token == "" {
		t.Errorf("the purge of everything left it: %v", again.err)
	}
}

// The account may not be allowed sessions without a document: those for documents
// go on.
func TestAppProvidedThatTheAPIRefuses(t *testing.T) {
	api := &dwstest.API{Answer: func(r dwstest.Request) (*http.Response, error) {
		if r.Document == "" {
			return dwstest.Failing(403)(r)
		}
		return dwstest.Grant(dwstest.Token(1, r.Exp))
	}}
	h := newTestHandler(t, api, ownDocuments)
	for i := range 10 {
		_, got := visit(h, new(app), fmt.Sprint("user", i), "GET", "/editor")
		wantStatus(t, got.err, 502, reasonKeyRefused)
	}
	if api.Count() > 5 {
		t.Errorf("%d requests that were refused", api.Count())
	}
	if _, got := visit(h, new(app), "ann", "GET", "/documents/42"); got.err != nil {
		t.Error(got.err)
	}
}

// While the API is down, those who have a token keep it.
func TestAppProvidedWhileTheAPIIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := new(dwstest.API)
		h := newTestHandler(t, api, ownDocuments)
		_, first := visit(h, new(app), "ann", "GET", "/editor")
		time.Sleep(50 * time.Minute) // less than min_remaining is left
		api.Set(dwstest.Unreachable)
		r, down := visit(h, new(app), "ann", "GET", "/editor")
		if down.token != first.token || placeholder(r, "result") != "stale" {
			t.Errorf("%v, result %s", down.err, placeholder(r, "result"))
		}
		_, bob := visit(h, new(app), "bob", "GET", "/editor")
		if bob.err == nil || bob.token != "" {
			t.Error("bob got a token")
		}
		api.Set(nil)
		time.Sleep(time.Minute)
		if _, up := visit(h, new(app), "ann", "GET", "/editor"); up.err != nil || up.token == first.token {
			t.Errorf("%v, or the old token, when the API is back", up.err)
		}
		time.Sleep(time.Minute)

		// Failures for several users in a row are the API's, as those for several documents are, and open the back-off.
		api.Set(dwstest.Failing(500))
		before := api.Count()
		for i := range 20 {
			visit(h, new(app), fmt.Sprint("user", i), "GET", "/editor")
		}
		if mints := api.Count() - before; mints > 5 || !h.pool.minter.Failing("", clock.Now()) {
			t.Errorf("%d requests to an API that fails, or no back-off", mints)
		}
		synctest.Wait()
	})
}

// Gateways share these tokens as all others, and one in the store that names a
// document is a miss.
func TestAppProvidedInAFleet(t *testing.T) {
	claimsOf := func(user string) *claims.Claims {
		return &claims.Claims{Request: dws.Request{UserID: user, TTL: time.Hour, AppProvided: true}, MinRemaining: 15 * time.Minute}
	}
	withFleet(t, 2, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		for i, user := range []string{"ann", "ann", "bob"} {
			if _, result, f := fleet[i%2].get(t.Context(), claimsOf(user)); f != nil || result == resultHit {
				t.Errorf("%s at gateway %d: %s, %v", user, i%2, result, f)
			}
			synctest.Wait()
		}
		if got := fleet[0].api.Count(); got != 2 { // they have the same API
			t.Errorf("%d mints, want one per user", got)
		}

		exp := time.Now().Add(time.Hour).Unix()
		name := fleet[0].shared.name(fleet[0].keys.cacheKey(string(claimsOf("eve").AppendKey(nil))))
		entry, err := json.Marshal(storedToken{JWT: dwstest.JWT(map[string]any{"document_id": "doc", "exp": exp}), Minted: time.Now().UnixNano(), AskedExp: exp})
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Put(t.Context(), name, "", entry, time.Hour); err != nil {
			t.Fatal(err)
		}
		if _, result, f := fleet[0].get(t.Context(), claimsOf("eve")); f != nil || result != resultMinted {
			t.Errorf("got %s, %v", result, f)
		}
		synctest.Wait()
		if string(store.entries[name].data) == string(entry) {
			t.Error("the entry has not been overwritten")
		}
	})
}

// Trouble with one kind of sessions is no reason to hand out tokens of the other
// below min_remaining.
func TestAppProvidedTroubleLeavesDocumentsFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := new(dwstest.API)
		h := newTestHandler(t, api, ownDocuments)
		_, first := visit(h, new(app), "ann", "GET", "/documents/42")
		_, own := visit(h, new(app), "ann", "GET", "/editor")
		time.Sleep(50 * time.Minute) // less than min_remaining is left
		api.Set(func(r dwstest.Request) (*http.Response, error) {
			if r.Document == "" {
				return dwstest.Failing(403)(r)
			}
			return dwstest.Grant(dwstest.Token(9, r.Exp))
		})
		for i := range 5 {
			visit(h, new(app), fmt.Sprint("user", i), "GET", "/editor")
		}
		if r, again := visit(h, new(app), "ann", "GET", "/documents/42"); again.token == first.token || placeholder(r, "result") != "minted" {
			t.Errorf("%v, result %s", again.err, placeholder(r, "result"))
		}
		if r, again := visit(h, new(app), "ann", "GET", "/editor"); again.token != own.token || placeholder(r, "result") != "stale" {
			t.Errorf("%v, result %s", again.err, placeholder(r, "result"))
		}
		synctest.Wait()
	})
}
