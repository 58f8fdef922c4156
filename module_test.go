package viewersession

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
	"github.com/viewersession/caddy-viewer-session/internal/strip"
)

// handlerFromJSON reads a handler's config as Caddy does.
func handlerFromJSON(config string) (*Handler, error) {
	h := new(Handler)
	return h, caddy.StrictUnmarshalJSON([]byte(config), h)
}

// compiledFromJSON reads and checks a handler's config, as far as that goes
// without the machine that it is for.
func compiledFromJSON(t *testing.T, config string) (*Handler, poolSettings, *url.URL, error) {
	t.Helper()
	h, err := handlerFromJSON(config)
	if err != nil {
		t.Fatalf("%s: %v", config, err)
	}
	if err := h.compile(); err != nil {
		return h, poolSettings{}, nil, err
	}
	settings, endpoint, err := h.settings()
	return h, settings, endpoint, err
}

// withRoute puts members beside a route.
func withRoute(members string) string {
	if members != "" {
		members = ", " + members
	}
	return `{"routes": [{"paths": ["/d/:id"]}]` + members + `}`
}

func TestDefaults(t *testing.T) {
	h, settings, endpoint, err := compiledFromJSON(t, withRoute(""))
	if err != nil {
		t.Fatal(err)
	}
	static := h.routes[0].template.Static
	for what, pair := range map[string][2]any{
		"endpoint":      {settings.endpoint, "https://api.nutrient.io/viewer/sessions"},
		"endpoint URL":  {endpoint.Host, "api.nutrient.io"},
		"api_key":       {settings.apiKey, "{env.NUTRIENT_DWS_VIEWER_API_KEY}"},
		"timeout":       {settings.timeout, 5 * time.Second},
		"rate":          {settings.rate, 100.0},
		"burst":         {settings.burst, 1000},
		"cache_size":    {settings.cacheSize, int64(64 * 1024 * 1024)},
		"header":        {h.names.Header, "X-Viewer-Session"},
		"cookie":        {h.names.Cookie, ""},
		"ttl":           {static.TTL, time.Hour},
		"min_remaining": {static.MinRemaining, 15 * time.Minute},
		"permissions":   {fmt.Sprint(static.Permissions), "[read]"},
		"user_id":       {static.UserID, ""},
		"id format":     {h.idFormat("a-B_9~"), true},
		"id format, ü":  {h.idFormat("ü"), false},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s is %v, want %v", what, pair[0], pair[1])
		}
	}
}

func TestCookieTakesThePlaceOfTheDefaultHeader(t *testing.T) {
	for _, test := range []struct{ members, header, cookie string }{
		{`"request_cookie": "viewer"`, "", "viewer"},
		{`"request_header": "x-token"`, "X-Token", ""},
		{`"request_header": "X_token", "request_cookie": "viewer"`, "X_token", "viewer"},
	} {
		h, _, _, err := compiledFromJSON(t, withRoute(test.members))
		if err != nil {
			t.Fatal(err)
		}
		if h.names != strip.New(test.header, test.cookie) {
			t.Errorf("%s: got %+v", test.members, h.names)
		}
	}
}

func TestMinRemainingIsAQuarterOfTheRoutesOwnTTL(t *testing.T) {
	h, _, _, err := compiledFromJSON(t, `{"ttl": "2h", "routes": [{"paths": ["/a/:id"]}, {"paths": ["/b/:id"], "ttl": "10m"}]}`)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []time.Duration{30 * time.Minute, 150 * time.Second} {
		if got := h.routes[i].template.Static.MinRemaining; got != want {
			t.Errorf("route %d: %v, want %v", i+1, got, want)
		}
	}
}

func TestMistakesInJSON(t *testing.T) {
	for _, test := range []struct{ config, want string }{
		{`{}`, "no route: say which paths show a document with document_path, for example: document_path /documents/:id"},
		{`{"routes": []}`, "no route: say which paths show a document with document_path, for example: document_path /documents/:id"},
		{`{"routes": [{}]}`, "route 1: neither a path nor a document_id"},
		{`{"routes": [{"paths": ["/d/:id"]}, {"paths": []}]}`, "route 2: neither a path nor a document_id"},
		{`{"routes": [{"paths": ["d/:id"]}]}`, `route d/:id: pattern "d/:id": a path pattern begins with a slash, for example /documents/:id`},
		{`{"routes": [{"paths": [""]}]}`, `route : pattern "": a path pattern begins with a slash, for example /documents/:id`},
		{`{"routes": [{"paths": ["/a", "/d/:id"], "document_id": "{http.vars.a}"}]}`, `route /a: pattern "/d/:id" has :id, and the route has document_id: the id comes from one or the other`},
		{`{"routes": [{"session_paths": ["t"]}]}`, `route t: pattern "t": a path pattern begins with a slash, for example /documents/:id`},
		{`{"routes": [{"session_paths": ["/t/:id/:id"], "paths": ["/d/:id"]}]}`, `route /d/:id: pattern "/t/:id/:id": duplicate :id; a route has one document`},
		{`{"document_id": "constant"}`, "route 1: document_id constant holds no placeholder: give one that holds the document's id; for a fixed id set a variable (vars document ID) and write {http.vars.document}"},
		{withRoute(`"document_id": "{http.vars.a}"`), "document_id {http.vars.a} is never used: every pattern has :id; remove one or the other"},
		{`{"routes": [{"app_provided": true, "shared": true}]}`, "route 1: app_provided needs a path: say which pages bring their own document, for example document_path /editor"},
		{`{"routes": [{"paths": ["/editor"], "app_provided": true}]}`, "route /editor: app_provided needs user_id (for example {http.auth.user.id}) or vary_by, so that users do not share a token; to give everybody the same one, add shared"},
		{`{"routes": [{"paths": ["/editor"], "app_provided": true, "shared": true, "permissions": []}]}`, "route /editor: permissions and app_provided exclude each other: the page brings its own document, and no permissions are asked for; remove one"},
		{`{"routes": [{"paths": ["/editor"], "app_provided": true, "shared": true, "document_claims": {}}]}`, "route /editor: document_claim and app_provided exclude each other: the page brings its own document, so the request has no entry for it; use claim instead"},
		{withRoute(`"permissions": []`), "route /d/:id: permissions: the list is empty, which the API would take for all permissions; name at least one"},
		{withRoute(`"permissions": [" ", ",\t,"]`), "route /d/:id: permissions: only separators; name at least one"},
		{withRoute(`"permissions": ["write"]`), "route /d/:id: permissions write go beyond read, and everybody would get the same token: add user_id (or vary_by), or shared if that is what you want"},
		{withRoute(`"ttl": -1`), "route /d/:id: ttl -1ns: write a duration from 1m to 30d"},
		{withRoute(`"ttl": "59s"`), "route /d/:id: ttl 59s: write a duration from 1m to 30d"},
		{withRoute(`"ttl": "2592001s"`), "route /d/:id: ttl 720h0m1s: write a duration from 1m to 30d"},
		{withRoute(`"min_remaining": -1`), "route /d/:id: min_remaining -1ns: write at most half of ttl (30m0s), or a longer ttl"},
		{withRoute(`"min_remaining": "30m1s"`), "route /d/:id: min_remaining 30m1s: write at most half of ttl (30m0s), or a longer ttl"},
		{withRoute(`"claims": {"exp": 1}`), `route /d/:id: claim "exp" is reserved: it is set by ttl`},
		{withRoute(`"document_claims": {"document_permissions": ["write"]}`), `route /d/:id: claim "document_permissions" is reserved: it is set by permissions`},
		{withRoute(`"claims": {"": 1}`), "route /d/:id: claim: the name is empty"},
		{withRoute(`"claims": {"who": {"deep": ["{http.request.header.X}"]}}`), "route /d/:id: claim who {http.request.header.X} is client-controlled, so anybody could choose it: use what authentication in Caddy sets (for example {http.auth.user.id} or {http.reverse_proxy.header.Remote-User}), or trust_request_headers if a proxy in front of Caddy sets it"},
		{withRoute(`"document_id_format": "("`), "document_id_format: error parsing regexp: missing closing ): `(`"},
		{withRoute(`"on_error": "Fail"`), `on_error "Fail": write fail or pass`},
		{withRoute(`"request_header": "Cookie"`), "request_header Cookie has a meaning of its own: choose a name of yours, such as X-Viewer-Session"},
		{withRoute(`"request_header": "X Token"`), `request_header "X Token" is not a header name: write letters, digits and hyphens`},
		{withRoute(`"request_header": "X-Token\r\nHost"`), `request_header "X-Token\r\nHost" is not a header name: write letters, digits and hyphens`},
		{withRoute(`"request_cookie": "a=b"`), `request_cookie "a=b" is not a cookie name: write letters, digits, hyphens and underscores`},
		{withRoute(`"endpoint": "http://dws.example.com/"`), "endpoint http://dws.example.com/ is plain HTTP, so the API key could be read on the way: use https, or set insecure_endpoint if you accept that"},
		{withRoute(`"endpoint": "https://user:word@dws.example.com/"`), "endpoint: a URL with a user or password in it is refused, because it would appear in the config; the key goes into api_key"},
		{withRoute(`"endpoint": "unix//run/dws.sock"`), `endpoint "unix//run/dws.sock" is not a URL: write one such as https://api.nutrient.io/viewer/sessions`},
		{withRoute(`"endpoint": "file:///etc/passwd"`), `endpoint "file:///etc/passwd" is not a URL: write one such as https://api.nutrient.io/viewer/sessions`},
		{withRoute(`"endpoint": "https://user:word@dws.example.com:port/"`), `endpoint "…@dws.example.com:port/" is not a URL: write one such as https://api.nutrient.io/viewer/sessions`},
		{withRoute(`"timeout": -1`), "timeout -1ns: write a duration from 100ms to 1m"},
		{withRoute(`"timeout": "2m"`), "timeout 2m0s: write a duration from 100ms to 1m"},
		{withRoute(`"mint_rate": {}`), "mint_rate 0: write how many tokens may be minted per second, from 0.001 to 1000000, or off"},
		{withRoute(`"mint_rate": {"burst": 5}`), "mint_rate 0: write how many tokens may be minted per second, from 0.001 to 1000000, or off"},
		{withRoute(`"mint_rate": {"rate": -1}`), "mint_rate -1: write how many tokens may be minted per second, from 0.001 to 1000000, or off"},
		{withRoute(`"mint_rate": {"rate": 1, "burst": -1}`), "mint_rate: a burst of -1: write 1 or more"},
		{withRoute(`"mint_rate": {"rate": 1, "off": true}`), "mint_rate: off takes no rate"},
		{withRoute(`"mint_rate": {"burst": 1, "off": true}`), "mint_rate: off takes no rate"},
		{withRoute(`"cache_size": 1048575`), "cache_size of 1048575 bytes: write a size from 1MiB to 64GiB"},
		{withRoute(`"cache_size": -1`), "cache_size of -1 bytes: write a size from 1MiB to 64GiB"},
		{withRoute(`"api_key": "secret"`), "api_key: write one placeholder, such as {env.NAME} or {file./path/to/key}; a literal key (or {$NAME}, which becomes one) would appear in the admin API's /config and in the autosaved config"},
		{withRoute(`"transport": {"protocol": "fastcgi"}`), `transport "fastcgi": the only one is http`},
		{withRoute(`"transport": {}`), `transport "": the only one is http`},
		{withRoute(`"transport": {"protocol": "http", "versions": ["1.1", "3"]}`), "transport http: versions 3 is refused, because a reload would break off mints that are under way; use 1.1 or 2"},
		{withRoute(`"transport": {"protocol": "http", "proxy_protocol": "v1"}`), "transport http: proxy_protocol is refused, because a mint is not made for any one client"},
		{withRoute(`"transport": {"protocol": "http", "nonsense": 1}`), `transport http: json: unknown field "nonsense"`},
	} {
		t.Run(test.config, func(t *testing.T) {
			if _, _, _, err := compiledFromJSON(t, test.config); err == nil || err.Error() != test.want {
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
		})
	}
}

func TestUnknownMembersAreRefused(t *testing.T) {
	for _, config := range []string{
		`{"document_path": "/d/:id"}`,
		`{"routes": [{"path": ["/d/:id"]}]}`,
		`{"routes": [{"paths": ["/d/:id"], "endpoint": "https://a/"}]}`,
		withRoute(`"mint_rate": {"per_second": 5}`),
	} {
		if _, err := handlerFromJSON(config); err == nil || !strings.Contains(err.Error(), "unknown field") {
			t.Errorf("%s: got %v", config, err)
		}
	}
}

func TestReservedClaimsAreThoseOfTheContract(t *testing.T) {
	for _, name := range []string{"exp", "user_id", "allowed_documents", "document_id", "document_permissions", "permissions", "Exp", "Document_Permissions", "PERMISSIONS", "permi\u017f\u017fions"} {
		if err := claims.Check(name, json.RawMessage("1")); err == nil {
			t.Errorf("%s is not refused", name)
		}
	}
	for _, name := range []string{"collaboration_permissions", "user", "name", "a b", "ü"} {
		if err := claims.Check(name, json.RawMessage("1")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhatVariesByRequest(t *testing.T) {
	for name, want := range map[string]bool{
		"http.auth.user.id": true, "http.vars.user": true, "http.reverse_proxy.header.Remote-User": true, "http.request.tls.client.subject": true,
		"env.USER": false, "file./etc/hostname": false, "system.hostname": false, "time.now.year": false,
	} {
		if got := variesByRequest(name); got != want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

// A Provision that fails must leave nothing behind, and Cleanup runs after it.
func TestCleanupAfterARefusedConfig(t *testing.T) {
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	defer cancel()
	t.Setenv("VIEWER_SESSION_TEST_EMPTY", "")
	for _, config := range []string{`{}`, withRoute(`"timeout": 1`), withRoute(`"api_key": "{env.VIEWER_SESSION_TEST_EMPTY}"`)} {
		h, err := handlerFromJSON(config)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Provision(ctx); err == nil {
			t.Errorf("%s: provisioned", config)
		}
		if err := h.Cleanup(); err != nil {
			t.Errorf("%s: %v", config, err)
		}
	}
}
