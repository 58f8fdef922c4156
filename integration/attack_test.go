package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Hostile requests, sent as raw bytes through a real Caddy. For each: what the
// app saw, and for which documents a token was minted.

// attack is one hostile request. HOST in it stands for the gateway's address.
type attack struct {
	name    string
	method  string // GET if empty
	target  string // /documents/doc if empty
	header  string // further header lines
	trailer string // if set, the body is chunked and ends with it

	document string   // whose token the app gets; "-" for none; doc if empty
	status   int      // of the answer; 200 if zero
	keeps    []string // what the app must still see
}

// forgery marks every value that a client made up.
const forgery = "forged"

func (a attack) request() string {
	method, target := a.method, a.target
	if method == "" {
		method = "GET"
	}
	if target == "" {
		target = "/documents/doc"
	}
	request := method + " " + target + " HTTP/1.1\nHost: HOST\n"
	if a.header != "" {
		request += a.header + "\n"
	}
	if !strings.Contains(strings.ToLower(a.header), "connection:") {
		request += "Connection: close\n"
	}
	if a.trailer != "" {
		return request + "Transfer-Encoding: chunked\n\n4\nbody\n0\n" + a.trailer + "\n\n"
	}
	return request + "\n"
}

func (s *stage) attack(t *testing.T, a attack) {
	t.Helper()
	s.begin()
	answer := s.raw(a.request())
	_, status, _ := strings.Cut(strings.SplitN(answer, "\n", 2)[0], " ")
	status, _, _ = strings.Cut(status, " ")
	s.judge(t, a, status)
}

// begin forgets what has been seen before.
func (s *stage) begin() {
	s.app.forget()
	s.api.minted()
}

// judge looks at what came of an attack.
func (s *stage) judge(t *testing.T, a attack, got string) {
	t.Helper()
	status := a.status
	if status == 0 {
		status = 200
	}
	if got != fmt.Sprint(status) {
		t.Fatalf("status %s, want %d", got, status)
	}
	document := a.document
	if document == "" {
		document = "doc"
	}
	requests := s.app.all()
	if status != 200 {
		document = "-"
	} else if len(requests) != 1 {
		t.Fatalf("the app saw %d requests", len(requests))
	}
	for _, got := range requests {
		all := got.head + got.trailer
		if strings.Contains(all, forgery) {
			t.Errorf("the app saw a client's value:\n%s", all)
		}
		for _, want := range a.keeps {
			if !strings.Contains(all, want) {
				t.Errorf("the app did not see %q:\n%s", want, all)
			}
		}
		var tokens []string
		tokens = append(tokens, got.values("X-Viewer-Session")...)
		for _, line := range got.values("Cookie") {
			for pair := range strings.SplitSeq(line, ";") {
				if value, ok := strings.CutPrefix(strings.TrimSpace(pair), "viewer_session="); ok {
					tokens = append(tokens, value)
				}
			}
		}
		if document == "-" {
			if len(tokens) != 0 {
				t.Errorf("the app saw %d tokens:\n%s", len(tokens), all)
			}
			continue
		}
		if len(tokens) != 2 || tokens[0] != tokens[1] {
			t.Fatalf("the app saw %d tokens, want the same in header and cookie:\n%s", len(tokens), all)
		}
		if got := claims(t, tokens[0])["allowed_documents"].([]any)[0].(map[string]any)["document_id"]; got != document {
			t.Errorf("a token for %v, want one for %s", got, document)
		}
	}
	for _, minted := range s.api.minted() {
		if id := minted.AllowedDocuments[0].DocumentID; id != document {
			t.Errorf("a token was minted for %q", id)
		}
	}
}

const bothCarriers = `GATEWAY {
	viewer_session {
		endpoint API/viewer/sessions
		mint_rate off
		document_path /documents/:id
		document_path /files/:id.json /report-:id
		document_path /tree/:id/*
		session_path /session/:id
		document_path /query {
			document_id {http.request.uri.query.doc}
		}
		request_header X-Viewer-Session
		request_cookie viewer_session
	}
	reverse_proxy APP
}
`

// With these, Caddy lets every alias through that it would drop by itself.
var letAliasesThrough = []string{
	"expected_underscore_headers X_Viewer_Rejected X_Viewer_Session X_Viewer-Session X-Viewer_Session X_Viewer.Session X.Viewer_Session",
	"expected_dot_headers X.Viewer.Rejected X.Viewer.Session X.Viewer-Session X-Viewer.Session",
}

func attacks() []attack {
	var list []attack
	add := func(a ...attack) { list = append(list, a...) }

	// Under the header's name, on a viewer route, off it, and on paths that
	// are refused: stripping depends on nothing.
	for _, name := range []string{
		"X-Viewer-Session", "x-viewer-session", "X-VIEWER-SESSION", "X_Viewer_Session", "x_viewer_session", "X.Viewer.Session",
		"X_Viewer-Session", "X-Viewer_Session", "X.Viewer-Session", "X-Viewer.Session", "X_Viewer.Session", "X.Viewer_Session",
		"X~Viewer~Session", "X^viewer^session", "x`viewer`session", "X|Viewer|Session", "X!Viewer#Session", "X$Viewer%Session", "X&Viewer'Session", "X*Viewer+Session",
	} {
		for target, document := range map[string]string{"/documents/doc": "doc", "/elsewhere": "-", "/documents/a%2Fb": "-", "/session/doc": "-"} {
			add(attack{name: "header " + name + " on " + target, target: target, document: document, header: name + ": forged"})
		}
	}
	add(
		attack{name: "header twice", header: "X-Viewer-Session: forged\nX-Viewer-Session: forged"},
		attack{name: "header in two spellings", header: "X-Viewer-Session: forged\nX_Viewer_Session: forged\nX.Viewer.Session: forged"},
		attack{name: "header empty", header: "X-Viewer-Session:"},
		attack{name: "header folded over lines", header: "X-Other: a\n X-Viewer-Session: forgery"},
		attack{name: "header with a space before the colon", header: "X-Viewer-Session : forged", status: 400},
		attack{name: "header with a NUL", header: "X-Viewer-Session\x00: forged", status: 400},
		attack{name: "header with a tab in its value", header: "X-Viewer-Session: \tforged"},
		attack{name: "header of 4 KB", header: "X-Viewer-Session: " + strings.Repeat(forgery, 600)},
		attack{name: "another header whose name begins alike", header: "X-Viewer-Session-Id: mine", keeps: []string{"X-Viewer-Session-Id: mine"}},
	)

	// Connection.
	for _, value := range []string{
		"X-Viewer-Session", "x-viewer-session", "close, X-Viewer-Session", "X-Viewer-Session, X-Viewer-Session", "close,,X-Viewer-Session,",
		"Cookie", "cookie, close", "close\nConnection: X-Viewer-Session", "close\nConnection: Cookie\nConnection: X_Viewer_Session",
		"X-Viewer-Session, Upgrade\nUpgrade: websocket",
	} {
		header := "Connection: " + value + "\nX-Viewer-Session: forged\nCookie: viewer_session=forged; honest=1"
		if !strings.Contains(value, "close") {
			header += "\nConnection: close"
		}
		add(attack{name: "connection " + value, header: header, keeps: []string{"honest=1"}})
	}
	add(attack{
		name: "connection upgrade is kept", header: "Connection: X-Viewer-Session, upgrade\nUpgrade: websocket\nConnection: close",
		keeps: []string{"Connection: Upgrade", "Upgrade: websocket"},
	})

	// Cookies.
	for _, cookie := range []string{
		"viewer_session=forged", "viewer_session=forged; honest=1", "honest=1; viewer_session=forged", "honest=1;viewer_session=forged",
		"viewer_session=forged; viewer_session=forged; honest=1", "honest=1; viewer_session=", "honest=1; viewer_session", "viewer_session; honest=1",
		"honest=1;;;viewer_session=forged;;", "; viewer_session=forged; honest=1", "honest=1;\tviewer_session=forged", "honest=1; viewer_session =forged",
		"honest=1; viewer_session\t= forged", "honest=1; viewer_session==forged", `honest=1; viewer_session="forged"`, `honest=1; "viewer_session"=forged`,
		`honest=1; a="b; viewer_session=forged"`, `honest=1; a="b; viewer_session=forged; c"`, `honest=1; a="b\"; viewer_session=forged`,
		"honest=1; a=b, viewer_session=forged", "honest=1; a=b,viewer_session=forged", "honest=1; a=b viewer_session=forged", "a=b, viewer_session=forged", "a=b,viewer_session=forged",
		"honest=1; a viewer_session=forged", "honest=1; $Version=1; viewer_session=forged", "honest=1; VIEWER_SESSION=forged", "honest=1; Viewer_Session=forged",
		"honest=1; viewer.session=forged", "honest=1; viewer session=forged", "honest=1; viewer[session=forged", "honest=1; viewer+session=forged",
		"honest=1; viewer_session[]=forged", "honest=1; viewer_session[x]=forged", "honest=1; viewer_session[=forged",
		"honest=1; viewer%5Fsession=forged", "honest=1; %76iewer_session=forged", "honest=1; viewer_session%00x=forged", "honest=1; viewer%5fsession%3Dforged=forged",
		"honest=1; \xa0viewer_session=forged", "honest=1; \x85viewer_session=forged", "honest=1; viewer_session\xa0=forged", "honest=1;\xc2\xa0viewer_session=forged",
		"honest=1; \xe2\x80\x83viewer_session=forged", "honest=1; \xe3\x80\x80viewer_session=forged", "honest=1; viewer_session\xc2\xa0=forged", "honest=1; a\xa0viewer_session=forged",
		"honest=1; %20viewer_session=forged", "honest=1; +viewer_session=forged", "honest=1; %C2%A0viewer_session=forged", "honest=1; viewer_session%20=forged",
		"honest=1\nCookie: viewer_session=forged", "viewer_session=forged\nCookie: honest=1", "honest=1\nCookie: ;\nCookie: viewer_session=forged",
		"honest=1\ncookie: viewer_session=forged\nCOOKIE: viewer_session=forged",
	} {
		keeps := []string{"honest=1"}[:strings.Count(cookie, "honest=1")]
		add(
			attack{name: "cookie " + cookie, header: "Cookie: " + cookie, keeps: keeps},
			attack{name: "cookie elsewhere " + cookie, target: "/elsewhere", document: "-", header: "Cookie: " + cookie, keeps: keeps},
		)
	}
	add(
		attack{name: "cookie whose name only begins alike", header: "Cookie: viewer_session2=mine; xviewer_session=mine", keeps: []string{"viewer_session2=mine; xviewer_session=mine"}},
		attack{name: "cookie of another's text is kept", header: `Cookie: a="b, c"; d=%20; e=`, keeps: []string{`a="b, c"; d=%20; e=`}},
		attack{name: "cookie of another's JSON is kept", header: `Cookie: prefs={"a":1, "viewer_session":true}; b=c`, keeps: []string{`prefs={"a":1, "viewer_session":true}; b=c`}},
		attack{name: "cookies beyond number do not hide ours", header: "Cookie: " + strings.Repeat("a=b; ", 1100), keeps: []string{"Cookie: viewer_session=ey"}},
	)

	// What a browser says of a rejected token is for the gateway alone.
	for _, header := range []string{
		"X-Viewer-Rejected: forged", "x-viewer-rejected: forged", "X_Viewer_Rejected: forged", "X.Viewer.Rejected: forged",
		"X-Viewer-Rejected: forged\nX-Viewer-Rejected: forged", "X-Viewer-Rejected: forged\nConnection: X-Viewer-Rejected, close",
		"X-Viewer-Session: forged\nX-Viewer-Rejected: forged\nCookie: viewer_session=forged",
	} {
		add(
			attack{name: "on a session path " + header, target: "/session/doc", document: "-", header: header},
			attack{name: "posted to a session path " + header, method: "POST", target: "/session/doc", document: "-", header: header + "\nContent-Length: 0"},
		)
	}

	// Trailers.
	for _, trailer := range []string{"X-Viewer-Session", "x-viewer-session", "X_Viewer_Session", "X.Viewer.Session", "Cookie"} {
		add(
			attack{name: "trailer declared " + trailer, method: "POST", header: "Trailer: X-Honest, " + trailer, trailer: "X-Honest: 1\n" + trailer + ": forged", keeps: []string{"X-Honest: 1"}},
			attack{name: "trailer not declared " + trailer, method: "POST", header: "Trailer: X-Honest", trailer: "X-Honest: 1\n" + trailer + ": forged", keeps: []string{"X-Honest: 1"}},
			attack{name: "trailer unannounced " + trailer, method: "POST", trailer: trailer + ": forged"},
		)
	}

	// Paths: a token only for one whole segment, decoded once.
	long := strings.Repeat("x", 128)
	for target, document := range map[string]string{
		"/documents/doc/":                "doc",
		"/DOCUMENTS/doc":                 "doc",
		"/documents/DoC":                 "DoC",
		"/documents/d%6Fc":               "doc",
		"/%64ocuments/doc":               "doc",
		"/documents/doc?x=/documents/y":  "doc",
		"/documents/doc?":                "doc",
		"/documents/~tilde_-0":           "~tilde_-0",
		"/documents/" + long:             long,
		"/documents/" + long + "x":       "-",
		"/documents/" + long + long:      "-",
		"/documents/":                    "-",
		"/documents":                     "-",
		"/documents/doc/edit":            "-",
		"/documents/doc//":               "-",
		"/documents//doc":                "-",
		"//documents/doc":                "-",
		"/documents/./doc":               "-",
		"/./documents/doc":               "-",
		"/x/../documents/doc":            "-",
		"/documents/doc/.":               "-",
		"/documents/doc/..":              "-",
		"/documents/..":                  "-",
		"/documents/%2e":                 "-",
		"/documents/%2e%2e":              "-",
		"/documents/%2E%2E/doc":          "-",
		"/x/%2e%2e/documents/doc":        "-",
		"/documents/doc%2F":              "-",
		"/documents/doc%2fedit":          "-",
		"/documents%2Fdoc":               "-",
		"/documents/..%2Fdoc":            "-",
		"/documents/%2e%2e%2fdoc":        "-",
		"/documents/doc%252F":            "-",
		"/documents/%2564oc":             "-",
		"/documents/doc%25":              "-",
		"/documents/doc%5C":              "-",
		"/documents/doc\\":               "-",
		"/documents\\doc":                "-",
		"/documents/..\\doc":             "-",
		"/documents/doc%00":              "-",
		"/documents/%00doc":              "-",
		"/documents/doc%0A":              "-",
		"/documents/doc%0d%0aX-A:b":      "-",
		"/documents/doc%09":              "-",
		"/documents/doc%20":              "-",
		"/documents/doc%7F":              "-",
		"/documents/doc%C2%85":           "-",
		"/documents/doc%FF":              "-",
		"/documents/%C0%AE%C0%AE":        "-",
		"/documents/%E2%80%AE":           "-",
		"/documents/d%C3%B6c":            "-",
		"/documents/doc;v=1":             "-",
		"/documents/doc%3Bv":             "-",
		"/documents;x/doc":               "-",
		"/documents/..;/doc":             "-",
		"/documents/doc.":                "-",
		"/documents/doc%2E":              "-",
		"/documents/.doc":                "-",
		"/documents/{env.HOME}":          "-",
		"/documents/%7Benv.HOME%7D":      "-",
		"/documents/:id":                 "-",
		"/documents/*":                   "-",
		"/documents/doc#x":               "-",
		"/documents/doc%23x":             "-",
		"/documents/doc%3Fx":             "-",
		"/documents/a,b":                 "-",
		"/documents/a'b":                 "-",
		"/documents/%22%7D%5D%7D":        "-",
		"/documents/%F0%9F%98%80":        "-",
		"/document%C5%BF/doc":            "-",
		"/documents/%E2%84%AA":           "-",
		"/files/doc.json":                "doc",
		"/FILES/doc.JSON":                "doc",
		"/files/doc.json/":               "doc",
		"/files/.json":                   "-",
		"/files/doc.jsonx":               "-",
		"/files/doc.json.json":           "-",
		"/files/doc%2Ejson":              "doc",
		"/report-doc":                    "doc",
		"/report-":                       "-",
		"/xreport-doc":                   "-",
		"/tree/doc":                      "-",
		"/tree/doc/":                     "-",
		"/tree/doc/a":                    "doc",
		"/tree/doc/a/b/c":                "doc",
		"/tree/doc/a//b":                 "-",
		"/tree/doc/../b":                 "-",
		"/query?doc=doc":                 "doc",
		"/query?doc=d%6Fc":               "doc",
		"/query?doc=doc&doc=doc":         "-",
		"/query?doc=a/b":                 "-",
		"/query?doc=../doc":              "-",
		"/query?doc=d%256Fc":             "-",
		"/query?doc=":                    "-",
		"/query":                         "-",
		"/query?DOC=doc":                 "-",
		"/query?doc={env.HOME}":          "-",
		"/query?doc={http.request.host}": "-",
		"/query?doc=%ff":                 "-",
		"/query?doc=doc;doc=x":           "-",
		"/query/?doc=doc":                "doc",
	} {
		add(attack{name: "path " + target, target: target, document: document})
	}
	add(
		attack{name: "path half an escape", target: "/documents/doc%", status: 400},
		attack{name: "path with a raw NUL", target: "/documents/doc\x00", status: 400},
		attack{name: "path IIS escape", target: "/documents/%u0064oc", status: 400},
		attack{name: "method OPTIONS", method: "OPTIONS", document: "-", header: "X-Viewer-Session: forged"},
		attack{name: "method TRACE", method: "TRACE", document: "-", header: "X-Viewer-Session: forged"},
		attack{name: "method HEAD", method: "HEAD", header: "X-Viewer-Session: forged"},
		attack{name: "method DELETE", method: "DELETE", header: "X-Viewer-Session: forged"},
		attack{name: "method made up", method: "FORGE", header: "X-Viewer-Session: forged"},
		attack{name: "method overridden", method: "POST", header: "X-HTTP-Method-Override: TRACE\nContent-Length: 0"},
		attack{name: "absolute target", target: "http://HOST/documents/doc"},
		attack{name: "expectation", method: "POST", header: "Expect: 100-continue\nContent-Length: 0\nX-Viewer-Session: forged"},
		attack{name: "conditional", header: "If-None-Match: *\nX-Viewer-Session: forged"},
	)
	slices.SortFunc(list, func(a, b attack) int { return strings.Compare(a.name, b.name) })
	return list
}

func TestHostileRequests(t *testing.T) {
	s := newStage(t)

	// The trap must be set: where no header of that name is configured, the
	// aliases get through Caddy.
	s.load(strings.Replace(simpleSite, "document_path", "request_cookie other\n\t\tdocument_path", 1), letAliasesThrough...)
	for _, alias := range []string{"X_Viewer_Session", "X.Viewer.Session"} {
		s.raw("GET /documents/doc HTTP/1.1\nHost: HOST\n" + alias + ": forged\nConnection: close\n\n")
		if !strings.Contains(s.app.last().head, forgery) {
			t.Fatalf("Caddy drops %s by itself, so the table below shows nothing", alias)
		}
	}

	s.load(bothCarriers, letAliasesThrough...)
	list := attacks()
	if len(list) < 150 {
		t.Errorf("only %d attacks", len(list))
	}
	t.Logf("%d hostile requests", len(list))
	for _, a := range list {
		t.Run(a.name, func(t *testing.T) { s.attack(t, a) })
	}
}

// Where the directive may stand. Each chain is asked with a forged header and
// cookie; paths map to the document whose token the app gets, or "-".
func TestHostileChains(t *testing.T) {
	const directive = `viewer_session {
		endpoint API/viewer/sessions
		document_path /documents/:id
		request_header X-Viewer-Session
		request_cookie viewer_session
	}
`
	for name, tc := range map[string]struct {
		site string
		want map[string]string
	}{
		"in route": {"route {\n" + directive + "reverse_proxy APP\n}", map[string]string{"/documents/doc": "doc", "/x": "-"}},
		"in handle": {
			"handle /documents/* {\n" + directive + "reverse_proxy APP\n}\nhandle {\nrespond 404\n}",
			map[string]string{"/documents/doc": "doc", "/documents/a%2Fb": "-"},
		},
		"in handle_path":     {"handle_path /documents/* {\n" + directive + "reverse_proxy APP\n}", map[string]string{"/documents/doc": "doc", "/documents/a/b": "-"}},
		"behind rewrite":     {"rewrite /x /documents/rewritten\nrewrite /documents/* /app\n" + directive + "reverse_proxy APP", map[string]string{"/documents/doc": "doc", "/x": "-"}},
		"behind uri":         {"uri strip_prefix /app\n" + directive + "reverse_proxy APP", map[string]string{"/documents/doc": "doc", "/app/documents/doc": "-"}},
		"behind uri query":   {"uri query doc x\n" + directive + "reverse_proxy APP", map[string]string{"/documents/doc": "doc"}},
		"behind try_files":   {"root /nowhere\ntry_files {path} /documents/fallback\n" + directive + "reverse_proxy APP", map[string]string{"/documents/doc": "doc", "/x": "-"}},
		"behind method":      {"method GET\n" + directive + "reverse_proxy APP", map[string]string{"/documents/doc": "doc"}},
		"request_header":     {"request_header X-Viewer-Session forged\nrequest_header Cookie viewer_session=forged\n" + directive + "reverse_proxy APP", map[string]string{"/documents/doc": "doc", "/x": "-"}},
		"vars and map":       {"vars doc other\nmap {path} {mapped} {\ndefault other\n}\n" + directive + "reverse_proxy APP", map[string]string{"/documents/doc": "doc"}},
		"twice":              {directive + directive + "reverse_proxy APP", map[string]string{"/documents/doc": "doc", "/x": "-"}},
		"twice, nested":      {directive + "handle {\n" + directive + "reverse_proxy APP\n}", map[string]string{"/documents/doc": "doc", "/x": "-"}},
		"twice, other path":  {directive + strings.Replace(directive, "/documents", "/files", 1) + "reverse_proxy APP", map[string]string{"/documents/doc": "doc", "/files/doc": "doc", "/x": "-"}},
		"before encode":      {"encode gzip\n" + directive + "reverse_proxy APP", map[string]string{"/documents/doc": "doc"}},
		"through a subroute": {"route /documents/* {\nroute {\n" + directive + "}\n}\nreverse_proxy APP", map[string]string{"/documents/doc": "doc"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			s.load("GATEWAY {\n" + tc.site + "\n}\n")
			for target, document := range tc.want {
				s.attack(t, attack{
					target: target, document: document,
					header: "X-Viewer-Session: forged\nCookie: viewer_session=forged; honest=1",
				})
			}
		})
	}
}

// Values that look like something else stay what they are: a user's name is
// replaced into a claim once, and never parsed again.
func TestHostileValues(t *testing.T) {
	apiBehaves = behaviours["document_permissions"] // it takes any name
	defer func() { apiBehaves = behaviours["permissions"] }()
	s := newStage(t)
	auth := newApp(t)
	s.load(strings.ReplaceAll(`GATEWAY {
	forward_auth AUTH {
		uri /verify
		copy_headers Remote-User
	}
	viewer_session {
		endpoint API/viewer/sessions
		user_id {http.reverse_proxy.header.Remote-User}
		claim claim "hello {http.reverse_proxy.header.Remote-User}"
		permissions read {http.reverse_proxy.header.Permissions}
		document_path /documents/:id
	}
	reverse_proxy APP
}
`, "AUTH", auth.address))
	for i, value := range []string{
		"{env." + keyEnv + "}", "{file./etc/passwd}", "{http.request.host}", "{http.reverse_proxy.header.Remote-User}", `\{env.HOME\}`,
		`{`, `}`, `{{env.HOME}}`, `{"exp":1}`, `","exp":9999999999,"x":"`, `\`, `"`, `\u0000`, `<script>`, `'; DROP TABLE--`, `%7Benv.HOME%7D`,
		"a b", "a,b", "ünïcödé", "a:b", strings.Repeat("x", 2000), "null", "0", "$HOME", "{$HOME}",
	} {
		auth.setAnswer("HTTP/1.1 200 OK\nRemote-User: " + value + "\nPermissions: " + fmt.Sprintf("p%d,{env.HOME} write", i) + "\nContent-Length: 0\n\n")
		s.api.minted()
		s.token("/documents/doc")
		minted := s.api.minted()
		if len(minted) != 1 {
			t.Fatalf("%q: %d mints: another user's token?", value, len(minted))
		}
		got := minted[0]
		if got.UserID != value || got.Claim != "hello "+value {
			t.Errorf("user %q became user_id %q and claim %q", value, got.UserID, got.Claim)
		}
		want := fmt.Sprint([]string{fmt.Sprintf("p%d", i), "read", "write", "{env.HOME}"})
		if permissions := fmt.Sprint(got.AllowedDocuments[0].Permissions); permissions != want {
			t.Errorf("permissions %s, want %s", permissions, want)
		}
	}
	t.Run("invalid UTF-8 is no user", func(t *testing.T) {
		auth.setAnswer("HTTP/1.1 200 OK\nRemote-User: a\xff\nContent-Length: 0\n\n")
		s.get("/documents/doc", 401)
	})
}
