package viewersession

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig"
)

func explained(t *testing.T, caddyfile, method, address string) *explanation {
	t.Helper()
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), nil)
	if err != nil {
		t.Fatal(err)
	}
	e, err := explain(config, method, address, testNow)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

const explainedSite = `docs.example.com {
	@blocked path /documents/secret*
	basic_auth {
		ann $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG
	}
	viewer_session {
		user_id {http.auth.user.id}
		claim team {http.vars.team}
		vary_by {http.request.remote.host}
		document_path /documents/:id {
			session_path /documents/:id/session
		}
		document_path /view {
			document_id {http.request.uri.query.doc}
			permissions read write
			ttl 30m
			min_remaining 5m
		}
		document_path /by-name/* {
			document_id {http.regexp.name.1}
		}
		session_path /contracts/*/session
		script_path /viewer-session.js
		document_path /editor {
			app_provided
			session_path /editor/session
		}
	}
	handle /static/* {
		viewer_session {
			document_path /static/:id
			request_cookie viewer_session
		}
		file_server
	}
	respond @blocked 403
	reverse_proxy app:3000
}
http://localhost:8081 {
	handle /a/* {
		viewer_session {
			document_path /a/:id
			document_path /:id/*
		}
	}
	handle {
		viewer_session {
			document_path /*/:id
		}
	}
}
http://localhost:8085 {
	viewer_session {
		session_path /api/:id/session /no/:id/session /never/:id/session
		document_path /team {
			app_provided
			vary_by {http.vars.team} {http.vars.floor}
		}
		document_path /d/:id {
			vary_by {http.vars.team}
		}
		document_path /files/* {
			app_provided
			shared
		}
	}
	handle /api/* {
		@known path_regexp ^/api/(lease|plan)/session$
		respond @known 204
		respond 404
	}
	handle /no/* {
		@others path_regexp ^/no/.*$
		respond @others 404
		respond "no" 403
	}
	handle {
		respond 204
	}
}
http://localhost:8084 {
	@app header X-App *
	forward_auth @app localhost:9091 {
		uri /verify
	}
	rewrite /old/* /documents/42
	viewer_session {
		document_path /documents/:id
	}
	reverse_proxy app:3000
}
http://localhost:8083 {
	basic_auth /a/* {
		ann $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG
	}
	@outside not remote_ip private_ranges
	viewer_session {
		user_id {http.auth.user.id}
		document_path /a/:id /b/:id
		session_path /b/:id/session
		document_path /c/:id {
			user_id {http.reverse_proxy.header.Remote-User}
		}
	}
	respond @outside 403
	respond /a/9 403
	reverse_proxy app:3000
}
http://localhost:8082 {
	route /b/* {
		respond /b/blocked* 403
		viewer_session {
			document_path /b/:id
		}
	}
}
http://localhost:8080 {
	respond /documents/* 204
	viewer_session {
		document_path /documents/:id
	}
	reverse_proxy app:3000
}
`

// What is said of a URL, beside what happens to it.
func TestExplain(t *testing.T) {
	for _, test := range []struct {
		method, url, document string // no document: no token
		says                  string
	}{
		{"GET", "https://docs.example.com/documents/42", "42", ""},
		{"GET", "https://docs.example.com/documents/42/", "42", ""},
		{"GET", "https://DOCS.example.com:443/Documents/aB?x=1", "aB", ""},
		{"HEAD", "https://docs.example.com/documents/42", "42", ""},
		{"OPTIONS", "https://docs.example.com/documents/42", "", "OPTIONS gets no token"},
		{"GET", "https://docs.example.com/documents/a.pdf", "", `the id "a.pdf" does not fit document_id_format`},
		{"GET", "https://docs.example.com/documents/a/b/c", "", "the path has 4 segments, the pattern 2"},
		{"GET", "https://docs.example.com/document/42", "", `segment 1 is "document", not documents`},
		{"GET", "https://docs.example.com/documents//42", "", "not canonical"},
		{"GET", "https://docs.example.com/documents/a%2Fb", "", "not canonical"},
		{"GET", "https://docs.example.com//evil/editor", "", "not canonical"},
		{"GET", "https://docs.example.com//editor", "", "not canonical"},
		{"GET", "https://docs.example.com//evil/viewer-session.js", "", "not canonical"},
		{"GET", "https://docs.example.com/view?doc=lease-2026#part", "lease-2026", ""},
		{"GET", "https://docs.example.com?x", "", "no route matches"},
		{"GET", "https://docs.example.com/documents/42/session", "42", "the browser"},
		{"POST", "https://docs.example.com/documents/42/session", "", "answers GET and HEAD"},
		{"GET", "https://docs.example.com/view?doc=lease-2026", "lease-2026", "{http.request.remote.host}"},
		{"GET", "https://docs.example.com/view", "", "is empty"},
		{"GET", "https://docs.example.com/view?doc=a.b", "", "does not fit"},
		{"GET", "https://docs.example.com/by-name/x", "{http.regexp.name.1}", "a regular expression in a matcher"},
		{"GET", "https://docs.example.com/contracts/7/session", "{X-Viewer-Document}", "the app's 204"},
		{"GET", "https://docs.example.com/viewer-session.js", "", "none: viewer_session answers itself, with the module for the page"},
		{"HEAD", "https://docs.example.com/viewer-session.js", "", "then        viewer_session answers"},
		{"POST", "https://docs.example.com/viewer-session.js", "", "script_path answers GET and HEAD; POST goes to the app"},
		{"OPTIONS", "https://docs.example.com/viewer-session.js", "", "OPTIONS gets no token"},
		{"OPTIONS", "https://docs.example.com/editor", "", "OPTIONS gets no token"},
		{"GET", "https://docs.example.com/editor/x", "", "the path has 2 segments, the pattern 1"},
		{"GET", "https://docs.example.com/static/doc", "doc", "the cookie viewer_session"},
		{"GET", "https://docs.example.com/elsewhere", "", "no route matches"},
		{"GET", "https://other.example.com/documents/42", "", "no site on this port has the host other.example.com"},
		{"GET", "https://docs.example.com:8443/documents/42", "", "no server listens"},
		{"GET", "http://docs.example.com/documents/42", "", "try https"},
		{"GET", "http://localhost:8080/documents/42", "42", ""},
		{"GET", "http://localhost:8081/a/42", "42", ""},
		{"GET", "http://localhost:8085/api/lease/session", "lease", "it is answered with 204, as for the matcher path_regexp ^/api/(lease|plan)/session$"},
		{"GET", "http://localhost:8085/no/lease/session", "", "static_response answers 403, and only a 204 approves a session"},
		{"GET", "http://localhost:8085/never/lease/session", "lease", ""},
		{"GET", "http://localhost:8085/d/42", "42", ""},
		{"GET", "http://localhost:8085/files", "", "the path has 1 segment, the pattern at least 2"},
		{"GET", "http://localhost:8085/", "", "the path has 0 segments, the pattern 1"},
		{"GET", "http://localhost:8084/documents/42", "42", "lets the request through (for the matcher header"},
		{"GET", "http://localhost:8084/old//x", "", "not canonical"},
		{"GET", "http://localhost:8084/old/x", "", "segment 1 is \"old\""},
		{"GET", "http://localhost:8083/a/42", "42", "respond (or redir, abort) does not answer, as it would for not the matcher remote_ip"},
		{"GET", "http://localhost:8083/a/9", "9", "then        static_response answers"},
		{"GET", "http://localhost:8083/b/42", "", "no authentication (such as basic_auth) sees this request"},
		{"GET", "http://localhost:8083/b/42/session", "42", "the app names the user in X-Viewer-User, since no authentication"},
		{"GET", "http://localhost:8083/c/42", "", "no forward_auth sees this request before viewer_session"},
		{"GET", "https://b\u00fccher.example.com/documents/42", "", "xn--bcher-kva.example.com"},
		{"GET", "http://localhost:8081/c/42", "42", ""},
		{"GET", "http://localhost:8082/b/42", "42", ""},
		{"GET", "http://localhost:8082/b/blocked", "", "static_response answers, and no viewer_session before it"},
	} {
		e := explained(t, explainedSite, test.method, test.url)
		text := e.text()
		encoded, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, h := range e.Handlers {
			if h.Token != nil {
				got = h.Token.DocumentID
			}
		}
		if got != test.document || e.Token != (test.document != "") {
			t.Errorf("%s %s: token %v for %q, want %q\n%s", test.method, test.url, e.Token, got, test.document, text)
		}
		if !strings.Contains(text, test.says) && !strings.Contains(string(encoded), test.says) {
			t.Errorf("%s %s does not say %q:\n%s", test.method, test.url, test.says, text)
		}
		for line := range strings.SplitSeq(text, "\n") {
			if len(line) > 140 {
				t.Errorf("%s: a line of %d characters: %s", test.url, len(line), line)
			}
		}
	}
}

// The request to the API is the one that would be sent, with placeholders as they
// stand, and the conditions are what was not looked into.
func TestExplainTheRequest(t *testing.T) {
	e := explained(t, explainedSite, "GET", "https://docs.example.com/view?doc=lease-2026")
	if len(e.Handlers) != 1 || e.Handlers[0].Token == nil {
		t.Fatal(e.text())
	}
	token := e.Handlers[0].Token
	want := fmt.Sprintf(`{"allowed_documents":[{"document_id":"lease-2026","document_permissions":["read","write"],"permissions":["read","write"]}],"exp":%d,"user_id":"{http.auth.user.id}","team":"{http.vars.team}"}`, testNow.Add(30*time.Minute).Unix())
	if string(token.Request) != want || token.TTL != "30m" || token.MinRemaining != "5m" || token.RenewedAfter != "12m30s" || token.Header != "X-Viewer-Session" || token.Browser {
		t.Errorf("got  %+v\nwant %s", token, want)
	}
	if token.Placeholders["http.auth.user.id"] != "authentication in Caddy, such as basic_auth" || token.Placeholders["http.vars.team"] == "" || len(token.Placeholders) != 3 {
		t.Errorf("placeholders %v", token.Placeholders)
	}
	for target, want := range map[string]string{
		"/editor":         "X-Viewer-Session",
		"/editor/session": "X-Viewer-User in it replaces",
	} {
		e = explained(t, explainedSite, "GET", "https://docs.example.com"+target)
		token, text := e.Handlers[0].Token, e.text()
		if token == nil || !token.AppProvided || token.DocumentID != "" || len(token.Permissions) != 0 || !strings.Contains(text, "document    the page's own\n") ||
			!strings.Contains(text, want) || strings.Contains(text, "X-Viewer-Permissions") || strings.Contains(text, "\npermissions") {
			t.Fatalf("%s: %s", target, text)
		}
		want := fmt.Sprintf(`{"exp":%d,"user_id":"{http.auth.user.id}","team":"{http.vars.team}"}`, testNow.Add(time.Hour).Unix())
		if string(token.Request) != want || !slices.Contains(e.Handlers[0].Conditions, "{http.auth.user.id} is not empty") {
			t.Errorf("got  %s, %q\nwant %s", token.Request, e.Handlers[0].Conditions, want)
		}
	}
	for target, want := range map[string]string{"/team": "{http.vars.floor} is not empty|{http.vars.team} is not empty", "/d/42": ""} {
		e = explained(t, explainedSite, "GET", "http://localhost:8085"+target)
		if got := strings.Join(e.Handlers[0].Conditions, "|"); got != want || !e.Token {
			t.Errorf("%s: conditions %q, want %q", target, got, want)
		}
	}
	e = explained(t, explainedSite, "GET", "https://docs.example.com/documents/42")
	if got := e.Handlers[0].Conditions; !slices.Equal(got, []string{"authentication lets the request through", "{http.auth.user.id} is not empty", "{http.vars.team} is not empty"}) {
		t.Errorf("conditions %q", got)
	}
	if e.Answered != "reverse_proxy" || e.Hosts[0] != "docs.example.com" || e.Listen[0] != ":443" {
		t.Errorf("got %+v", e)
	}
}

// One handle block excludes the others, and one route the later ones.
func TestExplainSaysWhatWins(t *testing.T) {
	e := explained(t, explainedSite, "GET", "http://localhost:8081/a/42")
	if len(e.Handlers) != 1 || len(e.Handlers[0].Routes) != 2 || e.Handlers[0].Routes[1].Why != "an earlier route wins" || e.Handlers[0].Token.DocumentID != "42" {
		t.Error(e.text())
	}
}

func TestShortDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		time.Hour: "1h", 90 * time.Minute: "1h30m", 45 * time.Second: "45s", 22*time.Minute + 30*time.Second: "22m30s", 720 * time.Hour: "720h",
		10 * time.Minute: "10m", time.Hour + time.Second: "1h0m1s",
	} {
		if got := shortDuration(d); got != want {
			t.Errorf("%v: got %s", d, got)
		}
	}
}

func TestExplainMistakes(t *testing.T) {
	for address, want := range map[string]string{"docs.example.com/x": "is not an address", "ftp://a/b": "is not an address", "": "is not an address"} {
		if _, err := explain([]byte(`{}`), "GET", address, testNow); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v", address, err)
		}
	}
	for config, want := range map[string]string{
		`[`: "not what Caddy reads",
		`{"apps":{"http":{"servers":{"s":{"routes":[{"handle":[{"handler":"viewer_session","nope":1}]}]}}}}}`:                    "nope",
		`{"apps":{"http":{"servers":{"s":{"routes":[{"match":[{"host":5}]}]}}}}}`:                                                "the matcher host",
		`{"apps":{"http":{"servers":{"s":{"routes":[{"handle":[{"handler":"viewer_session","routes":[{"paths":["/a"]}]}]}]}}}}}`: "has no :id",
	} {
		if _, err := explain([]byte(config), "GET", "http://a/b", testNow); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", config, err, want)
		}
	}
}
