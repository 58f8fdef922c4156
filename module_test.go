package viewersession

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
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

func TestDocumentIDFormat(t *testing.T) {
	for _, test := range []struct {
		format   string
		accepted []string
		refused  []string
	}{
		{"[0-9]+", []string{"1", "123"}, []string{"", "a", "1a", "a1", "1\n", "1\n2", " 1"}},
		{"a|b", []string{"a", "b"}, []string{"ab", "ax", "xb", "aa"}},
		{"", []string{"a", strings.Repeat("x", 128)}, []string{"", strings.Repeat("x", 129), "a.b", "a b", "ä"}},
		{"(?i)[a-f]{2}", []string{"aB"}, []string{"abc", "ag"}},
		{"(?m)^a$", []string{"a"}, []string{"a\nb", "b\na"}},
		{`.+\.pdf`, []string{"a.pdf", "ü.pdf"}, []string{".pdf", "a.pdfx", "a.pdf\n"}},
	} {
		accepts, err := newIDFormat(test.format)
		if err != nil {
			t.Errorf("%s: %v", test.format, err)
			continue
		}
		for _, id := range test.accepted {
			if !accepts(id) {
				t.Errorf("%s refuses %q", test.format, id)
			}
		}
		for _, id := range test.refused {
			if accepts(id) {
				t.Errorf("%s accepts %q", test.format, id)
			}
		}
	}
}

func TestDefaultDocumentIDFormatByHand(t *testing.T) {
	expr := regexp.MustCompile(`\A(?:` + defaultDocumentIDFormat + `)\z`)
	accepted := 0
	compare := func(id string) {
		got := matchesDefaultIDFormat(id)
		if got != expr.MatchString(id) {
			t.Fatalf("%q: got %v", id, got)
		}
		if got {
			accepted++
		}
	}
	for length := range 260 {
		compare(strings.Repeat("a", length))
	}
	for r := range rune(0x3000) {
		for _, id := range []string{string(r), "a" + string(r), string(r) + "a", "a" + string(r) + "a"} {
			compare(id)
		}
	}
	for c := range 256 {
		compare(string([]byte{byte(c)}))
		compare(string([]byte{'a', byte(c), 'z'}))
		compare(strings.Repeat("a", 127) + string([]byte{byte(c)}))
	}
	random := rand.New(rand.NewPCG(1, 2))
	const alphabet = "aZ09_~-.%/ \n:"
	for range 50_000 {
		id := make([]byte, random.IntN(6))
		for i := range id {
			id[i] = alphabet[random.IntN(len(alphabet))]
		}
		compare(string(id))
	}
	if accepted < 128 {
		t.Errorf("only %d accepted", accepted)
	}
}

// Parentheses that only close together with the anchors' own would undo them.
func TestDocumentIDFormatCannotEscapeItsAnchors(t *testing.T) {
	if accepts, err := newIDFormat("[0-9]+)|(?:x"); err == nil {
		t.Errorf("no error, and it accepts 1../../etc: %v", accepts("1../../etc"))
	}
}

func settingsFromJSON(t *testing.T, members string) poolSettings {
	t.Helper()
	_, settings, _, err := compiledFromJSON(t, withRoute(members))
	if err != nil {
		t.Fatalf("%s: %v", members, err)
	}
	return settings
}

// Handlers with the same settings share a pool, however these are written.
func TestEqualSettingsAreEqual(t *testing.T) {
	for _, group := range [][]string{
		{
			``,
			`"endpoint": "https://api.nutrient.io/viewer/sessions"`,
			`"api_key": "{env.NUTRIENT_DWS_VIEWER_API_KEY}"`,
			`"timeout": "5s"`,
			`"timeout": 5000000000`,
			`"mint_rate": {"rate": 100, "burst": 1000}`,
			`"mint_rate": {"rate": 100}`,
			`"cache_size": 67108864`,
			`"transport": {"protocol": "http"}`,
			`"transport": {"protocol": "http", "keep_alive": {"max_idle_conns_per_host": 256}}`,
			`"transport": {"protocol": "http", "max_response_header_size": 65536}`,

			// What is the handler's own.
			`"ttl": "2h"`,
			`"min_remaining": "1m"`,
			`"permissions": ["write"], "shared": true`,
			`"user_id": "{http.auth.user.id}"`,
			`"vary_by": ["{http.auth.user.id}"]`,
			`"claims": {"a": 1}, "document_claims": {"a": 1}`,
			`"trust_request_headers": true`,
			`"request_header": "X-Token"`,
			`"request_cookie": "token"`,
			`"allow_store": true`,
			`"on_error": "pass"`,
			`"document_id_format": "[0-9]+"`,
			`"insecure_endpoint": true`,
		},
		{
			`"mint_rate": {"off": true}`,
			`"mint_rate": {"off": true, "rate": 0}`,
		},
		{
			`"transport": {"protocol": "http", "dial_timeout": "1s", "versions": ["1.1"], "tls": {"server_name": "a", "handshake_timeout": "1s"}}`,
			`"transport": {"versions": ["1.1"], "protocol": "http", "tls": {"handshake_timeout": "1s", "server_name": "a"}, "dial_timeout": 1000000000}`,
			`"transport": { "tls":{"server_name":"a","handshake_timeout":"1000ms"},"versions":["1.1"],"dial_timeout":"1000ms","protocol":"http" }`,
		},
	} {
		want := settingsFromJSON(t, group[0])
		for _, members := range group[1:] {
			if got := settingsFromJSON(t, members); got != want {
				t.Errorf("%s\ngives %+v\n%s\ngives %+v", group[0], want, members, got)
			}
		}
	}
}

// The members of modules inside the transport, too, may stand in any order.
func TestOrderInsideTheTransportsModulesIsNoDifference(t *testing.T) {
	for _, group := range [][2]string{
		{
			`"transport": {"protocol": "http", "tls": {"ca": {"provider": "file", "pem_files": ["/ca.pem"]}}}`,
			`"transport": {"protocol": "http", "tls": {"ca": {"pem_files": ["/ca.pem"], "provider": "file"}}}`,
		},
		{
			`"transport": {"protocol": "http", "network_proxy": {"from": "url", "url": "http://proxy:3128"}}`,
			`"transport": {"protocol": "http", "network_proxy": {"url": "http://proxy:3128", "from": "url"}}`,
		},
	} {
		if a, b := settingsFromJSON(t, group[0]), settingsFromJSON(t, group[1]); a != b {
			t.Errorf("%s\ngives %s\n%s\ngives %s", group[0], a.transport, group[1], b.transport)
		}
	}
}

func TestDifferentSettingsDiffer(t *testing.T) {
	seen := make(map[poolSettings]string)
	for _, members := range []string{
		``,
		`"endpoint": "https://api.nutrient.io/viewer/session"`,
		`"endpoint": "https://dws.example.com/viewer/sessions"`,
		`"endpoint": "https://api.nutrient.io:8443/viewer/sessions"`,
		`"endpoint": "https://api.nutrient.io/viewer/sessions?region=eu"`,
		`"api_key": "{env.OTHER_KEY}"`,
		`"api_key": "{file./run/secrets/key}"`,
		`"timeout": "6s"`,
		`"mint_rate": {"rate": 101, "burst": 1000}`,
		`"mint_rate": {"rate": 100, "burst": 999}`,
		`"mint_rate": {"off": true}`,
		`"cache_size": 67108865`,
		`"transport": {"protocol": "http", "versions": ["1.1"]}`,
		`"transport": {"protocol": "http", "versions": ["2"]}`,
		`"transport": {"protocol": "http", "tls": {}}`,
		`"transport": {"protocol": "http", "tls": {"handshake_timeout": "1s"}}`,
		`"transport": {"protocol": "http", "tls": {"ca": {"provider": "file", "pem_files": ["/a.pem"]}}}`,
		`"transport": {"protocol": "http", "tls": {"ca": {"provider": "file", "pem_files": ["/b.pem"]}}}`,
		`"transport": {"protocol": "http", "network_proxy": {"from": "none"}}`,
		`"transport": {"protocol": "http", "keep_alive": {"max_idle_conns_per_host": 5}}`,
		`"transport": {"protocol": "http", "keep_alive": {"enabled": false}}`,
		`"transport": {"protocol": "http", "compression": false}`,
		`"transport": {"protocol": "http", "local_address": "127.0.0.1:0"}`,
		`"transport": {"protocol": "http", "max_response_header_size": 4096}`,
	} {
		settings := settingsFromJSON(t, members)
		if other, ok := seen[settings]; ok {
			t.Errorf("%s and %s give the same", other, members)
		}
		seen[settings] = members
	}
}

func TestMintRateLimits(t *testing.T) {
	for _, test := range []struct {
		rate  MintRate
		per   float64
		burst int
	}{
		{MintRate{Rate: 100}, 100, 1000},
		{MintRate{Rate: 0.5}, 0.5, 5},
		{MintRate{Rate: 0.01}, 0.01, 1},
		{MintRate{Rate: 3, Burst: 1}, 3, 1},
		{MintRate{Rate: 1e6}, 1e6, 1e7},
	} {
		per, burst, err := test.rate.limits()
		if per != test.per || burst != test.burst || err != nil {
			t.Errorf("%+v: got %v, %d, %v", test.rate, per, burst, err)
		}
	}
	if per, _, err := (&MintRate{Off: true}).limits(); err != nil || per < math.MaxFloat64 {
		t.Errorf("off: got %v, %v", per, err)
	}
	if _, _, err := (&MintRate{Rate: math.NaN()}).limits(); err == nil {
		t.Error("NaN is accepted")
	}
}

// The settings' transport is what Caddy loads: it must be a config that Caddy
// accepts, with our own defaults in it.
func TestSettingsTransportLoads(t *testing.T) {
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	defer cancel()
	for _, members := range []string{
		``,
		`"transport": {"protocol": "http", "versions": ["1.1", "2"], "tls": {"server_name": "a"}, "network_proxy": {"from": "none"}}`,
	} {
		settings := settingsFromJSON(t, members)
		for _, part := range []string{`"max_idle_conns_per_host":256`, `"max_response_header_size":65536`} {
			if !strings.Contains(settings.transport, part) {
				t.Errorf("%s: %s lacks %s", members, settings.transport, part)
			}
		}
		if _, err := ctx.LoadModuleByID(transportModule, []byte(settings.transport)); err != nil {
			t.Errorf("%s: %v", members, err)
		}
	}
}

func TestResolveKey(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return "{file." + path + "}"
	}
	t.Setenv("VIEWER_SESSION_TEST_KEY", dwstest.Key)
	t.Setenv("VIEWER_SESSION_TEST_EMPTY", "")
	t.Setenv("VIEWER_SESSION_TEST_SPACES", " \t ")
	t.Setenv("VIEWER_SESSION_TEST_BEARER", "Bearer "+dwstest.Key)
	t.Setenv("VIEWER_SESSION_TEST_NAMED", "NUTRIENT_DWS_VIEWER_API_KEY= "+dwstest.Key)
	t.Setenv("VIEWER_SESSION_TEST_NEWLINE", "\n"+dwstest.Key+"\r\n")
	t.Setenv("VIEWER_SESSION_TEST_BYTES", dwstest.Key+"ü")
	t.Setenv("VIEWER_SESSION_TEST_BRACES", "{env.VIEWER_SESSION_TEST_KEY}")
	if err := os.Unsetenv("VIEWER_SESSION_TEST_UNSET"); err != nil {
		t.Fatal(err)
	}

	for what, placeholder := range map[string]string{
		"environment":            "{env.VIEWER_SESSION_TEST_KEY}",
		"newlines around it":     "{env.VIEWER_SESSION_TEST_NEWLINE}",
		"file":                   file("plain", dwstest.Key),
		"file with a newline":    file("newline", dwstest.Key+"\n"),
		"file from Windows":      file("windows", dwstest.Key+"\r\n"),
		"file with blanks":       file("blanks", "  "+dwstest.Key+" \n\n"),
		"file with a tab before": file("tab", "\t"+dwstest.Key),
	} {
		if key, err := resolveKey(placeholder); key != dwstest.Key || err != nil {
			t.Errorf("%s: got %q, %v", what, key, err)
		}
	}
	const (
		empty     = " is empty or unknown: put the Viewer API key of your DWS account there before Caddy starts"
		noFile    = " is empty or cannot be read (a relative path begins where Caddy was started): put the Viewer API key of your DWS account there before Caddy starts"
		malformed = " holds spaces, quotes or other characters that no key has: it should be the key alone, without quotes, a name or Bearer in front"
	)
	for what, test := range map[string]struct{ placeholder, want string }{
		"unset":           {"{env.VIEWER_SESSION_TEST_UNSET}", empty},
		"empty":           {"{env.VIEWER_SESSION_TEST_EMPTY}", empty},
		"only blanks":     {"{env.VIEWER_SESSION_TEST_SPACES}", empty},
		"empty file":      {file("empty", ""), noFile},
		"only a newline":  {file("only-newline", "\n"), noFile},
		"no such file":    {"{file." + filepath.Join(dir, "none") + "}", noFile},
		"unknown":         {"{vault.key}", empty},
		"of a request":    {"{http.request.header.X-Key}", empty},
		"no name":         {"{}", empty},
		"with Bearer":     {"{env.VIEWER_SESSION_TEST_BEARER}", malformed},
		"with its name":   {"{env.VIEWER_SESSION_TEST_NAMED}", malformed},
		"two lines":       {file("lines", dwstest.Key+"\n"+dwstest.Key), malformed},
		"in quotes":       {file("quotes", `"`+dwstest.Key+`"`), malformed},
		"NUL":             {file("nul", dwstest.Key+"\x00"), malformed},
		"byte order mark": {file("bom", "\ufeff"+dwstest.Key), malformed},
		"not ASCII":       {"{env.VIEWER_SESSION_TEST_BYTES}", malformed},
	} {
		key, err := resolveKey(test.placeholder)
		if want := "api_key " + test.placeholder + test.want; err == nil || err.Error() != want || key != "" {
			t.Errorf("%s: got %q, %v\nwant %s", what, key, err, want)
		}
		if err != nil && strings.Contains(err.Error(), dwstest.Key) {
			t.Errorf("%s: the error repeats the key: %v", what, err)
		}
	}
	// What the placeholder stands for is not parsed again.
	if key, err := resolveKey("{env.VIEWER_SESSION_TEST_BRACES}"); key != "{env.VIEWER_SESSION_TEST_KEY}" || err != nil {
		t.Errorf("braces: got %q, %v", key, err)
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

func TestLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1": true, "127.255.255.254": true, "::1": true, "localhost": true, "LocalHost": true, "::ffff:127.0.0.1": true,
		"0.0.0.0": false, "::": false, "10.0.0.1": false, "localhost.example.com": false, "127.0.0.1.nip.io": false, "": false, "127.1": false,
	} {
		if got := isLoopback(host); got != want {
			t.Errorf("%q: got %v", host, got)
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
