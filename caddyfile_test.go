package viewersession

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
)

// inDirective puts lines behind a route. The first of them is line 3.
func inDirective(lines string) string {
	return "viewer_session {\n\tdocument_path /d/:id\n\t" + lines + "\n}\n"
}

// inRoute puts lines into a route's block. The first of them is line 3.
func inRoute(lines string) string {
	return "viewer_session {\n\tdocument_path /d/:id {\n\t\t" + lines + "\n\t}\n}\n"
}

func jsonObject(t *testing.T, text string) map[string]any {
	t.Helper()
	var object map[string]any
	if err := json.Unmarshal([]byte(text), &object); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return object
}

func wantJSON(t *testing.T, got any, want map[string]any) {
	t.Helper()
	text, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if object := jsonObject(t, string(text)); !reflect.DeepEqual(object, want) {
		wanted, _ := json.Marshal(want)
		t.Errorf("got  %s\nwant %s", text, wanted)
	}
}

// tokenOptionCases are the options that stand in the directive and in a
// route's block alike, with the JSON members that they become.
var tokenOptionCases = []struct{ lines, want string }{
	{"permissions read", `{"permissions": ["read"]}`},
	{"permissions \"read, read\" read", `{"permissions": ["read, read", "read"]}`},
	{"permissions write read download\nshared", `{"permissions": ["write", "read", "download"], "shared": true}`},
	{"permissions read,write\nuser_id {http.auth.user.id}", `{"permissions": ["read,write"], "user_id": "{http.auth.user.id}"}`},
	{"permissions read {http.vars.more}\nvary_by {http.vars.more}", `{"permissions": ["read", "{http.vars.more}"], "vary_by": ["{http.vars.more}"]}`},
	{"permissions {http.request.header.X-Permissions}\nshared\ntrust_request_headers", `{"permissions": ["{http.request.header.X-Permissions}"], "shared": true, "trust_request_headers": true}`},
	{"user_id {http.auth.user.id}", `{"user_id": "{http.auth.user.id}"}`},
	{"user_id {http.reverse_proxy.header.Remote-User}", `{"user_id": "{http.reverse_proxy.header.Remote-User}"}`},
	{"user_id {env.TENANT}/{http.auth.user.id}", `{"user_id": "{env.TENANT}/{http.auth.user.id}"}`},
	{"user_id {http.request.header.Remote-User}\ntrust_request_headers", `{"user_id": "{http.request.header.Remote-User}", "trust_request_headers": true}`},
	{"vary_by {http.vars.a} {http.vars.b}", `{"vary_by": ["{http.vars.a}", "{http.vars.b}"]}`},
	{"vary_by {http.request.header.Accept-Language}", `{"vary_by": ["{http.request.header.Accept-Language}"]}`},
	{"shared", `{"shared": true}`},
	{"trust_request_headers", `{"trust_request_headers": true}`},
	{"ttl 1m", `{"ttl": 60000000000}`},
	{"ttl 30d", `{"ttl": 2592000000000000}`},
	{"ttl 15m\nmin_remaining 5m", `{"ttl": 900000000000, "min_remaining": 300000000000}`},
	{"min_remaining 30m", `{"min_remaining": 1800000000000}`},
	{"claim team blue", `{"claims": {"team": "blue"}}`},
	{`claim team "deep blue"`, `{"claims": {"team": "deep blue"}}`},
	{`claim level 5`, `{"claims": {"level": 5}}`},
	{`claim level -5`, `{"claims": {"level": -5}}`},
	{`claim level "5"`, `{"claims": {"level": "5"}}`},
	{"claim level `5`", `{"claims": {"level": "5"}}`},
	{`claim ratio 0.5`, `{"claims": {"ratio": 0.5}}`},
	{`claim admin true`, `{"claims": {"admin": true}}`},
	{`claim admin "true"`, `{"claims": {"admin": "true"}}`},
	{`claim word "inf"`, `{"claims": {"word": "inf"}}`},
	{`claim word "nan"`, `{"claims": {"word": "nan"}}`},
	{`claim word ""`, `{"claims": {"word": ""}}`},
	{`claim word null`, `{"claims": {"word": "null"}}`},
	{`claim who {http.auth.user.name}`, `{"claims": {"who": "{http.auth.user.name}"}}`},
	{"claim a 1\nclaim b 2", `{"claims": {"a": 1, "b": 2}}`},
	{"claim_json list `[1, \"{http.auth.user.id}\", null]`", `{"claims": {"list": [1, "{http.auth.user.id}", null]}}`},
	{"claim_json nothing null", `{"claims": {"nothing": null}}`},
	{"claim_json object `{\"exp\": 5}`", `{"claims": {"object": {"exp": 5}}}`},
	{"document_claim page 3", `{"document_claims": {"page": 3}}`},
	{"document_claim_json collaboration_permissions `[\"annotations:view:all\"]`", `{"document_claims": {"collaboration_permissions": ["annotations:view:all"]}}`},
	{"claim same 1\ndocument_claim same 2", `{"claims": {"same": 1}, "document_claims": {"same": 2}}`},
}

func TestTokenOptionsOfAllRoutes(t *testing.T) {
	for _, test := range tokenOptionCases {
		t.Run(test.lines, func(t *testing.T) {
			h, err := parseTestHandler(inDirective(test.lines))
			if err != nil {
				t.Fatal(err)
			}
			want := jsonObject(t, test.want)
			want["routes"] = []any{map[string]any{"paths": []any{"/d/:id"}}}
			wantJSON(t, h, want)
		})
	}
}

func TestTokenOptionsOfOneRoute(t *testing.T) {
	for _, test := range tokenOptionCases {
		t.Run(test.lines, func(t *testing.T) {
			h, err := parseTestHandler(inRoute(test.lines))
			if err != nil {
				t.Fatal(err)
			}
			route := jsonObject(t, test.want)
			route["paths"] = []any{"/d/:id"}
			wantJSON(t, h, map[string]any{"routes": []any{route}})
		})
	}
}

func TestHandlerOptions(t *testing.T) {
	for _, test := range []struct{ lines, want string }{
		{"", `{}`},
		{"document_id_format [0-9]+", `{"document_id_format": "[0-9]+"}`},
		{"document_id_format \"[a-z]{1,4}|x\"", `{"document_id_format": "[a-z]{1,4}|x"}`},
		{"request_header X-Token", `{"request_header": "X-Token"}`},
		{"request_header x-token", `{"request_header": "x-token"}`},
		{"request_cookie viewer_session", `{"request_cookie": "viewer_session"}`},
		{"request_cookie __Host-viewer", `{"request_cookie": "__Host-viewer"}`},
		{"request_header X-Token\nrequest_cookie token", `{"request_header": "X-Token", "request_cookie": "token"}`},
		{"allow_store", `{"allow_store": true}`},
		{"on_error fail", `{"on_error": "fail"}`},
		{"on_error pass", `{"on_error": "pass"}`},
		{"api_key {env.OTHER_KEY}", `{"api_key": "{env.OTHER_KEY}"}`},
		{"api_key {file./run/secrets/viewer_key}", `{"api_key": "{file./run/secrets/viewer_key}"}`},
		{"endpoint https://dws.example.com/viewer/sessions", `{"endpoint": "https://dws.example.com/viewer/sessions"}`},
		{"endpoint http://127.0.0.1:8081/viewer/sessions", `{"endpoint": "http://127.0.0.1:8081/viewer/sessions"}`},
		{"endpoint http://127.8.9.10/", `{"endpoint": "http://127.8.9.10/"}`},
		{"endpoint http://[::1]:8081/", `{"endpoint": "http://[::1]:8081/"}`},
		{"endpoint http://localhost:8081/", `{"endpoint": "http://localhost:8081/"}`},
		{"endpoint http://dws.internal/\ninsecure_endpoint", `{"endpoint": "http://dws.internal/", "insecure_endpoint": true}`},
		{"timeout 100ms", `{"timeout": 100000000}`},
		{"timeout 1m", `{"timeout": 60000000000}`},
		{"mint_rate 5", `{"mint_rate": {"rate": 5}}`},
		{"mint_rate 0.5 3", `{"mint_rate": {"rate": 0.5, "burst": 3}}`},
		{"mint_rate 1000000 1", `{"mint_rate": {"rate": 1000000, "burst": 1}}`},
		{"mint_rate off", `{"mint_rate": {"off": true}}`},
		{"cache_size 1MiB", `{"cache_size": 1048576}`},
		{"cache_size 256MiB", `{"cache_size": 268435456}`},
		{"cache_size 2000000", `{"cache_size": 2000000}`},
		{"transport http", `{"transport": {"protocol": "http"}}`},
		{"transport http {\nversions 1.1\ndial_timeout 2s\n}", `{"transport": {"protocol": "http", "versions": ["1.1"], "dial_timeout": 2000000000}}`},
		{"insecure_endpoint\ntransport http {\ntls_insecure_skip_verify\n}", `{"insecure_endpoint": true, "transport": {"protocol": "http", "tls": {"insecure_skip_verify": true}}}`},
		{"transport http {\ntls_server_name dws.example.com\n}\nallow_store", `{"transport": {"protocol": "http", "tls": {"server_name": "dws.example.com"}}, "allow_store": true}`},
	} {
		t.Run(test.lines, func(t *testing.T) {
			h, err := parseTestHandler(inDirective(test.lines))
			if err != nil {
				t.Fatal(err)
			}
			want := jsonObject(t, test.want)
			want["routes"] = []any{map[string]any{"paths": []any{"/d/:id"}}}
			wantJSON(t, h, want)
		})
	}
}

func TestRoutesKeepTheirOrderAndPatterns(t *testing.T) {
	for _, test := range []struct{ name, input, want string }{
		{"several patterns", `viewer_session {
			document_path /documents/:id /files/:id.pdf /d/:id/*
		}`, `{"routes": [{"paths": ["/documents/:id", "/files/:id.pdf", "/d/:id/*"]}]}`},
		{"several routes", `viewer_session {
			document_path /b/:id
			document_path /a/:id {
				permissions read download
				shared
			}
			document_path /c/:id
		}`, `{"routes": [{"paths": ["/b/:id"]}, {"paths": ["/a/:id"], "permissions": ["read", "download"], "shared": true}, {"paths": ["/c/:id"]}]}`},
		{"empty block", "viewer_session {\n\tdocument_path /d/:id {\n\t}\n}", `{"routes": [{"paths": ["/d/:id"]}]}`},
		{"one path for documents from two places", `viewer_session {
			document_path /viewer {
				document_id {http.request.uri.query.doc}
			}
			document_path /viewer {
				document_id {http.request.uri.query.file}
			}
		}`, `{"routes": [{"paths": ["/viewer"], "document_id": "{http.request.uri.query.doc}"}, {"paths": ["/viewer"], "document_id": "{http.request.uri.query.file}"}]}`},
		{"document_id alone", `viewer_session {
			document_id {http.request.uri.query.doc}
		}`, `{"document_id": "{http.request.uri.query.doc}"}`},
		{"document_id for patterns without :id", `viewer_session {
			document_path /viewer /show/*
			document_path /documents/:id
			document_id {http.regexp.doc.1}
		}`, `{"document_id": "{http.regexp.doc.1}", "routes": [{"paths": ["/viewer", "/show/*"]}, {"paths": ["/documents/:id"]}]}`},
		{"document_id of a route", `viewer_session {
			document_path /viewer {
				document_id {http.request.uri.query.doc}
			}
		}`, `{"routes": [{"paths": ["/viewer"], "document_id": "{http.request.uri.query.doc}"}]}`},
		{"document_id from a trusted header", `viewer_session {
			document_path /viewer {
				document_id {http.request.header.X-Document}
				trust_request_headers
			}
		}`, `{"routes": [{"paths": ["/viewer"], "document_id": "{http.request.header.X-Document}", "trust_request_headers": true}]}`},
		{"session paths", `viewer_session {
			session_path /token /session/:id
			document_path /d/:id {
				session_path /d/:id/session
				permissions read download
				shared
				session_path /d/:id/token
			}
			session_path /more
		}`, `{"routes": [{"session_paths": ["/token", "/session/:id"]}, {"paths": ["/d/:id"], "session_paths": ["/d/:id/session", "/d/:id/token"], "permissions": ["read", "download"], "shared": true}, {"session_paths": ["/more"]}]}`},
		{"script path", "viewer_session {\n\tsession_path /token\n\tscript_path /viewer-session.js\n}", `{"routes": [{"session_paths": ["/token"]}], "script_path": "/viewer-session.js"}`},
		{"pages that bring their own documents", `viewer_session {
			permissions read write
			document_id {http.vars.a}
			document_claim page 3
			user_id {http.auth.user.id}
			document_path /editor /drafts/* {
				app_provided
				claim team blue
				ttl 20m
				session_path /editor/session
			}
			document_path /editor/:id
		}`, `{"permissions": ["read", "write"], "document_id": "{http.vars.a}", "document_claims": {"page": 3}, "user_id": "{http.auth.user.id}", "routes": [{"paths": ["/editor", "/drafts/*"], "session_paths": ["/editor/session"], "app_provided": true, "claims": {"team": "blue"}, "ttl": 1200000000000}, {"paths": ["/editor/:id"]}]}`},
		{"paths that an id in front does not fit, or that come first", `viewer_session {
			document_path /documents/new {
				document_id {http.vars.a}
			}
			document_path /documents/:id /files/:id.pdf
			document_path /documents/a.b /files/x /documents/* {
				document_id {http.vars.b}
			}
		}`, `{"routes": [{"paths": ["/documents/new"], "document_id": "{http.vars.a}"}, {"paths": ["/documents/:id", "/files/:id.pdf"]}, {"paths": ["/documents/a.b", "/files/x", "/documents/*"], "document_id": "{http.vars.b}"}]}`},
		{"session path alone", "viewer_session {\n\tsession_path /token\n}", `{"routes": [{"session_paths": ["/token"]}]}`},
		{"session path of a document from elsewhere", `viewer_session {
			document_path /view {
				document_id {http.request.uri.query.doc}
				session_path /view/session
			}
		}`, `{"routes": [{"paths": ["/view"], "session_paths": ["/view/session"], "document_id": "{http.request.uri.query.doc}"}]}`},
		{"a route's own ttl", `viewer_session {
			ttl 2h
			min_remaining 10m
			document_path /d/:id {
				ttl 20m
			}
		}`, `{"ttl": 7200000000000, "min_remaining": 600000000000, "routes": [{"paths": ["/d/:id"], "ttl": 1200000000000}]}`},
		{"a route narrows permissions", `viewer_session {
			permissions read write
			user_id {http.auth.user.id}
			document_path /d/:id {
				permissions read
			}
		}`, `{"permissions": ["read", "write"], "user_id": "{http.auth.user.id}", "routes": [{"paths": ["/d/:id"], "permissions": ["read"]}]}`},
		{"a route's claim of the same name", `viewer_session {
			claim team blue
			document_path /d/:id {
				claim team red
			}
		}`, `{"claims": {"team": "blue"}, "routes": [{"paths": ["/d/:id"], "claims": {"team": "red"}}]}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			h, err := parseTestHandler(test.input)
			if err != nil {
				t.Fatal(err)
			}
			wantJSON(t, h, jsonObject(t, test.want))
		})
	}
}

func TestRoutesAreCompletedByTheHandler(t *testing.T) {
	h, err := parseTestHandler(`viewer_session {
		permissions read write
		user_id {http.auth.user.id}
		vary_by {http.vars.a}
		claim team blue
		claim floor 3
		document_claim page 1
		ttl 2h
		document_path /a/:id
		document_path /b/:id {
			permissions read
			user_id {http.vars.user}
			vary_by {http.vars.b}
			claim team red
			document_claim zoom 2
			ttl 8m
			min_remaining 1m
		}
	}`)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		permissions, userID, varyBy, claims, documentClaims string
		ttl, minRemaining                                   string
	}{
		{"[read write]", "value of http.auth.user.id", "[{http.vars.a} value of http.vars.a]", `,"floor":3,"team":"blue"`, `,"page":1`, "2h0m0s", "30m0s"},
		{"[read]", "value of http.vars.user", "[{http.vars.b} value of http.vars.b]", `,"floor":3,"team":"red"`, `,"page":1,"zoom":2`, "8m0s", "1m0s"},
	} {
		repl := caddy.NewEmptyReplacer()
		repl.Map(func(name string) (any, bool) { return "value of " + name, true })
		var got claims.Claims
		h.routes[i].template.Resolve(&got, repl, "doc")
		for what, pair := range map[string][2]string{
			"permissions":     {fmt.Sprint(got.Permissions), want.permissions},
			"user_id":         {got.UserID, want.userID},
			"vary_by":         {fmt.Sprint(got.VaryBy), want.varyBy},
			"claims":          {got.Request.Claims, want.claims},
			"document_claims": {got.DocumentClaims, want.documentClaims},
			"ttl":             {got.TTL.String(), want.ttl},
			"min_remaining":   {got.MinRemaining.String(), want.minRemaining},
		} {
			if pair[0] != pair[1] {
				t.Errorf("route %d: %s is %s, want %s", i+1, what, pair[0], pair[1])
			}
		}
	}
}

// clientWrittenPlaceholders are what anybody who sends a request can choose.
var clientWrittenPlaceholders = []string{
	"http.request.header.Remote-User",
	"http.request.header.remote-user",
	"http.request.cookie.user",
	"http.request.body",
	"http.request.body_base64",
}

// queryPlaceholders are written by clients as well, but may name a document.
var queryPlaceholders = []string{
	"http.request.uri",
	"http.request.uri_escaped",
	"http.request.uri.query",
	"http.request.uri.query_escaped",
	"http.request.uri.query.user",
	"http.request.uri.prefixed_query",
	"http.request.orig_uri",
	"http.request.orig_uri.query",
	"http.request.orig_uri.prefixed_query",
}

// addressPlaceholders are parts of the address, which may be in a claim, but say
// nothing of who the user is.
var addressPlaceholders = []string{
	"http.request.uri.path",
	"http.request.uri.path.1",
	"http.request.orig_uri.path",
	"http.request.host",
	"http.request.host.labels.1",
	"http.request.hostport",
	"http.request.port",
	"http.request.tls.server_name",
}

func TestWhatClientsWriteIsRefusedUnlessTrusted(t *testing.T) {
	const hint = " is client-controlled, so anybody could choose it: use what authentication in Caddy sets (for example {http.auth.user.id} or {http.reverse_proxy.header.Remote-User}), or trust_request_headers if a proxy in front of Caddy sets it, at Testfile:"
	for what, line := range map[string]string{
		"user_id":     "user_id PLACEHOLDER",
		"permissions": "shared\npermissions read PLACEHOLDER",
		"claim who":   "claim who PLACEHOLDER",
		"claim list":  "claim_json list `[1, {\"deep\": [\"x PLACEHOLDER\"]}]`",
		"claim page":  "document_claim page PLACEHOLDER",
		"claim pages": "document_claim_json pages `[\"PLACEHOLDER\"]`",
		"user_id ":    "user_id {http.auth.user.id}PLACEHOLDER",
	} {
		names := slices.Concat(clientWrittenPlaceholders, queryPlaceholders)
		if !strings.HasPrefix(what, "claim") {
			names = append(names, addressPlaceholders...)
		}
		for _, name := range names {
			lines := strings.ReplaceAll(line, "PLACEHOLDER", "{"+name+"}")
			t.Run(strings.TrimSpace(what)+" "+lines, func(t *testing.T) {
				want := strings.TrimSpace(what) + " {" + name + "}" + hint
				wantMistake(t, inDirective(lines), want)
				wantMistake(t, inRoute(lines), want)
				for _, input := range []string{inDirective(lines + "\ntrust_request_headers"), inRoute(lines + "\ntrust_request_headers")} {
					if _, err := parseTestHandler(input); err != nil {
						t.Errorf("with trust_request_headers: %v", err)
					}
				}
			})
		}
	}
}

func TestTrustOfOneRouteIsNotTheOthers(t *testing.T) {
	_, err := parseTestHandler(`viewer_session {
	document_path /a/:id {
		trust_request_headers
		user_id {http.request.header.Remote-User}
	}
	document_path /b/:id {
		user_id {http.request.header.Remote-User}
	}
}`)

	if err == nil || !strings.HasPrefix(err.Error(), "route /b/:id: user_id {http.request.header.Remote-User} is client-controlled") {
		t.Errorf("got %v", err)
	}
}

func TestDocumentIDMayComeFromTheQueryButNotFromHeaders(t *testing.T) {
	forms := func(name string) map[string]string {
		return map[string]string{
			"directive": "viewer_session {\n\tdocument_id {" + name + "}\n}",
			"route":     "viewer_session {\n\tdocument_path /a {\n\t\tdocument_id {" + name + "}\n\t}\n}",
			"default":   "viewer_session {\n\tdocument_id {" + name + "}\n\tdocument_path /a\n}",
		}
	}
	trusted := func(input string) string {
		return strings.Replace(input, "viewer_session {\n", "viewer_session {\n\ttrust_request_headers\n", 1)
	}
	allowed := append([]string{"http.request.uri.path.2", "http.regexp.doc.1", "http.vars.document", "http.reverse_proxy.header.X-Document"}, queryPlaceholders...)
	for _, name := range allowed {
		for where, input := range forms(name) {
			if _, err := parseTestHandler(input); err != nil {
				t.Errorf("%s in the %s: %v", name, where, err)
			}
		}
	}
	for _, name := range addressPlaceholders {
		for _, line := range []string{"claim where {" + name + "}", "document_id {" + name + "}"} {
			if _, err := parseTestHandler(inDirective(line)); err != nil && !strings.Contains(err.Error(), "never used") {
				t.Errorf("%s: %v", line, err)
			}
		}
	}
	for _, name := range clientWrittenPlaceholders {
		for where, input := range forms(name) {
			_, err := parseTestHandler(input)
			want := "document_id {" + name + "} is client-controlled: use the path or the query, or trust_request_headers if a proxy in front of Caddy sets it, at Testfile:"
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s in the %s: got %v, want %s", name, where, err, want)
			}
			if _, err := parseTestHandler(trusted(input)); err != nil {
				t.Errorf("%s in the %s with trust_request_headers: %v", name, where, err)
			}
		}
	}
}

func TestHeadersWithAMeaningAreRefused(t *testing.T) {
	for _, name := range []string{
		"Authorization", "authorization", "Cookie", "Set-Cookie", "Host", "Connection", "Keep-Alive", "TE", "Trailer",
		"Transfer-Encoding", "Transfer_Encoding", "Upgrade", "Content-Type", "Content-Length", "content_type", "Content-Viewer",
		"Forwarded", "X-Forwarded-For", "X-Forwarded-Viewer", "X.Forwarded.Host", "x_forwarded_proto", "Proxy-Authorization",
		"Via", "Expect", "Range", "If-None-Match", "If-Modified-Since", "Origin", "Referer", "User-Agent", "Accept", "Accept-Encoding",
		"Cache-Control", "Access-Control-Request-Method", "Sec-Fetch-Site", "X-Real-IP", "X-HTTP-Method-Override", "X-Original-URL",
		"X-Viewer-Rejected", "X-Viewer-Document", "X-Viewer-Permissions", "X-Viewer-User",
	} {
		_, err := parseTestHandler(inDirective("request_header " + name))
		if err == nil || !strings.Contains(err.Error(), "has a meaning of its own: choose a name of yours, such as X-Viewer-Session, at Testfile:") {
			t.Errorf("request_header %s: got %v", name, err)
		}
	}
	for _, name := range []string{"X-Viewer-Session", "Viewer", "X-Token", "Session_Token", "X-Forward", "Contents"} {
		if _, err := parseTestHandler(inDirective("request_header " + name)); err != nil {
			t.Errorf("request_header %s: %v", name, err)
		}
	}
}

// Every option is known in the directive, and only the token options in a
// route. The table above cannot forget one.
func TestEveryOptionIsTested(t *testing.T) {
	tested := make(map[string]bool)
	for _, test := range tokenOptionCases {
		for line := range strings.SplitSeq(test.lines, "\n") {
			name, _, _ := strings.Cut(line, " ")
			tested[name] = true
		}
	}
	want := map[string]bool{
		"permissions": true, "user_id": true, "vary_by": true, "shared": true, "claim": true, "claim_json": true,
		"document_claim": true, "document_claim_json": true, "ttl": true, "min_remaining": true, "trust_request_headers": true,
	}
	if !maps.Equal(tested, want) {
		t.Errorf("tested %v, want %v", tested, want)
	}
	// The JSON members of TokenOptions are as many: claim and claim_json share one.
	if fields := reflect.TypeFor[TokenOptions]().NumField(); fields != len(want)-2 {
		t.Errorf("TokenOptions has %d fields, and the tests know of %d", fields, len(want)-2)
	}
}

func TestExtraArgumentOfTransportIsRefused(t *testing.T) {
	for _, lines := range []string{
		"transport http extra",
		"transport http extra {\nversions 1.1\n}",
	} {
		wantMistake(t, inDirective(lines), "transport http takes no further argument: its options go into a block, at Testfile:3")
	}
}
