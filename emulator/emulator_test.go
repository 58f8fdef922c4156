package emulator

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const (
	testKey  = "pdf_live_viewer"
	testBody = `{"allowed_documents":[{"document_id":"doc1","permissions":["read"]}]}`
)

// request makes one from this machine, with the key and media type of a good one.
func request(method, path, body string) *http.Request {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.RemoteAddr = "127.0.0.1:50000"
	r.Host = "localhost:9091"
	r.Header.Set("Authorization", "Bearer "+testKey)
	r.Header.Set("Content-Type", "application/json")
	return r
}

// serve returns what was answered, and whether the handler cut the connection.
func serve(e http.Handler, r *http.Request) (rec *httptest.ResponseRecorder, aborted bool) {
	rec = httptest.NewRecorder()
	defer func() {
		if v := recover(); v != nil {
			if v != http.ErrAbortHandler {
				panic(v)
			}
			aborted = true
		}
	}()
	e.ServeHTTP(rec, r)
	return rec, false
}

func mint(t *testing.T, e http.Handler, body string) string {
	t.Helper()
	rec, _ := serve(e, request("POST", "/viewer/sessions", body))
	if rec.Code != http.StatusCreated {
		t.Fatalf("status %d: %s", rec.Code, rec.Body)
	}
	var answer struct {
		JWT string `json:"jwt"`
	}
	if err := json.Unmarshal(rec.Body.Bytes(), &answer); err != nil {
		t.Fatal(err)
	}
	return answer.JWT
}

func payload(t *testing.T, token string) map[string]any {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("token has %d parts", len(parts))
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(strings.NewReader(string(raw)))
	dec.UseNumber()
	var claims map[string]any
	if err := dec.Decode(&claims); err != nil {
		t.Fatal(err)
	}
	return claims
}

func authenticate(e http.Handler, document, token string) *httptest.ResponseRecorder {
	body, _ := json.Marshal(map[string]string{"jwt": token})
	rec, _ := serve(e, request("POST", "/i/d/"+document+"/auth", string(body)))
	return rec
}

func wantJSON(t *testing.T, what string, got any, want string) {
	t.Helper()
	raw, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if string(raw) != want {
		t.Errorf("%s: got %s, want %s", what, raw, want)
	}
}

func TestAuth(t *testing.T) {
	e := New(Options{})
	good := mint(t, e, `{"allowed_documents":[{"document_id":"doc1","permissions":["read","write"]},{"document_id":"a/b"}]}`)
	parts := strings.Split(good, ".")
	encode := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	forged := encode(`{"allowed_documents":[{"document_id":"doc1"}],"exp":4102444800}`)

	for _, tc := range []struct {
		name, document, token string
		want                  string // permissions; empty: refused
	}{
		{"good", "doc1", good, `["read","write"]`},
		{"permissions left out", "a%2Fb", good, `["read","write","download"]`},
		{"another document", "doc2", good, ""},
		{"another case", "DOC1", good, ""},
		{"empty", "doc1", "", ""},
		{"not a token", "doc1", "x", ""},
		{"payload changed", "doc1", parts[0] + "." + forged + "." + parts[2], ""},
		{"unsigned", "doc1", encode(`{"alg":"none","typ":"JWT"}`) + "." + forged + ".", ""},
		{"header changed", "doc1", encode(`{"alg":"none","typ":"JWT"}`) + "." + parts[1] + "." + parts[2], ""},
		{"signature cut short", "doc1", good[:len(good)-4], ""},
		{"from another emulator", "doc1", mint(t, New(Options{}), testBody), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e.Reset()
			rec := authenticate(e, tc.document, tc.token)
			s := e.Stats()
			if tc.want == "" {
				if rec.Code != http.StatusForbidden || rec.Body.String() != "Invalid token" {
					t.Errorf("answer %d %q", rec.Code, rec.Body)
				}
				if s.Auths != 0 || s.AuthsRefused != 1 {
					t.Errorf("stats %+v", s)
				}
				return
			}
			var got struct {
				Token       string
				Permissions []string
			}
			if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil || rec.Code != http.StatusOK || got.Token == "" {
				t.Fatalf("answer %d %q, %v", rec.Code, rec.Body, err)
			}
			wantJSON(t, "permissions", got.Permissions, tc.want)
			if s.Auths != 1 || s.AuthsRefused != 0 {
				t.Errorf("stats %+v", s)
			}
		})
	}

	for _, body := range []string{``, `[]`, `{"jwt":1}`, `{"jwt":"` + good + `"} x`} {
		rec, _ := serve(e, request("POST", "/i/d/doc1/auth", body))
		if rec.Code != http.StatusForbidden || rec.Body.String() != "Invalid token" {
			t.Errorf("body %q: %d %q", body, rec.Code, rec.Body)
		}
	}
	if rec, _ := serve(e, request("GET", "/i/d/doc1/auth", "")); rec.Code != 405 {
		t.Errorf("GET: status %d", rec.Code)
	}
	for _, path := range []string{"/i/d//auth", "/i/d/a/b/auth", "/i/d/auth", "/i/d/doc1", "/x/d/doc1/auth"} {
		if rec, _ := serve(e, request("POST", path, `{"jwt":"`+good+`"}`)); rec.Code != 404 {
			t.Errorf("%s: status %d", path, rec.Code)
		}
	}
}

// A session for documents that the page brings opens none that is stored, and no other token than the emulator's is good.
func TestStandaloneAuth(t *testing.T) {
	e := New(Options{})
	own := mint(t, e, `{"user_id":"ann"}`)
	claims := payload(t, own)
	if _, ok := claims["allowed_documents"]; ok || claims["user_id"] != "ann" || claims["server_url"] == nil {
		t.Errorf("claims %v", claims)
	}
	if rec := authenticate(e, "doc1", own); rec.Code != http.StatusForbidden {
		t.Errorf("it opens doc1: %d", rec.Code)
	}
	for _, tc := range []struct {
		name, authorization string
		status              int
	}{
		{"good", "Bearer " + own, 200},
		{"none", "", 401},
		{"another scheme", "Basic " + own, 401},
		{"no scheme", "Token", 401},
		{"changed", "Bearer " + own[:len(own)-4], 401},
		{"from another emulator", "Bearer " + mint(t, New(Options{}), `{}`), 401},
	} {
		e.Reset()
		r := request("POST", "/i/viewer/standalone/auth", "{}")
		r.Header.Set("Authorization", tc.authorization)
		rec, _ := serve(e, r)
		s := e.Stats()
		if rec.Code != tc.status || (s.Auths == 1) != (tc.status == 200) || (s.AuthsRefused == 1) != (tc.status != 200) {
			t.Errorf("%s: %d, %+v", tc.name, rec.Code, s)
		}
		if tc.status == 200 && !strings.Contains(rec.Body.String(), `"wasmAuthToken":"`) {
			t.Errorf("%s: %s", tc.name, rec.Body)
		}
	}
	if rec, _ := serve(e, request("GET", "/i/viewer/standalone/auth", "")); rec.Code != 405 {
		t.Errorf("GET: %d", rec.Code)
	}
	preflight := request("OPTIONS", "/i/viewer/standalone/auth", "")
	preflight.Header.Set("Origin", "http://localhost:8080")
	rec, _ := serve(e, preflight)
	if h := rec.Header(); rec.Code != 204 || h.Get("Access-Control-Allow-Origin") != "http://localhost:8080" || !strings.Contains(h.Get("Access-Control-Allow-Headers"), "authorization") {
		t.Errorf("preflight: %d %v", rec.Code, h)
	}
}

func TestAuthAfterExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := New(Options{MaxTTL: time.Minute})
		token := mint(t, e, testBody)
		<-time.After(time.Minute - time.Second)
		if rec := authenticate(e, "doc1", token); rec.Code != http.StatusOK {
			t.Errorf("a second before: %d %q", rec.Code, rec.Body)
		}
		<-time.After(time.Second)
		if rec := authenticate(e, "doc1", token); rec.Code != http.StatusForbidden || rec.Body.String() != "Token has expired" {
			t.Errorf("expired: %d %q", rec.Code, rec.Body)
		}
	})
}

func TestAuthCORS(t *testing.T) {
	e := New(Options{})
	for _, tc := range []struct {
		name, method, origin string
		want                 int
	}{
		{"preflight", "OPTIONS", "https://app.example.com", 204},
		{"another origin", "OPTIONS", "http://localhost:3000", 204},
		{"call", "POST", "https://app.example.com", 403},
		{"no origin", "POST", "", 403},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := request(tc.method, "/i/d/doc1/auth", "{}")
			r.Header.Set("Origin", tc.origin)
			if tc.origin == "" {
				r.Header.Del("Origin")
			}
			rec, _ := serve(e, r)
			h := rec.Header()
			if rec.Code != tc.want || h.Get("Vary") != "Origin" {
				t.Errorf("status %d, Vary %q", rec.Code, h.Get("Vary"))
			}
			credentials := ""
			if tc.origin != "" {
				credentials = "true"
			}
			if h.Get("Access-Control-Allow-Origin") != tc.origin || h.Get("Access-Control-Allow-Credentials") != credentials {
				t.Errorf("headers %v", h)
			}
			if tc.method != "OPTIONS" {
				return
			}
			if h.Get("Access-Control-Allow-Methods") != "POST" || rec.Body.Len() != 0 {
				t.Errorf("headers %v, body %q", h, rec.Body)
			}
			for _, name := range []string{"content-type", "pspdfkit-platform", "pspdfkit-version", "x-pspdfkit-token", "x-pspdfkit-image-token"} {
				if !strings.Contains(", "+h.Get("Access-Control-Allow-Headers")+",", ", "+name+",") {
					t.Errorf("%s is not allowed: %q", name, h.Get("Access-Control-Allow-Headers"))
				}
			}
		})
	}
	if s := e.Stats(); s.AuthsRefused != 2 {
		t.Errorf("a preflight was counted: %+v", s)
	}
}

func TestOnlyLocal(t *testing.T) {
	for _, tc := range []struct {
		peer, host string
		want       bool
	}{
		{"127.0.0.1:5", "localhost:9091", true},
		{"127.8.9.1:5", "LOCALHOST", true},
		{"[::1]:5", "[::1]:9091", true},
		{"[::1]:5", "[::1]", true},
		{"[::ffff:127.0.0.1]:5", "127.0.0.1", true},
		{"192.0.2.7:5", "localhost", false},
		{"[2001:db8::1]:5", "localhost", false},
		{"10.0.0.1:5", "127.0.0.1", false},
		{"0.0.0.0:5", "127.0.0.1", false},
		{"@", "localhost", false},
		{"", "localhost", false},
		{"127.0.0.1:5", "rebound.example.com", false},
		{"127.0.0.1:5", "localhost.example.com:9091", false},
		{"127.0.0.1:5", "127.0.0.1.example.com", false},
		{"127.0.0.1:5", "192.0.2.7:9091", false},
		{"127.0.0.1:5", "", false},
	} {
		for _, path := range []string{"/viewer/sessions", "/i/d/doc1/auth", "/emulator/stats", "/"} {
			r := request("POST", path, testBody)
			r.RemoteAddr, r.Host = tc.peer, tc.host
			e := New(Options{})
			rec, _ := serve(e, r)
			refused := rec.Code == http.StatusForbidden && strings.Contains(rec.Body.String(), "allow_remote")
			if refused == tc.want {
				t.Errorf("%s from %q for %q: %d %s", path, tc.peer, tc.host, rec.Code, rec.Body)
			}
			if s := e.Stats(); refused && s.Requests+s.AuthsRefused != 0 {
				t.Errorf("counted: %+v", s)
			}
			if rec, _ = serve(New(Options{AllowRemote: true}), r); strings.Contains(rec.Body.String(), "allow_remote") {
				t.Errorf("AllowRemote: %s from %q for %q: %d %s", path, tc.peer, tc.host, rec.Code, rec.Body)
			}
		}
	}
}

func TestOnMintSeesEveryRequest(t *testing.T) {
	var got []string
	e := New(Options{OnMint: func(r *http.Request, body []byte) {
		got = append(got, r.Method+" "+r.Header.Get("Authorization")+" "+string(body))
	}})
	serve(e, request("POST", "/viewer/sessions", testBody))
	serve(e, request("GET", "/viewer/sessions", "x"))
	serve(e, request("POST", "/i/d/doc1/auth", "y"))
	wantJSON(t, "seen", strings.Join(got, "|") == "POST Bearer "+testKey+" "+testBody+"|GET Bearer "+testKey+" x", "true")
}

func TestCountsUnderConcurrency(t *testing.T) {
	const n = 50
	var all sync.WaitGroup
	all.Add(n)
	e := New(Options{OnMint: func(*http.Request, []byte) {
		all.Done()
		all.Wait() // all of them are under way at once
	}})
	server := httptest.NewServer(e)
	defer server.Close()

	var done sync.WaitGroup
	for i := range n {
		done.Go(func() {
			body := fmt.Sprintf(`{"allowed_documents":[{"document_id":"doc%d"}]}`, i%5)
			if i >= 40 {
				body = `{"allowed_documents":[]}`
			}
			r, _ := http.NewRequest("POST", server.URL+"/viewer/sessions", strings.NewReader(body))
			r.Header = request("POST", "/", "").Header
			resp, err := server.Client().Do(r)
			if err != nil {
				t.Error(err)
				return
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		})
	}
	done.Wait()
	server.Close() // waits for the handlers
	wantJSON(t, "stats", e.Stats(), `{"requests":50,"mints":40,"documents":{"doc0":8,"doc1":8,"doc2":8,"doc3":8,"doc4":8},`+
		`"refused":{"400":10},"auths":0,"auths_refused":0,"in_flight":0,"max_in_flight":50}`)
}

func TestResetWhileRequestsAreUnderWay(t *testing.T) {
	var e *Emulator
	var during Stats
	nested := false
	e = New(Options{OnMint: func(*http.Request, []byte) {
		if nested {
			return
		}
		nested = true
		mint(t, e, testBody)
		e.Reset()
		during = e.Stats()
	}})
	mint(t, e, testBody)
	if during.Requests != 0 || during.InFlight != 1 || during.MaxInFlight != 1 {
		t.Errorf("right after the reset: %+v", during)
	}
	if s := e.Stats(); s.Requests != 0 || s.Mints != 1 || s.InFlight != 0 || s.MaxInFlight != 1 {
		t.Errorf("at the end: %+v", s)
	}
}

func TestMaxInFlightStays(t *testing.T) {
	var e *Emulator
	nested := false
	e = New(Options{OnMint: func(*http.Request, []byte) {
		if !nested {
			nested = true
			mint(t, e, testBody)
		}
	}})
	mint(t, e, testBody)
	mint(t, e, testBody)
	if s := e.Stats(); s.InFlight != 0 || s.MaxInFlight != 2 {
		t.Errorf("stats %+v", s)
	}
}

func TestDocumentCountsAreBounded(t *testing.T) {
	e := New(Options{})
	e.update(func(s *Stats) {
		for i := range maxDocuments + 5 {
			s.countAnswer(http.StatusCreated, []string{fmt.Sprint(i)})
		}
		s.countAnswer(http.StatusCreated, []string{"0"})
	})
	if s := e.Stats(); len(s.Documents) != maxDocuments || s.Mints != maxDocuments+6 || s.Documents["0"] != 2 {
		t.Errorf("%d documents, %d mints, %d of the first", len(s.Documents), s.Mints, s.Documents["0"])
	}
}

func TestStatsIsACopy(t *testing.T) {
	e := New(Options{})
	mint(t, e, testBody)
	s := e.Stats()
	s.Documents["doc1"], s.Refused[400] = 9, 9
	if s := e.Stats(); s.Documents["doc1"] != 1 || s.Refused[400] != 0 {
		t.Errorf("changed through the copy: %+v", s)
	}
}

func TestControl(t *testing.T) {
	e := New(Options{})
	mint(t, e, testBody)

	rec, _ := serve(e, request("GET", "/emulator/stats", ""))
	if want := `{"requests":1,"mints":1,"documents":{"doc1":1},"refused":{},"auths":0,"auths_refused":0,"in_flight":0,"max_in_flight":1}`; rec.Code != 200 || rec.Body.String() != want {
		t.Errorf("stats: %d %s", rec.Code, rec.Body)
	}

	if rec, _ = serve(e, request("PUT", "/emulator/fault", `{"mode":"status","status":503,"delay":"0s"}`)); rec.Code != 204 {
		t.Errorf("fault: %d %s", rec.Code, rec.Body)
	}
	if rec, _ = serve(e, request("POST", "/viewer/sessions", testBody)); rec.Code != 503 {
		t.Errorf("with the fault: %d", rec.Code)
	}

	if rec, _ = serve(e, request("POST", "/emulator/reset", "")); rec.Code != 204 || e.Stats().Requests != 0 {
		t.Errorf("reset: %d, %+v", rec.Code, e.Stats())
	}
	if rec, _ = serve(e, request("POST", "/viewer/sessions", testBody)); rec.Code != 503 {
		t.Errorf("the fault is gone after a reset: %d", rec.Code)
	}

	if rec, _ = serve(e, request("DELETE", "/emulator/fault", "")); rec.Code != 204 {
		t.Errorf("delete: %d", rec.Code)
	}
	mint(t, e, testBody)

	for _, call := range []string{"GET /emulator/", "POST /emulator/stats", "GET /emulator/reset", "POST /emulator/fault", "GET /emulator/other"} {
		method, path, _ := strings.Cut(call, " ")
		if rec, _ = serve(e, request(method, path, "")); rec.Code != 404 {
			t.Errorf("%s: %d", call, rec.Code)
		}
	}
}

func TestControlIsClosedToOtherSites(t *testing.T) {
	for _, call := range []string{"GET /emulator/stats", "POST /emulator/reset", "PUT /emulator/fault", "DELETE /emulator/fault"} {
		method, path, _ := strings.Cut(call, " ")
		for site, refused := range map[string]bool{"cross-site": true, "same-site": true, "same-origin": false, "none": false, "": false} {
			e := New(Options{})
			mint(t, e, testBody)
			r := request(method, path, `{"mode":"empty"}`)
			r.Header.Set("Sec-Fetch-Site", site)
			rec, _ := serve(e, r)
			if (rec.Code == 403) != refused {
				t.Errorf("%s with Sec-Fetch-Site %q: %d", call, site, rec.Code)
			}
			if refused && (e.Stats().Requests != 1 || e.takeFault(nil) != Fault{}) {
				t.Errorf("%s with Sec-Fetch-Site %q took effect", call, site)
			}
		}
	}
}

func TestRevoke(t *testing.T) {
	e := New(Options{})
	srv := httptest.NewServer(e)
	defer srv.Close()
	auth := func(jwt string) string {
		t.Helper()
		resp, err := http.Post(srv.URL+"/i/d/doc/auth", "application/json", strings.NewReader(`{"jwt":"`+jwt+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode == http.StatusOK {
			return "ok"
		}
		return fmt.Sprint(resp.StatusCode, " ", string(body))
	}
	mint := func() string {
		t.Helper()
		jwt, err := e.sign(map[string]any{"exp": time.Now().Add(time.Hour).Unix(), "allowed_documents": []any{map[string]any{"document_id": "doc"}}})
		if err != nil {
			t.Fatal(err)
		}
		return jwt
	}
	before := mint()
	if got := auth(before); got != "ok" {
		t.Fatal(got)
	}
	resp, err := http.Post(srv.URL+"/emulator/revoke", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		t.Fatalf("status %d", resp.StatusCode)
	}
	if got := auth(before); got != "403 Token has been revoked" {
		t.Errorf("a revoked token: %s", got)
	}
	if got := auth(mint()); got != "ok" {
		t.Errorf("a token from afterwards: %s", got)
	}
	if got := auth(before + "x"); got != "403 Invalid token" {
		t.Errorf("rubbish: %s", got)
	}
}

// Pages of other origins load the script, as they load the SDK.
func TestSDKIsServedToPages(t *testing.T) {
	srv := httptest.NewServer(New(Options{}))
	defer srv.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+"/emulator/nutrient-viewer.js", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/javascript") || !strings.Contains(string(body), "globalThis.NutrientViewer") {
		t.Errorf("%v, status %d, %v, %d bytes", err, resp.StatusCode, resp.Header, len(body))
	}
}
