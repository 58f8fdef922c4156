package viewersession

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

// Whatever an API sends as a token: it is refused, or it expires in the future
// and not after what was asked for, and holds no byte that a header or a cookie
// could not carry.
func FuzzReadToken(f *testing.F) {
	for _, seed := range []string{
		testJWT(map[string]any{"exp": 1_800_003_600}), testJWT(map[string]any{}), testJWT(map[string]any{"exp": nil}),
		testJWT(map[string]any{"exp": 1e300}), testJWT(map[string]any{"exp": -1}), testJWT(map[string]any{"exp": "soon"}),
		testJWT(map[string]any{"exp": 1_800_000_000.5}), testJWT(map[string]any{"document_id": "other"}),
		testJWT(map[string]any{"allowed_documents": []any{map[string]any{"document_id": "doc"}, "x", nil}}),
		"a.b.c", "..", "", "a.W10.c", "a.bnVsbA.c", strings.Repeat("a", 9000),
	} {
		f.Add(seed, int64(0))
		f.Add(seed, int64(999_999_999))
	}
	f.Fuzz(func(t *testing.T, jwt string, nanos int64) {
		now := time.Unix(1_800_000_000, nanos%1e9)
		const askedExp = 1_800_003_600
		facts, err := readToken(jwt, &ask{documentID: "doc", userID: "user"}, askedExp, now)
		if err != nil {
			return
		}
		exp := facts.exp
		if !time.Unix(exp, 0).After(now) || exp > askedExp {
			t.Errorf("%q: exp %d at %s", jwt, exp, now)
		}
		if strings.ContainsFunc(jwt, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`;,"\`, r) }) || len(jwt) > maxTokenBytes {
			t.Errorf("%q is accepted", jwt)
		}
		if newTestToken("", jwt, exp, askedExp, now).freshness(clock.At(now), time.Minute) == expired {
			t.Errorf("%q expires as it is accepted", jwt)
		}
	})
}

// Whatever the placeholders give: no panic, and what is sent is one JSON object
// with the values as they were, or nothing is sent.
func FuzzClaims(f *testing.F) {
	f.Add("alice", "team", `{"a":["{http.vars.value}",1e2,null]}`)
	f.Add("{env.HOME}", `","exp":1,"x":"`, `"{http.vars.value}{http.vars.user}"`)
	f.Add("\xff", "a\x00b", `{"{http.vars.value}":"x"}`)
	f.Add("", "", `[]`)
	f.Add("a", "b", `"\{http.vars.value\}"`)
	f.Fuzz(func(t *testing.T, user, value, claim string) {
		template, err := newAskTemplate(TokenOptions{
			Permissions: []string{"read", "{http.vars.value}"}, UserID: "{http.vars.user}", VaryBy: []string{"{http.vars.value}"},
			Claims: map[string]json.RawMessage{"claim": json.RawMessage(claim)}, TTL: caddy.Duration(time.Hour),
		})
		if err != nil {
			return
		}
		repl := caddy.NewEmptyReplacer()
		repl.Set("http.vars.user", user)
		repl.Set("http.vars.value", value)
		a, err := resolveTest(template, repl, "doc")
		if err != nil {
			if reason := asFailure(err).reason; reason != reasonNoUser && reason != reasonNoClaim && reason != reasonNoPermission {
				t.Errorf("reason %s", reason)
			}
			return
		}
		var sent struct {
			AllowedDocuments []struct {
				ID          string   `json:"document_id"`
				Permissions []string `json:"document_permissions"`
			} `json:"allowed_documents"`
			Exp    int64           `json:"exp"`
			UserID string          `json:"user_id"`
			Claim  json.RawMessage `json:"claim"`
		}
		body := a.body(1_800_003_600, bothNames)
		if err := json.Unmarshal(body, &sent); err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		if len(sent.AllowedDocuments) != 1 || sent.AllowedDocuments[0].ID != "doc" || sent.Exp != 1_800_003_600 || sent.UserID != user || user == "" {
			t.Errorf("user %q, value %q, claim %s: %s", user, value, claim, body)
		}
		permissions := sent.AllowedDocuments[0].Permissions
		if len(permissions) == 0 || !slices.IsSorted(permissions) || !slices.Contains(permissions, "read") {
			t.Errorf("permissions %q", permissions)
		}
		again, err := resolveTest(template, repl, "doc")
		if err != nil || string(again.appendKey(nil)) != string(a.appendKey(nil)) {
			t.Error("the same request has another key")
		}
	})
}

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
		a, err := resolveTest(loaded.routes[0].ask, caddy.NewEmptyReplacer(), "doc")
		if err != nil {
			return // it holds a placeholder
		}
		var sent struct {
			Claim json.RawMessage `json:"c"`
		}
		if err := json.Unmarshal(a.body(1, bothNames), &sent); err != nil {
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
		want, err = replaceStrings(want, caddy.NewEmptyReplacer())
		if err != nil {
			t.Fatal(err)
		}
		var got any
		decoder := json.NewDecoder(bytes.NewReader(sent.Claim))
		decoder.UseNumber()
		if err := decoder.Decode(&got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q is sent as %s", text, sent.Claim)
		}
	})
}
