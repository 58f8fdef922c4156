package viewersession

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

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
		"unset":                           {"{env.VIEWER_SESSION_TEST_UNSET}", empty},
		"empty":                           {"{env.VIEWER_SESSION_TEST_EMPTY}", empty},
		"only blanks":                     {"{env.VIEWER_SESSION_TEST_SPACES}", empty},
		"empty file":                      {file("empty", ""), noFile},
		"only a newline":                  {file("only-newline", "\n"), noFile},
		"no such file":                    {"{file." + filepath.Join(dir, "none") + "}", noFile},
		"unknown":                         {"{vault.key}", empty},
		"of a request":                    {"{http.request.header.X-Key}", empty},
		"no name":                         {"{}", empty},
		"with Bearer":                     {"{env.VIEWER_SESSION_TEST_BEARER}", malformed},
		"with its name":                   {"{env.VIEWER_SESSION_TEST_NAMED}", malformed},
		"a whole file of variables":       {file("env", "DB_PASSWORD=hunter2\nDWS_KEY=pdf_live_x"), malformed},
		"another secret in front":         {file("other", "sk-live/1=pdf_live_x y"), malformed},
		"named, as in a file for systemd": {file("named", "NUTRIENT_DWS_VIEWER_API_KEY="+dwstest.Key), " begins with NUTRIENT_DWS_VIEWER_API_KEY=: it should be the key alone, without the name of a variable in front"},
		"two lines":                       {file("lines", dwstest.Key+"\n"+dwstest.Key), malformed},
		"in quotes":                       {file("quotes", `"`+dwstest.Key+`"`), malformed},
		"NUL":                             {file("nul", dwstest.Key+"\x00"), malformed},
		"byte order mark":                 {file("bom", "\ufeff"+dwstest.Key), malformed},
		"not ASCII":                       {"{env.VIEWER_SESSION_TEST_BYTES}", malformed},
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
