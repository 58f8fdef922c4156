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
	"testing"
	"testing/synctest"
	"time"
)

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
