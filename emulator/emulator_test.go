package emulator

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
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

func TestMintAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now().Unix()
		rec, _ := serve(New(Options{}), request("POST", "/viewer/sessions", `{
			"allowed_documents": [{"document_id": "doc1", "collaboration_permissions": ["annotations:edit:self"]}],
			"user_id": "ada", "seat": 9007199254740993, "ratio": 1.50, "nested": {"a": [null, true]},
			"jti": "mine", "iat": 1, "server_url": "http://elsewhere/"}`))

		if rec.Code != http.StatusCreated {
			t.Fatalf("status %d: %s", rec.Code, rec.Body)
		}
		if got := rec.Header().Get("Content-Type"); got != "application/json" {
			t.Errorf("Content-Type %q", got)
		}
		match := regexp.MustCompile(`^\{"jwt":"([A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{43})"\}$`).FindStringSubmatch(rec.Body.String())
		if match == nil {
			t.Fatalf("body %q", rec.Body)
		}
		header, _ := base64.RawURLEncoding.DecodeString(strings.Split(match[1], ".")[0])
		if string(header) != `{"alg":"HS256","typ":"JWT"}` {
			t.Errorf("header %s", header)
		}

		claims := payload(t, match[1])
		if jti, _ := claims["jti"].(string); len(jti) < 16 || jti == "mine" {
			t.Errorf("jti %q", jti)
		}
		delete(claims, "jti")
		wantJSON(t, "claims", claims, fmt.Sprintf(`{"allowed_documents":[{"collaboration_permissions":["annotations:edit:self"],"document_id":"doc1","permissions":["read","write","download"]}],`+
			`"exp":%d,"iat":%d,"nested":{"a":[null,true]},"ratio":1.50,"seat":9007199254740993,"server_url":"http://localhost:9091/","user_id":"ada"}`,
			now+3600, now))
	})
}

func TestMintIsNeverTheSameTwice(t *testing.T) {
	e := New(Options{})
	first := mint(t, e, testBody)
	if second := mint(t, e, testBody); second == first {
		t.Error("two requests got the same token")
	}
}

func TestServerURL(t *testing.T) {
	server := httptest.NewTLSServer(New(Options{}))
	defer server.Close()
	r, _ := http.NewRequest("POST", server.URL+"/viewer/sessions", strings.NewReader(testBody))
	r.Header = request("POST", "/", "").Header
	resp, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, _ := io.ReadAll(resp.Body)
	if got := payload(t, strings.Split(string(raw), `"`)[3])["server_url"]; got != server.URL+"/" {
		t.Errorf("derived server_url %v, want %s/", got, server.URL)
	}

	for _, configured := range []string{"https://dws.example.com/viewer", "https://dws.example.com/viewer/"} {
		got := payload(t, mint(t, New(Options{ServerURL: configured}), testBody))["server_url"]
		if got != "https://dws.example.com/viewer/" {
			t.Errorf("ServerURL %s: got %v", configured, got)
		}
	}
}

func TestKeys(t *testing.T) {
	for _, tc := range []struct {
		name, configured, authorization string
		want                            int
	}{
		{"any viewer key", "", "Bearer pdf_live_x", 201},
		{"scheme in lower case", "", "bearer pdf_live_x", 201},
		{"not a DWS key", "", "Bearer sk_live_x", 401},
		{"none", "", "", 401},
		{"another scheme", "", "Basic pdf_live_x", 401},
		{"no key after the scheme", "", "Bearer", 401},
		{"the configured key", "secret", "Bearer secret", 201},
		{"part of the configured key", "secret", "Bearer secre", 401},
		{"more than the configured key", "secret", "Bearer secret1", 401},
		{"an empty key", "secret", "Bearer ", 401},
		{"another viewer key", "secret", "Bearer pdf_live_x", 401},
		{"Processor key", "", "Bearer pdf_live_processor_x", 403},
		{"Processor key, even as the configured one", "pdf_live_processor_x", "Bearer pdf_live_processor_x", 403},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := request("POST", "/viewer/sessions", testBody)
			r.Header.Set("Authorization", tc.authorization)
			rec, _ := serve(New(Options{APIKey: tc.configured}), r)
			if rec.Code != tc.want {
				t.Errorf("status %d, want %d: %s", rec.Code, tc.want, rec.Body)
			}
			if _, key, _ := strings.Cut(tc.authorization, " "); len(key) > 1 && tc.want != 201 && strings.Contains(rec.Body.String(), key) {
				t.Errorf("the answer repeats the key: %s", rec.Body)
			}
		})
	}
}

func TestMintRefusals(t *testing.T) {
	document := func(fields string) string { return `{"allowed_documents":[{` + fields + `}]}` }
	with := func(claims string) string { return `{"allowed_documents":[{"document_id":"doc1"}],` + claims + `}` }
	for _, tc := range []struct {
		name, body string
		want       int
		path       string
	}{
		{"no body", ``, 400, ""},
		{"not JSON", `nope`, 400, ""},
		{"cut off", testBody[:len(testBody)-1], 400, ""},
		{"trailing data", testBody + ` x`, 400, ""},
		{"two objects", testBody + testBody, 400, ""},
		{"array", `[` + testBody + `]`, 400, ""},
		{"string", `"x"`, 400, ""},
		{"null", `null`, 400, ""},
		{"invalid UTF-8", document("\"document_id\":\"\xff\""), 400, ""},
		{"over 64 KiB", testBody + strings.Repeat(" ", maxBody), 400, ""},
		{"no documents", `{}`, 400, "$.allowed_documents"},
		{"documents empty", `{"allowed_documents":[]}`, 400, "$.allowed_documents"},
		{"documents null", `{"allowed_documents":null}`, 400, "$.allowed_documents"},
		{"documents an object", `{"allowed_documents":{"document_id":"doc1"}}`, 400, "$.allowed_documents"},
		{"document a string", `{"allowed_documents":["doc1"]}`, 400, "$.allowed_documents[0]"},
		{"second document wrong", `{"allowed_documents":[{"document_id":"a"},{}]}`, 400, "$.allowed_documents[1].document_id"},
		{"document_id missing", document(`"x":1`), 400, "$.allowed_documents[0].document_id"},
		{"document_id empty", document(`"document_id":""`), 400, "$.allowed_documents[0].document_id"},
		{"document_id a number", document(`"document_id":1`), 400, "$.allowed_documents[0].document_id"},
		{"document_id in another case", document(`"Document_ID":"doc1"`), 400, "$.allowed_documents[0].document_id"},
		{"permissions empty", document(`"document_id":"a","permissions":[]`), 422, "$.allowed_documents[0].permissions"},
		{"permissions null", document(`"document_id":"a","permissions":null`), 400, "$.allowed_documents[0].permissions"},
		{"permissions a string", document(`"document_id":"a","permissions":"read"`), 400, "$.allowed_documents[0].permissions"},
		{"permission empty", document(`"document_id":"a","permissions":["read",""]`), 400, "$.allowed_documents[0].permissions[1]"},
		{"permission a number", document(`"document_id":"a","permissions":[1]`), 400, "$.allowed_documents[0].permissions[0]"},
		{"user_id empty", with(`"user_id":""`), 400, "$.user_id"},
		{"user_id null", with(`"user_id":null`), 400, "$.user_id"},
		{"user_id a number", with(`"user_id":7`), 400, "$.user_id"},
		{"exp null", with(`"exp":null`), 400, "$.exp"},
		{"exp a string", with(`"exp":"4102444800"`), 400, "$.exp"},
		{"exp with a fraction", with(`"exp":4102444800.5`), 400, "$.exp"},
		{"exp in the past", with(`"exp":1`), 400, "$.exp"},
		{"exp far ahead", with(`"exp":4102444800`), 400, "$.exp"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := New(Options{})
			rec, _ := serve(e, request("POST", "/viewer/sessions", tc.body))
			if rec.Code != tc.want {
				t.Fatalf("status %d, want %d: %s", rec.Code, tc.want, rec.Body)
			}
			checkError(t, rec, tc.path)
			if s := e.Stats(); s.Mints != 0 || s.Refused[tc.want] != 1 {
				t.Errorf("stats %+v", s)
			}
		})
	}
}

// checkError wants the error body of the DWS APIs, with one failing path or none.
func checkError(t *testing.T, rec *httptest.ResponseRecorder, path string) {
	t.Helper()
	var got struct {
		Details      string
		Status       int
		RequestID    string
		FailingPaths []failingPath
	}
	dec := json.NewDecoder(rec.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&got); err != nil {
		t.Fatal(err)
	}
	if got.Details == "" || got.Status != rec.Code || got.RequestID == "" || got.FailingPaths == nil {
		t.Errorf("error body %+v", got)
	}
	if path == "" {
		if len(got.FailingPaths) > 0 {
			t.Errorf("failing paths %+v, want none", got.FailingPaths)
		}
	} else if len(got.FailingPaths) != 1 || got.FailingPaths[0].Path != path || got.FailingPaths[0].Details == "" {
		t.Errorf("failing paths %+v, want %s", got.FailingPaths, path)
	}
}

func TestMintRefusalsOutsideTheBody(t *testing.T) {
	for _, tc := range []struct {
		name, method, path, mediaType string
		want                          int
	}{
		{"GET", "GET", "/viewer/sessions", "application/json", 405},
		{"OPTIONS", "OPTIONS", "/viewer/sessions", "application/json", 405},
		{"media type missing", "POST", "/viewer/sessions", "", 415},
		{"media type of a form", "POST", "/viewer/sessions", "application/x-www-form-urlencoded", 415},
		{"media type with a charset", "POST", "/viewer/sessions", "application/json; charset=utf-8", 201},
		{"trailing slash", "POST", "/viewer/sessions/", "application/json", 404},
		{"root", "GET", "/", "", 404},
		{"upload", "POST", "/viewer/documents", "", 404},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := request(tc.method, tc.path, testBody)
			r.Header.Set("Content-Type", tc.mediaType)
			rec, _ := serve(New(Options{}), r)
			if rec.Code != tc.want {
				t.Fatalf("status %d, want %d: %s", rec.Code, tc.want, rec.Body)
			}
			if tc.want == 405 && rec.Header().Get("Allow") != "POST" {
				t.Errorf("Allow %q", rec.Header().Get("Allow"))
			}
			if rec.Header().Get("Access-Control-Allow-Origin") != "" {
				t.Error("minting is open to web pages")
			}
			if tc.want != 201 {
				checkError(t, rec, "")
			}
		})
	}
}

func TestLifetime(t *testing.T) {
	const month = 30 * 24 * time.Hour
	for _, tc := range []struct {
		name   string
		maxTTL time.Duration
		ask    time.Duration
		want   time.Duration // 0: refused
	}{
		{"one second", 0, time.Second, time.Second},
		{"30 days", 0, month, month},
		{"a minute of grace", 0, month + time.Minute, month + time.Minute},
		{"a second more", 0, month + time.Minute + time.Second, 0},
		{"now", 0, 0, 0},
		{"capped", 10 * time.Minute, time.Hour, 10 * time.Minute},
		{"under the cap", 10 * time.Minute, time.Minute, time.Minute},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := New(Options{MaxTTL: tc.maxTTL})
				body := fmt.Sprintf(`{"allowed_documents":[{"document_id":"a"}],"exp":%d}`, time.Now().Add(tc.ask).Unix())
				if tc.want == 0 {
					if rec, _ := serve(e, request("POST", "/viewer/sessions", body)); rec.Code != 400 {
						t.Errorf("status %d, want 400", rec.Code)
					}
					return
				}
				wantJSON(t, "exp", payload(t, mint(t, e, body))["exp"], fmt.Sprint(time.Now().Add(tc.want).Unix()))
			})
		})
	}

	synctest.Test(t, func(t *testing.T) {
		got := payload(t, mint(t, New(Options{MaxTTL: time.Minute}), testBody))["exp"]
		wantJSON(t, "default, capped", got, fmt.Sprint(time.Now().Add(time.Minute).Unix()))
	})
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
				body = `{}`
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

func TestPermissionsThatAreRead(t *testing.T) {
	const both = `"document_permissions":["read"],"permissions":["read","download"]`
	for _, tc := range []struct {
		name, members string
		options       Options
		want          int
		granted       string // the entry's members but for the id
	}{
		{"live", both, Options{}, 201, `{"permissions":["read","download"]}`},
		{"live, documented name only", `"document_permissions":["read"]`, Options{}, 201, `{"permissions":["read","write","download"]}`},
		{"live, documented name odd", `"document_permissions":5`, Options{}, 201, `{"permissions":["read","write","download"]}`},
		{"live, none", ``, Options{}, 201, `{"permissions":["read","write","download"]}`},
		{"live, unknown name", `"permissions":["read","print"]`, Options{}, 422, ""},
		{"guides", both, Options{PermissionsMember: "document_permissions"}, 201, `{"document_permissions":["read"]}`},
		{"guides, live name only", `"permissions":["read"]`, Options{PermissionsMember: "document_permissions"}, 201, `{"document_permissions":["read","write","download"]}`},
		{"guides, another name", `"document_permissions":["print"]`, Options{PermissionsMember: "document_permissions"}, 201, `{"document_permissions":["print"]}`},
		{"strict", both, Options{Strict: true}, 400, ""},
		{"strict, documented name only", `"document_permissions":["read"]`, Options{Strict: true}, 201, `{"document_permissions":["read"]}`},
		{"strict, another member", `"document_permissions":["read"],"x":1`, Options{Strict: true}, 400, ""},
		{"granting all", both, Options{Fault: Fault{Mode: "grant_all"}}, 201, `{"permissions":["read","write","download"]}`},
		{"stating nothing", both, Options{Fault: Fault{Mode: "unstated"}}, 201, `{}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			body := `{"allowed_documents":[{"document_id":"doc1"` + strings.TrimSuffix(","+tc.members, ",") + `}]}`
			e := New(tc.options)
			rec, _ := serve(e, request("POST", "/viewer/sessions", body))
			if rec.Code != tc.want {
				t.Fatalf("status %d, want %d: %s", rec.Code, tc.want, rec.Body)
			}
			if tc.want != 201 {
				return
			}
			var reply struct{ JWT string }
			if err := json.Unmarshal(rec.Body.Bytes(), &reply); err != nil {
				t.Fatal(err)
			}
			entry := payload(t, reply.JWT)["allowed_documents"].([]any)[0].(map[string]any)
			delete(entry, "document_id")
			wantJSON(t, "the entry", entry, tc.granted)
		})
	}
	for _, options := range []Options{{PermissionsMember: "rights"}, {PermissionsMember: "permissions", Strict: true}} {
		if options.validate() == nil {
			t.Errorf("%+v is taken", options)
		}
	}
}
