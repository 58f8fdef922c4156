package viewersession

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
)

// Whatever stands in a Caddyfile: no panic; what is accepted can be compiled,
// has a route, and never holds a key that is not a placeholder.
func FuzzCaddyfile(f *testing.F) {
	for _, seed := range []string{
		oneRoute,
		"viewer_session {\n document_path /d/:id {\n permissions read write\n user_id {http.auth.user.id}\n }\n}",
		"viewer_session {\n document_id {http.request.uri.query.doc}\n claim a 1\n claim_json b `{\"x\":1}`\n ttl 5m\n min_remaining 1m\n}",
		"viewer_session {\n document_path /d/:id\n transport http {\n tls_trust_pool file /x\n }\n mint_rate 5 10\n cache_size 2MiB\n}",
		"viewer_session {\n document_path /d/:id\n api_key {env.X}\n endpoint http://localhost:1/x\n request_cookie c\n on_error pass\n}",
		"viewer_session /x {\n}", "viewer_session {", "viewer_session {\n document_path {\n}\n}",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		tokens, err := caddyfile.Tokenize([]byte(text), "Caddyfile")
		if err != nil || len(tokens) == 0 {
			return
		}
		h := new(Handler)
		if h.UnmarshalCaddyfile(caddyfile.NewDispenser(tokens)) != nil {
			return
		}
		if len(h.routes) == 0 {
			t.Errorf("no route: %s", text)
		}
		if h.APIKey != "" && (!strings.HasPrefix(h.APIKey, "{") || !strings.HasSuffix(h.APIKey, "}")) {
			t.Errorf("a literal key: %s", text)
		}
		encoded, err := json.Marshal(h)
		if err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		again := new(Handler)
		if err := caddy.StrictUnmarshalJSON(encoded, again); err != nil {
			t.Fatalf("%v: %s", err, encoded)
		}
		if err := again.compile(); err != nil {
			t.Errorf("the adapted config is refused: %v: %s", err, encoded)
		}
	})
}

// Caddy takes configs through its own JSON, where numbers are doubles and an
// object keeps one of two members. Whatever is written as a claim: what is sent
// is that, or the config is refused.
func FuzzClaimIsSentAsWritten(f *testing.F) {
	for _, seed := range []string{
		`9007199254740993`, `9007199254740991`, `-9007199254740991`, `1.10`, `1.5`, `1e3`, `1e400`, `1e-400`, `1e+21`, `-0`, `007`, `+4`, `0x1p4`, `T`, `true`, `null`,
		`{"a":1,"a":2}`, `{"a":{"b":[1,{"c":1.0}]}}`, `"\ud800"`, `"\ud83d\ude00"`, `{"\udc00":1}`, `"<&>\u2028"`, `[0.1,1e-7,1e21,123456789012345678901234567890]`, "a\xff", `x`, `"x"`, `1_000`, `Inf`,
	} {
		f.Add(seed, false)
		f.Add(seed, true)
	}
	f.Fuzz(func(t *testing.T, text string, asJSON bool) {
		option := "claim"
		if asJSON {
			option = "claim_json"
		}
		var tokens []caddyfile.Token
		for i, word := range []string{"viewer_session", "{", option, "c", text, "document_path", "/d/:id", "}"} {
			tokens = append(tokens, caddyfile.Token{File: "Caddyfile", Line: []int{1, 1, 2, 2, 2, 3, 3, 4}[i], Text: word})
		}
		h := new(Handler)
		if text == "{" || text == "}" || h.UnmarshalCaddyfile(caddyfile.NewDispenser(tokens)) != nil {
			return
		}
		var warnings []caddyconfig.Warning
		adapted := caddyconfig.JSONModuleObject(h, "handler", "viewer_session", &warnings)
		if len(warnings) > 0 || string(adapted) == "null" || len(adapted) == 0 {
			t.Fatalf("%q is accepted, and adapts to %s: %v", text, adapted, warnings)
		}
		var loaded Handler
		raw, err := withoutMember(adapted, "handler")
		if err == nil {
			err = caddy.StrictUnmarshalJSON(raw, &loaded)
		}
		if err == nil {
			err = loaded.compile()
		}
		if err != nil {
			t.Fatalf("%q is accepted, and refused when it is loaded: %v", text, err)
		}
		var a claims.Claims
		if loaded.routes[0].template.Resolve(&a, caddy.NewEmptyReplacer(), "doc") != (claims.Missing{}) {
			return // it holds a placeholder
		}
		var sent struct {
			Claim json.RawMessage `json:"c"`
		}
		if err := json.Unmarshal(a.Body(1, dws.BothNames), &sent); err != nil {
			t.Fatal(err)
		}
		var want any = text // as it is written, placeholders aside
		var written any
		if decoder := json.NewDecoder(strings.NewReader(text)); asJSON || sent.Claim[0] != '"' {
			decoder.UseNumber()
			if err := decoder.Decode(&written); err != nil {
				t.Fatalf("%q is sent as %s", text, sent.Claim)
			}
			want = written
		}
		want = unescaped(want)
		var got any
		decoder := json.NewDecoder(bytes.NewReader(sent.Claim))
		decoder.UseNumber()
		if err := decoder.Decode(&got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q is sent as %s", text, sent.Claim)
		}
	})
}

// unescaped returns value with the backslashes removed that keep braces in its
// strings from being placeholders.
func unescaped(value any) any {
	switch v := value.(type) {
	case string:
		return caddy.NewEmptyReplacer().ReplaceAll(v, "")
	case []any:
		for i := range v {
			v[i] = unescaped(v[i])
		}
	case map[string]any:
		for name := range v {
			v[name] = unescaped(v[name])
		}
	}
	return value
}
