//go:build unix

package redis

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/viewersession/caddy-viewer-session/internal/redistest"
)

func parse(text string) (*Store, error) {
	s := new(Store)
	return s, s.UnmarshalCaddyfile(caddyfile.NewTestDispenser("redis {\n" + text + "\n}"))
}

func TestCaddyfile(t *testing.T) {
	for text, want := range map[string]string{
		"address a\nencryption_key {env.K}": `{"address":["a"],"encryption_key":"{env.K}"}`,
		`address a b:1
		username gateway
		password {file./run/secrets/redis}
		encryption_key {file./run/secrets/key} {file./run/secrets/previous}
		timeout 200ms
		prefix mine`: `{"address":["a","b:1"],"username":"gateway","password":"{file./run/secrets/redis}","encryption_key":"{file./run/secrets/key}","previous_encryption_key":"{file./run/secrets/previous}","timeout":200000000,"prefix":"mine"}`,
		`address a b c
		master_name mymaster
		sentinel_username watcher
		sentinel_password {env.S}
		database 3
		encryption_key {env.K}`: `{"address":["a","b","c"],"encryption_key":"{env.K}","database":3,"master_name":"mymaster","sentinel_username":"watcher","sentinel_password":"{env.S}"}`,
		`address a
		cluster
		tls
		encryption_key {env.K}`: `{"address":["a"],"encryption_key":"{env.K}","cluster":true,"tls":{}}`,
		`address a
		tls {
			trust_pool file /ca.pem
			client_auth /cert.pem /key.pem
			server_name redis.internal
			insecure_skip_verify
		}
		encryption_key {env.K}`: `{"address":["a"],"encryption_key":"{env.K}","tls":{"ca":{"pem_files":["/ca.pem"],"provider":"file"},"client_certificate_file":"/cert.pem","client_certificate_key_file":"/key.pem","insecure_skip_verify":true,"server_name":"redis.internal"}}`,
	} {
		s, err := parse(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, err := json.Marshal(s); err != nil || string(got) != want {
			t.Errorf("%s: %v\n got %s\nwant %s", text, err, got, want)
		}
	}
}

// A mistake is told when the config is adapted, with what to write instead,
// and without what may be a secret in the wrong place.
func TestMistakes(t *testing.T) {
	const key = "\nencryption_key {env.K}"
	for text, want := range map[string]string{
		"":                                 "address is missing",
		key:                                "address is missing",
		"address" + key:                    "needs at least one host and port",
		"address a":                        "encryption_key is missing",
		"address redis://u:s3cret@a" + key: "write host:port alone",
		"address u:s3cret@a" + key:         "write host:port alone",
		"address a\naddress b" + key:       "address is given twice",
		"address a\nencryption_key s3cret": "write one placeholder",
		"address a\nencryption_key {env.A} s3cret":                 "write one placeholder",
		"address a\nencryption_key {env.A} {env.B} s3cret":         "perhaps that of the previous key",
		"address a\nencryption_key {http.request.host}":            "not known when the config loads",
		"address a\npassword s3cret" + key:                         "write one placeholder",
		"address a\npassword {env.P} s3cret" + key:                 "and nothing else",
		"address a\npassword" + key:                                "needs one placeholder",
		"address a\nusername u" + key:                              "username needs a password",
		"address a\nusername" + key:                                "needs a name",
		"address a\ndatabase s3cret" + key:                         "database needs a number",
		"address a\ndatabase -1" + key:                             "write 0 or more",
		"address a b\ndatabase 1" + key:                            "only database 0",
		"address a\ncluster\ndatabase 1" + key:                     "only database 0",
		"address a\ncluster\nmaster_name m" + key:                  "exclude each other",
		"address a\ncluster yes" + key:                             "takes no argument",
		"address a\nsentinel_password {env.S}" + key:               "add master_name",
		"address a\nmaster_name m\nsentinel_password s3cret" + key: "write one placeholder",
		"address a\ntimeout 0s" + key:                              "such as 150ms",
		"address a\ntimeout 150" + key:                             "such as 150ms",
		"address a\ntimeout 6s" + key:                              "from 1ms to 1s",
		"address a\nprefix \"\"" + key:                             "a value is empty",
		"address a\nprefix {env.X}" + key:                          "braces",
		"address a\ntls on" + key:                                  "takes no argument",
		"address a\ntls {\ntrust_pool\n}" + key:                    "trust_pool needs a name",
		"address a\ntls {\ntrust_pool nowhere\n}" + key:            "module not registered",
		"address a\ntls {\nclient_auth a\n}" + key:                 "certificate and its key",
		"address a\ntls {\nca a\n}" + key:                          `unrecognized subdirective "ca" of tls`,
		"address a\ntls {\nserver_name a\nserver_name b\n}" + key:  "given twice",
		"address a\nhost b" + key:                                  `unrecognized subdirective "host" of store redis`,
	} {
		_, err := parse(text)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
	err := new(Store).UnmarshalCaddyfile(caddyfile.NewTestDispenser("redis redis://u:s3cret@a"))
	if err == nil || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), "into its block") {
		t.Errorf("got %v", err)
	}
}

// What only shows on the machine is told when the config is loaded.
func TestMistakesWhenLoading(t *testing.T) {
	t.Setenv("TEST_SHORT", "s3cret")
	for text, want := range map[string]string{
		"encryption_key {env.TEST_NONE}":                           "{env.TEST_NONE} is empty or unknown",
		"encryption_key {file./no/such/file}":                      "{file./no/such/file} is empty or cannot be read",
		"encryption_key {env.TEST_OTHER_KEY} {env.TEST_OTHER_KEY}": "the same as the new one",
		"username {env.TEST_NONE}\npassword {env.TEST_PASSWORD}":   "username: ",
		"encryption_key {env.TEST_SHORT}":                          "openssl rand -base64 32",
		"encryption_key {env.TEST_OTHER_KEY} {env.TEST_SHORT}":     "the previous one",
		"password {env.TEST_NONE}":                                 "password {env.TEST_NONE} is empty",
		"master_name m\nsentinel_password {env.TEST_NONE}":         "sentinel_password {env.TEST_NONE} is empty",
		"tls {\nclient_auth /no/such/cert.pem /no/such/key.pem\n}": "/no/such/cert.pem",
	} {
		_, err := tryStore(t, text, &redistest.Server{Address: "127.0.0.1:1"})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}

func TestAddresses(t *testing.T) {
	t.Setenv("TEST_HOST", "10.0.0.7")
	for address, want := range map[string]string{
		"a":                "a:6379",
		"a:1":              "a:1",
		"[::1]":            "[::1]:6379",
		"[::1]:1":          "[::1]:1",
		"unix//run/r.sock": "/run/r.sock",
		"a:1-2":            "",
		"a:b":              "",
		"udp/a:1":          "",
	} {
		got, err := completeAddress(address, defaultPort)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: got %q, %v, want %q", address, got, err, want)
		}
	}
	s := &Store{Address: []string{"{env.TEST_HOST}"}}
	options, err := s.options(caddy.Context{})
	if err != nil || !slices.Equal(options.Addrs, []string{"10.0.0.7:6379"}) {
		t.Errorf("got %v, %v", options.Addrs, err)
	}
}

// Every message of the store stands in docs/fleet.md, and no other.
func TestEveryMessageIsDocumented(t *testing.T) {
	var source []byte
	for _, name := range []string{"redis.go", "client.go", "operations.go"} {
		part, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		source = append(source, part...)
	}
	text, err := os.ReadFile("../docs/fleet.md")
	if err != nil {
		t.Fatal(err)
	}
	var logged, documented []string
	for _, m := range regexp.MustCompile(`logger\.\w+\("([^"]+?)[;"]`).FindAllStringSubmatch(string(source), -1) {
		logged = append(logged, m[1])
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+?);?` \\| (?:warn|error)").FindAllStringSubmatch(string(text), -1) {
		documented = append(documented, m[1])
	}
	slices.Sort(logged)
	slices.Sort(documented)
	if len(logged) == 0 || !slices.Equal(logged, documented) {
		t.Errorf("logged: %q\ndocumented: %q", logged, documented)
	}
}
