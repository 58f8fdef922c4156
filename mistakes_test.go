package viewersession

import (
	"fmt"
	"strings"
	"testing"
)

const quoteHint = "; write it like that, or in quotes to send the text (in a snippet with arguments, quotes go around {args[0]}), at Testfile:3"

// tokenOptionMistakes are mistakes in options that stand in the directive and
// in a route's block alike, on line 3.
var tokenOptionMistakes = []struct{ lines, want string }{
	{"user_id {http.reverse_proxy.header.X-authentik-username}", "user_id {http.reverse_proxy.header.X-authentik-username} is never set, since Go spells that header differently: write {http.reverse_proxy.header.X-Authentik-Username}, at Testfile:"},
	{"vary_by {http.reverse_proxy.header.remote-groups}", "vary_by {http.reverse_proxy.header.remote-groups} is never set, since Go spells that header differently: write {http.reverse_proxy.header.Remote-Groups}, at Testfile:"},
	// Missing arguments.
	{"permissions", "permissions needs at least one name: read, write or download, at Testfile:3"},
	{"user_id", "user_id needs a value, at Testfile:3"},
	{`user_id ""`, "user_id needs a value, at Testfile:3"},
	{"vary_by", "vary_by needs at least one placeholder, at Testfile:3"},
	{"claim", "claim needs a name and a value, at Testfile:3"},
	{"claim team", "claim needs a name and a value, at Testfile:3"},
	{"claim_json", "claim_json needs a name and JSON, in backquotes if it holds spaces or quotes, at Testfile:3"},
	{"claim_json team", "claim_json needs a name and JSON, in backquotes if it holds spaces or quotes, at Testfile:3"},
	{"document_claim", "document_claim needs a name and a value, at Testfile:3"},
	{"document_claim page", "document_claim needs a name and a value, at Testfile:3"},
	{"document_claim_json", "document_claim_json needs a name and JSON, in backquotes if it holds spaces or quotes, at Testfile:3"},
	{"document_claim_json page", "document_claim_json needs a name and JSON, in backquotes if it holds spaces or quotes, at Testfile:3"},
	{"ttl", "ttl needs a value, at Testfile:3"},
	{"min_remaining", "min_remaining needs a value, at Testfile:3"},

	// Extra arguments.
	{"user_id {http.auth.user.id} x", `user_id takes one value; unexpected argument "x", at Testfile:3`},
	{"shared yes", "shared takes no argument (yes), at Testfile:3"},
	{"claim team deep blue", `claim team: unexpected argument "blue"; quote values that contain spaces, at Testfile:3`},
	{"claim_json team 1 2", `claim_json team: unexpected argument "2"; quote values that contain spaces, at Testfile:3`},
	{"document_claim page 1 2", `document_claim page: unexpected argument "2"; quote values that contain spaces, at Testfile:3`},
	{"document_claim_json page 1 2", `document_claim_json page: unexpected argument "2"; quote values that contain spaces, at Testfile:3`},
	{"ttl 1h 2h", `ttl takes one value; unexpected argument "2h", at Testfile:3`},
	{"min_remaining 1m 2m", `min_remaining takes one value; unexpected argument "2m", at Testfile:3`},
	{"trust_request_headers on", "trust_request_headers takes no argument (on), at Testfile:3"},

	// Repeated.
	{"permissions read\npermissions read", "permissions is given twice: remove one, at Testfile:4"},
	{"user_id {http.auth.user.id}\nuser_id {http.auth.user.id}", "user_id is given twice: remove one, at Testfile:4"},
	{"vary_by {http.vars.a}\nvary_by {http.vars.b}", "vary_by is given twice: remove one, at Testfile:4"},
	{"shared\nshared", "shared is given twice: remove one, at Testfile:4"},
	{"ttl 1h\nttl 1h", "ttl is given twice: remove one, at Testfile:4"},
	{"min_remaining 1m\nmin_remaining 1m", "min_remaining is given twice: remove one, at Testfile:4"},
	{"trust_request_headers\ntrust_request_headers", "trust_request_headers is given twice: remove one, at Testfile:4"},
	{"claim a 1\nclaim a 2", "claim a is given twice, at Testfile:4"},
	{"claim a 1\nclaim_json a 2", "claim_json a is given twice, at Testfile:4"},
	{"document_claim a 1\ndocument_claim a 2", "document_claim a is given twice, at Testfile:4"},
	{"document_claim_json a 1\ndocument_claim a 2", "document_claim a is given twice, at Testfile:4"},

	// Durations.
	{"ttl 59s", "ttl 59s: write a duration from 1m to 30d, at Testfile:"},
	{"ttl 31d", "ttl 744h0m0s: write a duration from 1m to 30d, at Testfile:"},
	{"ttl 0", `ttl "0" is not a duration: write a number with a unit, such as 30s, 15m, 1h or 7d, at Testfile:3`},
	{"ttl -1h", `ttl "-1h" is not a duration: write a number with a unit, such as 30s, 15m, 1h or 7d, at Testfile:3`},
	{"ttl 3600", `ttl "3600" is not a duration: write a number with a unit, such as 30s, 15m, 1h or 7d, at Testfile:3`},
	{"ttl 2w", `ttl "2w" is not a duration: write a number with a unit, such as 30s, 15m, 1h or 7d, at Testfile:3`},
	{"ttl {http.vars.ttl}", `ttl "{http.vars.ttl}" is not a duration: write a number with a unit, such as 30s, 15m, 1h or 7d, at Testfile:3`},
	{"min_remaining 5x", `min_remaining "5x" is not a duration: write a number with a unit, such as 30s, 15m, 1h or 7d, at Testfile:3`},
	{"min_remaining 31m", "min_remaining 31m0s: write at most half of ttl (30m0s), or a longer ttl, at Testfile:"},
	{"ttl 4m\nmin_remaining 121s", "min_remaining 2m1s: write at most half of ttl (2m0s), or a longer ttl, at Testfile:"},

	// Claims.
	{"claim exp 5", `claim "exp" is reserved: it is set by ttl, at Testfile:3`},
	{"claim_json user_id `\"x\"`", `claim "user_id" is reserved: it is set by user_id, at Testfile:3`},
	{"claim_json allowed_documents []", `claim "allowed_documents" is reserved: it is made from the route, at Testfile:3`},
	{"document_claim document_id x", `claim "document_id" is reserved: it is made from the route, at Testfile:3`},
	{"document_claim_json document_permissions []", `claim "document_permissions" is reserved: it is set by permissions, at Testfile:3`},
	{"document_claim_json permissions `[\"read\",\"write\"]`", `claim "permissions" is reserved: it is set by permissions, at Testfile:3`},
	{"claim_json Permissions []", `claim "Permissions" is reserved: it is set by permissions, at Testfile:3`},
	{"document_claim exp 5", `claim "exp" is reserved: it is set by ttl, at Testfile:3`},
	{"claim document_id x", `claim "document_id" is reserved: it is made from the route, at Testfile:3`},
	{`claim_json "permissions " []`, `claim "permissions " is reserved: it is set by permissions, at Testfile:3`},
	{"document_claim_json document-permissions []", `claim "document-permissions" is reserved: it is set by permissions, at Testfile:3`},
	{"claim_json \"\ufeffuser_id\" 5", `claim "\ufeffuser_id" is reserved: it is set by user_id, at Testfile:3`},
	{`claim "" x`, "claim: the name is empty, at Testfile:3"},
	{"claim x inf", "claim x: JSON has no number inf; to send the text, write it in quotes, at Testfile:3"},
	{"claim x -Inf", "claim x: JSON has no number -Inf; to send the text, write it in quotes, at Testfile:3"},
	{"claim x +infinity", "claim x: JSON has no number +infinity; to send the text, write it in quotes, at Testfile:3"},
	{"claim x NaN", "claim x: JSON has no number NaN; to send the text, write it in quotes, at Testfile:3"},
	{"document_claim x nan", "document_claim x: JSON has no number nan; to send the text, write it in quotes, at Testfile:3"},
	{"claim_json x inf", "claim_json x: not JSON: invalid character 'i' looking for beginning of value, at Testfile:3"},
	{"claim_json x blue", "claim_json x: not JSON: invalid character 'b' looking for beginning of value, at Testfile:3"},
	{"claim_json x `{\"a\": 1`", "claim_json x: not JSON: unexpected end of JSON input, at Testfile:3"},
	{"claim_json x `1 2`", "claim_json x: not JSON: invalid character '2' after top-level value, at Testfile:3"},
	{"claim_json x `{} }`", "claim_json x: not JSON: invalid character '}' after top-level value, at Testfile:3"},
	{`document_claim_json x ""`, "document_claim_json x: not JSON: unexpected end of JSON input, at Testfile:3"},

	// Values that would not be sent as they are written.
	{"claim x 9007199254740992", `claim "x": the number 9007199254740992 is beyond ±9007199254740991, so Caddy may change its digits; write a string instead, at Testfile:3`},
	{"claim x 9007199254740993", `claim "x": the number 9007199254740993 is beyond ±9007199254740991, so Caddy may change its digits; write a string instead, at Testfile:3`},
	{"claim x -9007199254740993", `claim "x": the number -9007199254740993 is beyond ±9007199254740991, so Caddy may change its digits; write a string instead, at Testfile:3`},
	{"claim x 99999999999999999999", "claim x: 99999999999999999999 would be sent as 100000000000000000000" + quoteHint},
	{"claim x 007", "claim x: 007 would be sent as 7" + quoteHint},
	{"claim x +4", "claim x: +4 would be sent as 4" + quoteHint},
	{"claim x -0", "claim x: -0 would be sent as 0" + quoteHint},
	{"claim x 1.10", "claim x: 1.10 would be sent as 1.1" + quoteHint},
	{"claim x .5", "claim x: .5 would be sent as 0.5" + quoteHint},
	{"claim x 5.", "claim x: 5. would be sent as 5" + quoteHint},
	{"claim x 1e3", "claim x: 1e3 would be sent as 1000" + quoteHint},
	{"claim x 0x1p4", "claim x: 0x1p4 would be sent as 16" + quoteHint},
	{"claim x 0.1234567890123456789", "claim x: 0.1234567890123456789 would be sent as 0.12345678901234568" + quoteHint},
	{"claim x 1e-400", "claim x: 1e-400 would be sent as 0" + quoteHint},
	{"claim x T", "claim x: T would be sent as true" + quoteHint},
	{"document_claim x FALSE", "document_claim x: FALSE would be sent as false" + quoteHint},
	{"claim x 1e400", "claim x: JSON has no number 1e400; to send the text, write it in quotes, at Testfile:3"},
	{"document_claim x -1e400", "document_claim x: JSON has no number -1e400; to send the text, write it in quotes, at Testfile:3"},
	{"claim_json x 9007199254740993", `claim_json x: the number 9007199254740993 would be sent as 9007199254740992; write it like that, or as a string, at Testfile:3`},
	{"claim_json x 9007199254740994", `claim "x": the number 9007199254740994 is beyond ±9007199254740991, so Caddy may change its digits; write a string instead, at Testfile:3`},
	{"claim_json x 1e+21", `claim "x": the number 1e+21 is beyond ±9007199254740991, so Caddy may change its digits; write a string instead, at Testfile:3`},
	{"claim_json x 1.10", "claim_json x: the number 1.10 would be sent as 1.1; write it like that, or as a string, at Testfile:3"},
	{"claim_json x 1e400", "claim_json x: the number 1e400 is out of range; write a string instead, at Testfile:3"},
	{"document_claim_json x `{\"a\": [true, {\"b\": 1.0}]}`", "document_claim_json x: the number 1.0 would be sent as 1; write it like that, or as a string, at Testfile:3"},
	{"claim_json x `{\"a\": [{\"b\": 1, \"b\": 2}]}`", `claim_json x: the member "b" is given twice, at Testfile:3`},
	{"claim_json x `{\"x\":1,\"x\":2}`", `claim_json x: the member "x" is given twice, at Testfile:3`},
	{"claim_json x `{\"x\":1,\"\\u0078\":2}`", `claim_json x: the member "x" is given twice, at Testfile:3`},
	{"claim_json x `\"a\\ud800\"`", `claim "x": a string holds bytes or escapes that are not text (invalid UTF-8 or half of a surrogate pair), at Testfile:3`},
	{"claim_json x `{\"\\udc00\": 1}`", `claim "x": a string holds bytes or escapes that are not text (invalid UTF-8 or half of a surrogate pair), at Testfile:3`},
	{"claim x a\xff", `claim "x": a string holds bytes or escapes that are not text (invalid UTF-8 or half of a surrogate pair), at Testfile:3`},
	{"document_claim x\xff 1", `claim "x�": a string holds bytes or escapes that are not text (invalid UTF-8 or half of a surrogate pair), at Testfile:3`},

	// The same for everybody.
	{"user_id admin", "user_id admin is the same for everybody: give a placeholder that names the user, for example {http.auth.user.id}, or remove it, at Testfile:"},
	{"user_id {env.USER}", "user_id {env.USER} is the same for everybody: give a placeholder that names the user, for example {http.auth.user.id}, or remove it, at Testfile:"},
	{"user_id {file./etc/user}", "user_id {file./etc/user} is the same for everybody: give a placeholder that names the user, for example {http.auth.user.id}, or remove it, at Testfile:"},
	{"user_id {system.hostname}", "user_id {system.hostname} is the same for everybody: give a placeholder that names the user, for example {http.auth.user.id}, or remove it, at Testfile:"},
	{`claim x "a{2,3}"`, `claim x: {2,3} cannot be a placeholder; to send the brace, write \{, at Testfile:`},
	{"claim_json x `{\"a{b}\": 1}`", `claim_json x: the member "a{b}" has a brace in its name: placeholders are replaced in values only, at Testfile:3`},
	{`user_id \{http.auth.user.id\}`, `user_id \{http.auth.user.id\} is the same for everybody: give a placeholder that names the user, for example {http.auth.user.id}, or remove it, at Testfile:`},
	{"vary_by member", "vary_by member is the same for all requests, so nothing varies by it, at Testfile:"},
	{"vary_by {http.vars.a} member", "vary_by member is the same for all requests, so nothing varies by it, at Testfile:"},
	{"permissions read write", "permissions read write go beyond read, and everybody would get the same token: add user_id (or vary_by), or shared if that is what you want, at Testfile:"},
	{"permissions download", "permissions download go beyond read, and everybody would get the same token: add user_id (or vary_by), or shared if that is what you want, at Testfile:"},
	{"permissions read,write", "permissions read,write go beyond read, and everybody would get the same token: add user_id (or vary_by), or shared if that is what you want, at Testfile:"},
	{"permissions {http.vars.permissions}", "permissions {http.vars.permissions} go beyond read, and everybody would get the same token: add user_id (or vary_by), or shared if that is what you want, at Testfile:"},
	{"permissions , \" \"", "permissions: only separators; name at least one, at Testfile:"},
	{`permissions ""`, "permissions: only separators; name at least one, at Testfile:"},
}

func wantMistake(t *testing.T, input, want string) {
	t.Helper()
	_, err := parseTestHandler(input)
	if err == nil {
		t.Fatalf("no error, want: %s", want)
	}
	got := err.Error()
	if strings.HasSuffix(want, ":") { // the line is the directive's end
		want += fmt.Sprint(strings.Count(strings.TrimSpace(input), "\n") + 1)
	}
	if !strings.HasSuffix(got, want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	// A route's mistakes name the route, and nothing else stands in front.
	if prefix := strings.TrimSuffix(got, want); prefix != "" && prefix != "route /d/:id: " {
		t.Errorf("%q stands in front of %q", prefix, want)
	}
}

func TestMistakesInTokenOptionsOfAllRoutes(t *testing.T) {
	for _, test := range tokenOptionMistakes {
		t.Run(test.lines, func(t *testing.T) { wantMistake(t, inDirective(test.lines), test.want) })
	}
}

func TestMistakesInTokenOptionsOfOneRoute(t *testing.T) {
	for _, test := range tokenOptionMistakes {
		t.Run(test.lines, func(t *testing.T) { wantMistake(t, inRoute(test.lines), test.want) })
	}
}

func TestMistakesInHandlerOptions(t *testing.T) {
	for _, test := range []struct{ lines, want string }{
		// Unknown.
		{"nothing /x/:id", `unrecognized subdirective "nothing" of viewer_session; it takes document_path, document_id, session_path, document_id_format, script_path, permissions, user_id, vary_by, shared, claim, claim_json, document_claim, document_claim_json, ttl, min_remaining, trust_request_headers, request_header, request_cookie, allow_store, on_error, api_key, endpoint, insecure_endpoint, timeout, mint_rate, cache_size, store and transport, at Testfile:3`},
		{"documentpath /x/:id", `unrecognized subdirective "documentpath" of viewer_session: did you mean document_path?, at Testfile:3`},
		{"document-paths /x/:id", `unrecognized subdirective "document-paths" of viewer_session: did you mean document_path?, at Testfile:3`},
		{"Shared", `unrecognized subdirective "Shared" of viewer_session: did you mean shared?, at Testfile:3`},
		{"shared {\n}", `unrecognized subdirective "{" of viewer_session; it takes document_path, document_id, session_path, document_id_format, script_path, permissions, user_id, vary_by, shared, claim, claim_json, document_claim, document_claim_json, ttl, min_remaining, trust_request_headers, request_header, request_cookie, allow_store, on_error, api_key, endpoint, insecure_endpoint, timeout, mint_rate, cache_size, store and transport, at Testfile:3`},

		// Missing arguments.
		{"document_path", "document_path needs a path pattern, for example: document_path /documents/:id, at Testfile:3"},
		{"document_path {\nshared\n}", "document_path needs a path pattern, for example: document_path /documents/:id, at Testfile:3"},
		{"document_id", "document_id needs a value, at Testfile:3"},
		{"document_id_format", "document_id_format needs a value, at Testfile:3"},
		{"request_header", "request_header needs a value, at Testfile:3"},
		{`request_header ""`, "request_header needs a value, at Testfile:3"},
		{"request_cookie", "request_cookie needs a value, at Testfile:3"},
		{"on_error", "on_error needs a value, at Testfile:3"},
		{"endpoint", "endpoint needs a value, at Testfile:3"},
		{"timeout", "timeout needs a value, at Testfile:3"},
		{"mint_rate", "mint_rate needs a rate per second and perhaps a burst, or off: for example mint_rate 100 1000, at Testfile:3"},
		{"cache_size", "cache_size needs a value, at Testfile:3"},
		{"transport", "transport needs a name: http, at Testfile:3"},

		// Extra arguments.
		{"document_id {http.vars.a} {http.vars.b}", `document_id takes one value; unexpected argument "{http.vars.b}", at Testfile:3`},
		{"document_id_format a b", `document_id_format takes one value; unexpected argument "b", at Testfile:3`},
		{"request_header X-A X-B", `request_header takes one value; unexpected argument "X-B", at Testfile:3`},
		{"request_cookie a b", `request_cookie takes one value; unexpected argument "b", at Testfile:3`},
		{"allow_store yes", "allow_store takes no argument (yes), at Testfile:3"},
		{"on_error pass fail", `on_error takes one value; unexpected argument "fail", at Testfile:3`},
		{"endpoint https://a/ https://b/", `endpoint takes one value; unexpected argument "https://b/", at Testfile:3`},
		{"insecure_endpoint yes", "insecure_endpoint takes no argument (yes), at Testfile:3"},
		{"timeout 1s 2s", `timeout takes one value; unexpected argument "2s", at Testfile:3`},
		{"mint_rate 1 2 3", "mint_rate needs a rate per second and perhaps a burst, or off: for example mint_rate 100 1000, at Testfile:3"},
		{"cache_size 64 MiB", `cache_size takes one value; unexpected argument "MiB", at Testfile:3`},

		// Repeated.
		{"document_id_format a\ndocument_id_format a", "document_id_format is given twice: remove one, at Testfile:4"},
		{"request_header X-A\nrequest_header X-A", "request_header is given twice: remove one, at Testfile:4"},
		{"request_cookie a\nrequest_cookie a", "request_cookie is given twice: remove one, at Testfile:4"},
		{"allow_store\nallow_store", "allow_store is given twice: remove one, at Testfile:4"},
		{"on_error fail\non_error fail", "on_error is given twice: remove one, at Testfile:4"},
		{"api_key {env.A}\napi_key {env.A}", "api_key is given twice: remove one, at Testfile:4"},
		{"endpoint https://a/\nendpoint https://a/", "endpoint is given twice: remove one, at Testfile:4"},
		{"insecure_endpoint\ninsecure_endpoint", "insecure_endpoint is given twice: remove one, at Testfile:4"},
		{"timeout 1s\ntimeout 1s", "timeout is given twice: remove one, at Testfile:4"},
		{"mint_rate off\nmint_rate off", "mint_rate is given twice: remove one, at Testfile:4"},
		{"cache_size 2MiB\ncache_size 2MiB", "cache_size is given twice: remove one, at Testfile:4"},
		{"transport http\ntransport http", "transport is given twice: remove one, at Testfile:4"},
		{"document_id {http.vars.a}\ndocument_id {http.vars.a}", "document_id is given twice: remove one, at Testfile:4"},

		// Where the id comes from.
		{"document_id {http.vars.a}", "document_id {http.vars.a} is never used: every pattern has :id; remove one or the other, at Testfile:"},
		{"document_id_format [z-a]", "document_id_format: error parsing regexp: invalid character class range: `z-a`, at Testfile:3"},

		// How the token is handed over.
		{"request_header Authorization", "request_header Authorization has a meaning of its own: choose a name of yours, such as X-Viewer-Session, at Testfile:"},
		{"request_header X_Token:", `request_header "X_Token:" is not a header name: write letters, digits and hyphens, at Testfile:`},
		{`request_header "X Token"`, `request_header "X Token" is not a header name: write letters, digits and hyphens, at Testfile:`},
		{"request_header {http.vars.name}", `request_header "{http.vars.name}" is not a header name: write letters, digits and hyphens, at Testfile:`},
		{"permissions wirte", `route /d/:id: permissions: "wirte" looks like a typo: did you mean write?, at Testfile:`},
		{"permissions Read", `route /d/:id: permissions: "Read" looks like a typo: did you mean read?, at Testfile:`},
		{"api_key {http.request.uri.path.file.key}", "api_key: a request's placeholder is not known when the config loads: write {env.NAME} or {file./path/to/key} ({file.NAME} without a slash is Caddy's shorthand for a part of the path: write {file./absolute/path} or {file.folder/name}), at Testfile:3"},
		{"permission read", `unrecognized subdirective "permission" of viewer_session: did you mean permissions?, at Testfile:3`},
		{"request_cookie a=b", `request_cookie "a=b" is not a cookie name: write letters, digits, hyphens and underscores, at Testfile:`},
		{`request_cookie "a b"`, `request_cookie "a b" is not a cookie name: write letters, digits, hyphens and underscores, at Testfile:`},
		{`request_cookie "a;b"`, `request_cookie "a;b" is not a cookie name: write letters, digits, hyphens and underscores, at Testfile:`},
		{"request_cookie a,b", `request_cookie "a,b" is not a cookie name: write letters, digits, hyphens and underscores, at Testfile:`},
		{"request_cookie a[b]", `request_cookie "a[b]" is not a cookie name: write letters, digits, hyphens and underscores, at Testfile:`},
		{"request_cookie _", `request_cookie "_" has no letter or digit: servers take such names for white space, at Testfile:`},
		{"request_cookie -._", `request_cookie "-._" has no letter or digit: servers take such names for white space, at Testfile:`},
		{"request_cookie sitzüng", `request_cookie "sitzüng" is not a cookie name: write letters, digits, hyphens and underscores, at Testfile:`},
		{"on_error ignore", `on_error "ignore": write fail or pass, at Testfile:`},

		// The endpoint.
		{"endpoint http://dws.example.com/", "endpoint http://dws.example.com/ is plain HTTP, so the API key could be read on the way: use https, or set insecure_endpoint if you accept that, at Testfile:"},
		{"endpoint http://127.0.0.1.example.com/", "endpoint http://127.0.0.1.example.com/ is plain HTTP, so the API key could be read on the way: use https, or set insecure_endpoint if you accept that, at Testfile:"},
		{"endpoint http://10.0.0.1/", "endpoint http://10.0.0.1/ is plain HTTP, so the API key could be read on the way: use https, or set insecure_endpoint if you accept that, at Testfile:"},
		{"endpoint https://user:word@dws.example.com/", "endpoint: a URL with a user or password in it is refused, because it would appear in the config; the key goes into api_key, at Testfile:"},
		{"endpoint https://user@dws.example.com/", "endpoint: a URL with a user or password in it is refused, because it would appear in the config; the key goes into api_key, at Testfile:"},
		{"endpoint ftp://dws.example.com/", `endpoint "ftp://dws.example.com/": the scheme is https, at Testfile:`},
		{"endpoint //dws.example.com/", `endpoint "//dws.example.com/": the scheme is https, at Testfile:`},
		{"endpoint dws.example.com", `endpoint "dws.example.com" is not a URL: write one such as https://api.nutrient.io/viewer/sessions, at Testfile:`},
		{"endpoint https:///viewer", `endpoint "https:///viewer" is not a URL: write one such as https://api.nutrient.io/viewer/sessions, at Testfile:`},
		{"endpoint https://a/#b", `endpoint "https://a/#b" is not a URL: write one such as https://api.nutrient.io/viewer/sessions, at Testfile:`},
		{"endpoint https://{env.HOST}/", `endpoint "https://{env.HOST}/" is not a URL: write one such as https://api.nutrient.io/viewer/sessions, at Testfile:`},

		// The rest.
		{"timeout 99ms", "timeout 99ms: write a duration from 100ms to 1m, at Testfile:"},
		{"timeout 61s", "timeout 1m1s: write a duration from 100ms to 1m, at Testfile:"},
		{"timeout 5", `timeout "5" is not a duration: write a number with a unit, such as 30s, 15m, 1h or 7d, at Testfile:3`},
		{"timeout 1 s", `timeout takes one value; unexpected argument "s", at Testfile:3`},
		{"mint_rate 0", "mint_rate 0: write how many tokens may be minted per second, from 0.001 to 1000000, or off, at Testfile:3"},
		{"mint_rate -1", "mint_rate -1: write how many tokens may be minted per second, from 0.001 to 1000000, or off, at Testfile:3"},
		{"mint_rate 1000001", "mint_rate 1.000001e+06: write how many tokens may be minted per second, from 0.001 to 1000000, or off, at Testfile:3"},
		{"mint_rate inf", "mint_rate +Inf: write how many tokens may be minted per second, from 0.001 to 1000000, or off, at Testfile:3"},
		{"mint_rate nan", `mint_rate "nan" is not a number of mints per second, nor off: write for example mint_rate 100, or mint_rate 100 1000, at Testfile:3`},
		{"mint_rate fast", `mint_rate "fast" is not a number of mints per second, nor off: write for example mint_rate 100, or mint_rate 100 1000, at Testfile:3`},
		{"mint_rate 5/s", `mint_rate "5/s" is not a number of mints per second, nor off: write for example mint_rate 100, or mint_rate 100 1000, at Testfile:3`},
		{"mint_rate 5 0", `mint_rate: the burst "0" is not a whole number of 1 or more, at Testfile:3`},
		{"mint_rate 5 -1", `mint_rate: the burst "-1" is not a whole number of 1 or more, at Testfile:3`},
		{"mint_rate 5 2.5", `mint_rate: the burst "2.5" is not a whole number of 1 or more, at Testfile:3`},
		{"cache_size big", `cache_size "big" is not a size: write for example 64MiB, at Testfile:3`},
		{"cache_size -1", `cache_size "-1" is not a size: write for example 64MiB, at Testfile:3`},
		{"cache_size 9EiB", `cache_size "9EiB" is not a size: write for example 64MiB, at Testfile:3`},
		{"cache_size 0", "cache_size of 0 bytes: write a size from 1MiB to 64GiB, at Testfile:3"},
		{"cache_size 1023KiB", "cache_size of 1047552 bytes: write a size from 1MiB to 64GiB, at Testfile:3"},
		{"transport fastcgi", `transport "fastcgi": the only one is http, at Testfile:3`},
		{"transport http {\nversions 3\n}", "transport http: versions 3 is refused, because a reload would break off mints that are under way; use 1.1 or 2, at Testfile:6"},
		{"transport http {\ntls_insecure_skip_verify\n}", "transport http: tls_insecure_skip_verify lets anybody on the way read the API key: write tls_trust_pool with the authority's certificate, or set insecure_endpoint if you accept that, at Testfile:6"},
		{"transport http {\nproxy_protocol v2\n}", "transport http: proxy_protocol is refused, because a mint is not made for any one client, at Testfile:6"},
		{"transport http {\nnonsense\n}", `unrecognized subdirective nonsense, at Testfile:4`},
	} {
		t.Run(test.lines, func(t *testing.T) { wantMistake(t, inDirective(test.lines), test.want) })
	}
}

func TestMistakesInTheDirectiveAndItsRoutes(t *testing.T) {
	for _, test := range []struct{ name, input, want string }{
		{"no block", "viewer_session", "no route: say which paths show a document with document_path, for example: document_path /documents/:id, at Testfile:1"},
		{"no route", "viewer_session {\n\tshared\n}", "no route: say which paths show a document with document_path, for example: document_path /documents/:id, at Testfile:3"},
		{"all requests as matcher", "viewer_session * {\n\tdocument_path /d/:id\n}", "viewer_session takes no matcher (*): it must see every request, to remove what clients send under the token's name; say which paths get a token with document_path inside its block, at Testfile:1"},
		{"path as matcher", "viewer_session /x {\n\tdocument_path /d/:id\n}", "viewer_session takes no matcher (/x): it must see every request, to remove what clients send under the token's name; say which paths get a token with document_path inside its block, at Testfile:1"},
		{"named matcher", "viewer_session @m {\n\tdocument_path /d/:id\n}", "viewer_session takes no matcher (@m): it must see every request, to remove what clients send under the token's name; say which paths get a token with document_path inside its block, at Testfile:1"},
		{"argument", "viewer_session /d/:id", "viewer_session takes no matcher (/d/:id): it must see every request, to remove what clients send under the token's name; say which paths get a token with document_path inside its block, at Testfile:1"},
		{"another argument", "viewer_session read {\n\tdocument_path /d/:id\n}", "viewer_session takes no argument: options go into its block, at Testfile:1"},
		{"no :id and no document_id", "viewer_session {\n\tdocument_path /documents\n}", `route /documents: pattern "/documents" has no :id and there is no document_id: write :id in place of the document's id, for example /documents/:id, or say with document_id where it comes from, or write app_provided in its block if the page brings its own document, at Testfile:3`},
		{"no :id in the second pattern", "viewer_session {\n\tdocument_path /d/:id /documents\n}", `route /d/:id: pattern "/documents" has no :id and there is no document_id: write :id in place of the document's id, for example /documents/:id, or say with document_id where it comes from, or write app_provided in its block if the page brings its own document, at Testfile:3`},
		{"no :id and another route's document_id", "viewer_session {\n\tdocument_path /a {\n\t\tdocument_id {http.vars.a}\n\t}\n\tdocument_path /b\n}", `route /b: pattern "/b" has no :id and there is no document_id: write :id in place of the document's id, for example /documents/:id, or say with document_id where it comes from, or write app_provided in its block if the page brings its own document, at Testfile:6`},
		{"id from two places", "viewer_session {\n\tdocument_path /d/:id {\n\t\tdocument_id {http.vars.a}\n\t}\n}", `route /d/:id: pattern "/d/:id" has :id, and the route has document_id: the id comes from one or the other, at Testfile:5`},
		{"document_id only routes' own", "viewer_session {\n\tdocument_id {http.vars.a}\n\tdocument_path /a {\n\t\tdocument_id {http.vars.b}\n\t}\n}", "document_id {http.vars.a} is never used: every pattern has :id; remove one or the other, at Testfile:6"},
		{"constant document_id", "viewer_session {\n\tdocument_id handbook\n}", "route 1: document_id handbook holds no placeholder: give one that holds the document's id; for a fixed id set a variable (vars document ID) and write {http.vars.document}, at Testfile:3"},
		{"constant document_id of a route", "viewer_session {\n\tdocument_path /a {\n\t\tdocument_id handbook\n\t}\n}", "route /a: document_id handbook holds no placeholder: give one that holds the document's id; for a fixed id set a variable (vars document ID) and write {http.vars.document}, at Testfile:5"},
		{"option of the handler in a route", inRoute("api_key {env.X}"), `unrecognized subdirective "api_key" of document_path: it takes document_id, app_provided, session_path and what the API is asked for (permissions, user_id, ttl and the like); everything else belongs one level up, at Testfile:3`},
		{"misspelled in a route: app_provided", inRoute("app-provided"), `unrecognized subdirective "app-provided" of document_path: did you mean app_provided?, at Testfile:3`},
		{"misspelled in a route: user_id", inRoute("user {http.auth.user.id}"), `unrecognized subdirective "user" of document_path: did you mean user_id?, at Testfile:3`},
		{"misspelled in a route: session_path", inRoute("sessions /token"), `unrecognized subdirective "sessions" of document_path: did you mean session_path?, at Testfile:3`},
		{"route in a route", inRoute("document_path /x/:id"), `unrecognized subdirective "document_path" of document_path: it takes document_id, app_provided, session_path and what the API is asked for (permissions, user_id, ttl and the like); everything else belongs one level up, at Testfile:3`},
		{"session_path without a pattern", "viewer_session {\n\tsession_path\n\tdocument_path /d/:id\n}", "session_path needs a path pattern, for example: session_path /documents/:id/session, at Testfile:2"},
		{"session_path without a pattern in a route", inRoute("session_path"), "session_path needs a path pattern, for example: session_path /documents/:id/session, at Testfile:3"},
		{"session_path with a wrong pattern", "viewer_session {\n\tsession_path token\n}", `pattern "token": a path pattern begins with a slash, for example /documents/:id, at Testfile:2`},
		{"session_path with a block", "viewer_session {\n\tsession_path /token {\n\t\tttl 1h\n\t}\n}", "session_path takes no block: to say what is asked for on it, put it into the block of a document_path, at Testfile:3"},
		{"session_path with a block in a route", inRoute("session_path /token {\n\t\t\tttl 1h\n\t\t}"), "session_path takes no block: to say what is asked for on it, put it into the block of a document_path, at Testfile:4"},
		{"session_path twice", "viewer_session {\n\tsession_path /token\n\tsession_path /Token/\n}", `duplicate pattern "/Token/": the second never matches; remove one, at Testfile:4`},
		{"session_path that is a document_path", "viewer_session {\n\tdocument_path /d/:id {\n\t\tsession_path /d/:id\n\t}\n}", `duplicate pattern "/d/:id": the second never matches; remove one, at Testfile:5`},
		{"session_path that is a document_path without :id", "viewer_session {\n\tdocument_id {http.vars.a}\n\tsession_path /view\n\tdocument_path /view\n}", `duplicate pattern "/view": the second never matches; remove one, at Testfile:5`},
		{"session_path that covers a document_path", "viewer_session {\n\tdocument_path /documents/:id {\n\t\tsession_path /documents/*\n\t}\n}", `pattern "/documents/:id" never matches: session paths come first, and "/documents/*" matches the same; make that one narrower, at Testfile:5`},
		{"session_path that covers everything", "viewer_session {\n\tsession_path /*\n\tdocument_path /documents/:id\n}", `pattern "/documents/:id" never matches: session paths come first, and "/*" matches the same; make that one narrower, at Testfile:4`},
		{"session_path that covers another", "viewer_session {\n\tsession_path /documents/*/session\n\tsession_path /documents/:id/session\n}", `pattern "/documents/:id/session" never matches: session paths come first, and "/documents/*/session" matches the same; make that one narrower, at Testfile:4`},
		{"script_path with :id", "viewer_session {\n\tscript_path /:id.js\n\tdocument_path /d/:id\n}", `script_path "/:id.js": write one literal path of letters, digits, - and the like, for example /viewer-session.js, at Testfile:2`},
		{"script_path with a wildcard", "viewer_session {\n\tscript_path /js/*\n\tdocument_path /d/:id\n}", `script_path "/js/*": write one literal path of letters, digits, - and the like, for example /viewer-session.js, at Testfile:2`},
		{"script_path that is the whole site", "viewer_session {\n\tscript_path /\n\tdocument_path /d/:id\n}", `script_path "/": write one literal path of letters, digits, - and the like, for example /viewer-session.js, at Testfile:2`},
		{"script_path without a slash", "viewer_session {\n\tscript_path viewer-session.js\n\tdocument_path /d/:id\n}", `script_path "viewer-session.js": write one literal path of letters, digits, - and the like, for example /viewer-session.js, at Testfile:2`},
		{"script_path without a value", "viewer_session {\n\tscript_path\n\tdocument_path /d/:id\n}", "script_path needs a value, at Testfile:2"},
		{"script_path twice", "viewer_session {\n\tscript_path /a.js\n\tscript_path /b.js\n\tdocument_path /d/:id\n}", "script_path is given twice: remove one, at Testfile:3"},
		{"script_path in a route", inRoute("script_path /a.js"), `unrecognized subdirective "script_path" of document_path: it takes document_id, app_provided, session_path and what the API is asked for (permissions, user_id, ttl and the like); everything else belongs one level up, at Testfile:3`},
		{"script_path that is a session_path", "viewer_session {\n\tscript_path /token\n\tsession_path /token\n}", `duplicate pattern "/token": the second never matches; remove one, at Testfile:4`},
		{"script_path alone", "viewer_session {\n\tscript_path /a.js\n}", "no route: say which paths show a document with document_path, for example: document_path /documents/:id, at Testfile:3"},
		{"document_id that no session_path needs", "viewer_session {\n\tdocument_id {http.vars.a}\n\tsession_path /d/:id/session\n\tdocument_path /d/:id\n}", "document_id {http.vars.a} is never used: every pattern has :id; remove one or the other, at Testfile:5"},
		{"session path's user that a client writes", "viewer_session {\n\tuser_id {http.request.header.User}\n\tsession_path /token\n}", "route /token: user_id {http.request.header.User} is client-controlled, so anybody could choose it: use what authentication in Caddy sets (for example {http.auth.user.id} or {http.reverse_proxy.header.Remote-User}), or trust_request_headers if a proxy in front of Caddy sets it, at Testfile:4"},
		{"document_id twice in a route", "viewer_session {\n\tdocument_path /a {\n\t\tdocument_id {http.vars.a}\n\t\tdocument_id {http.vars.b}\n\t}\n}", "document_id is given twice: remove one, at Testfile:4"},
		{"document_id without a value in a route", "viewer_session {\n\tdocument_path /a {\n\t\tdocument_id\n\t}\n}", "document_id needs a value, at Testfile:3"},
		{"document_id with two values in a route", "viewer_session {\n\tdocument_path /a {\n\t\tdocument_id {http.vars.a} b\n\t}\n}", `document_id takes one value; unexpected argument "b", at Testfile:3`},
		{"pattern twice in a route", "viewer_session {\n\tdocument_path /a/:id /b /a/:id\n\tdocument_id {http.vars.a}\n}", `duplicate pattern "/a/:id": the second never matches; remove one, at Testfile:4`},
		{"a route's short ttl with the handler's min_remaining", "viewer_session {\n\tmin_remaining 20m\n\tdocument_path /d/:id {\n\t\tttl 30m\n\t}\n}", "route /d/:id: min_remaining 20m0s: write at most half of ttl (15m0s), or a longer ttl, at Testfile:6"},
		{"pattern twice", "viewer_session {\n\tdocument_path /a/:id\n\tdocument_path /b/:id /A/:id/\n}", `duplicate pattern "/A/:id/": the second never matches; remove one, at Testfile:4`},
		{"app_provided without a user", "viewer_session {\n\tdocument_path /editor {\n\t\tapp_provided\n\t}\n}", "route /editor: app_provided needs user_id (for example {http.auth.user.id}) or vary_by, so that users do not share a token; to give everybody the same one, add shared, at Testfile:5"},
		{"app_provided with an argument", "viewer_session {\n\tdocument_path /editor {\n\t\tapp_provided yes\n\t\tshared\n\t}\n}", "app_provided takes no argument (yes), at Testfile:3"},
		{"app_provided twice", "viewer_session {\n\tdocument_path /editor {\n\t\tapp_provided\n\t\tapp_provided\n\t\tshared\n\t}\n}", "app_provided is given twice: remove one, at Testfile:4"},
		{"app_provided of the handler", "viewer_session {\n\tapp_provided\n\tdocument_path /editor\n}", `unrecognized subdirective "app_provided" of viewer_session: did you mean app_provided in the block of a document_path?, at Testfile:2`},
		{"app_provided with document_id", "viewer_session {\n\tdocument_path /editor {\n\t\tapp_provided\n\t\tshared\n\t\tdocument_id {http.vars.a}\n\t}\n}", "route /editor: document_id and app_provided exclude each other: the page brings its own document, so there is no id; remove one, at Testfile:7"},
		{"app_provided with permissions", "viewer_session {\n\tdocument_path /editor {\n\t\tapp_provided\n\t\tshared\n\t\tpermissions read\n\t}\n}", "route /editor: permissions and app_provided exclude each other: the page brings its own document, and no permissions are asked for; remove one, at Testfile:7"},
		{"app_provided with document_claim", "viewer_session {\n\tdocument_path /editor {\n\t\tapp_provided\n\t\tshared\n\t\tdocument_claim page 1\n\t}\n}", "route /editor: document_claim and app_provided exclude each other: the page brings its own document, so the request has no entry for it; use claim instead, at Testfile:7"},
		{"app_provided with :id", "viewer_session {\n\tdocument_path /editor/:id {\n\t\tapp_provided\n\t\tshared\n\t}\n}", `route /editor/:id: pattern "/editor/:id" has :id, but with app_provided the page brings its own document, so there is no id: write * in place of :id, or remove app_provided, at Testfile:6`},
		{"app_provided with :id in a session_path", "viewer_session {\n\tdocument_path /editor {\n\t\tapp_provided\n\t\tshared\n\t\tsession_path /editor/:id/session\n\t}\n}", `route /editor: pattern "/editor/:id/session" has :id, but with app_provided the page brings its own document, so there is no id: write * in place of :id, or remove app_provided, at Testfile:7`},
		{"app_provided with a user that a client writes", "viewer_session {\n\tdocument_path /editor {\n\t\tapp_provided\n\t\tuser_id {http.request.uri.query.user}\n\t}\n}", "route /editor: user_id {http.request.uri.query.user} is client-controlled, so anybody could choose it: use what authentication in Caddy sets (for example {http.auth.user.id} or {http.reverse_proxy.header.Remote-User}), or trust_request_headers if a proxy in front of Caddy sets it, at Testfile:6"},
		{"app_provided before a route with the same pattern", "viewer_session {\n\tdocument_path /view {\n\t\tapp_provided\n\t\tshared\n\t}\n\tdocument_path /view {\n\t\tdocument_id {http.vars.a}\n\t}\n}", `duplicate pattern "/view": the second never matches; remove one, at Testfile:9`},
		{"app_provided that covers a document_path", "viewer_session {\n\tdocument_path /d/* {\n\t\tapp_provided\n\t\tshared\n\t}\n\tdocument_path /d/:id\n}", `pattern "/d/:id" never matches: "/d/*" comes first and matches the same; make that one narrower, at Testfile:7`},
		{"app_provided behind a document_path that takes its last segment for an id", "viewer_session {\n\tdocument_path /documents/:id\n\tdocument_path /Documents/new/ {\n\t\tapp_provided\n\t\tshared\n\t}\n}", `pattern "/Documents/new/" never matches: "/documents/:id" comes first and takes "new" for an id; put the narrower one first, at Testfile:7`},
		{"document_path behind one that takes its last segment for an id", "viewer_session {\n\tdocument_path /documents/:id\n\tdocument_path /documents/new {\n\t\tdocument_id {http.vars.a}\n\t}\n}", `pattern "/documents/new" never matches: "/documents/:id" comes first and takes "new" for an id; put the narrower one first, at Testfile:6`},
		{"typo in permissions that no route uses", "viewer_session {\n\tpermissions raed\n\tdocument_path /editor {\n\t\tapp_provided\n\t\tshared\n\t}\n}", `route /editor: permissions: "raed" looks like a typo: did you mean read?, at Testfile:7`},
		{"client-controlled document_claim that no route uses", "viewer_session {\n\tdocument_claim a {http.request.header.X}\n\tdocument_path /editor {\n\t\tapp_provided\n\t\tshared\n\t}\n}", "route /editor: claim a {http.request.header.X} is client-controlled, so anybody could choose it: use what authentication in Caddy sets (for example {http.auth.user.id} or {http.reverse_proxy.header.Remote-User}), or trust_request_headers if a proxy in front of Caddy sets it, at Testfile:7"},
		{"user_id from the document's id", inRoute("user_id {http.viewer_session.document_id}"), "route /d/:id: user_id {http.viewer_session.document_id} is client-controlled, so anybody could choose it: use what authentication in Caddy sets (for example {http.auth.user.id} or {http.reverse_proxy.header.Remote-User}), or trust_request_headers if a proxy in front of Caddy sets it, at Testfile:5"},
		{"the mistake is in the second route", "viewer_session {\n\tdocument_path /a/:id\n\tdocument_path /b/:id {\n\t\tpermissions write\n\t}\n}", "route /b/:id: permissions write go beyond read, and everybody would get the same token: add user_id (or vary_by), or shared if that is what you want, at Testfile:6"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := parseTestHandler(test.input)
			if err == nil || err.Error() != test.want {
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
		})
	}
}

func TestPatternMistakesNameTheirLine(t *testing.T) {
	for _, test := range []struct{ pattern, want string }{
		{"documents/:id", `pattern "documents/:id": a path pattern begins with a slash, for example /documents/:id`},
		{"*", `pattern "*": a path pattern begins with a slash, for example /documents/:id`},
		{"/a/:id/b/:id", `pattern "/a/:id/b/:id": duplicate :id; a route has one document`},
		{"/a/:id-:id", `pattern "/a/:id-:id": segment ":id-:id": write :id once, and no other colon`},
		{"/a/:document", `pattern "/a/:document": segment ":document": only :id is known after a colon; separate what follows it with a character such as . or -`},
		{"/a/x*", `pattern "/a/x*": segment "x*": * must be a whole segment; inside one only :id is allowed`},
		{"/a//:id", `pattern "/a//:id": empty path segment`},
		{"/a/../:id", `pattern "/a/../:id": segment ".." never matches: such paths are not canonical`},
		{"/a/{http.vars.x}/:id", `pattern "/a/{http.vars.x}/:id": placeholders are not replaced in patterns; write :id in place of the document's id, and for an id from elsewhere use document_id`},
		{"/a?id=:id", `pattern "/a?id=:id": only the path is matched; for an id in the query use document_id {http.request.uri.query.NAME}`},
		{"/a%20b/:id", `pattern "/a%20b/:id": % \ ( ) + are not allowed in a pattern; paths are matched after decoding, so write the character itself, and use document_id with a path_regexp matcher for anything more`},
	} {
		t.Run(test.pattern, func(t *testing.T) {
			_, err := parseTestHandler("viewer_session {\n\tdocument_path /d/:id\n\tdocument_path " + test.pattern + "\n\tshared\n}")
			if want := test.want + ", at Testfile:3"; err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}
}

// A literal key would stand in /config and in the autosaved config; the error
// about it ends up in logs and terminals.
func TestLiteralAPIKeyIsRefusedAndNotRepeated(t *testing.T) {
	const want = "api_key: write one placeholder, such as {env.NAME} or {file./path/to/key}; a literal key (or {$NAME}, which becomes one) would appear in the admin API's /config and in the autosaved config, at Testfile:3"
	for _, value := range []string{
		"pdf_live_test",
		`"pdf_live_test"`,
		`"Bearer pdf_live_test"`,
		"Bearer{env.X}",
		"{env.X}pdf_live_test",
		"{env.X}{env.Y}",
		`"{env.X} "`,
		`\{env.X\}`,
		"{pdf_live_test",
	} {
		t.Run(value, func(t *testing.T) {
			_, err := parseTestHandler(inDirective("api_key " + value))
			if err == nil {
				t.Fatal("no error")
			}
			if strings.Contains(err.Error(), "pdf_live_test") {
				t.Errorf("the key is repeated: %v", err)
			}
			if err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}
}

func TestAPIKeyWithoutAValue(t *testing.T) {
	for _, line := range []string{"api_key", `api_key ""`, `api_key " "`} {
		wantMistake(t, inDirective(line), "api_key: write one placeholder, such as {env.NAME} or {file./path/to/key}; a literal key (or {$NAME}, which becomes one) would appear in the admin API's /config and in the autosaved config, at Testfile:3")
	}
}

// Somebody who pastes the whole header finds out without the key being shown.
func TestAPIKeyOfTwoWordsIsNotRepeated(t *testing.T) {
	for _, value := range []string{"Bearer pdf_live_test", "{env.X} pdf_live_test", "pdf_live_test pdf_live_test"} {
		_, err := parseTestHandler(inDirective("api_key " + value))
		if err == nil {
			t.Errorf("%s: no error", value)
		} else if strings.Contains(err.Error(), "pdf_live_test") {
			t.Errorf("%s: the key is repeated: %v", value, err)
		} else if !strings.HasSuffix(err.Error(), ", at Testfile:3") {
			t.Errorf("%s: no line: %v", value, err)
		}
	}
}
