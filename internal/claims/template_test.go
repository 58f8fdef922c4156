package claims

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/internal/dws"
)

// replacerWith knows these placeholders, and {env.*} and {file.*} as always.
func replacerWith(values map[string]any) *caddy.Replacer {
	repl := caddy.NewReplacer()
	for name, value := range values {
		repl.Set(name, value)
	}
	return repl
}

// templateOf completes options with the defaults and compiles them.
func templateOf(t testing.TB, o Options) *Template {
	t.Helper()
	if o.Permissions == nil {
		o.Permissions = []string{"read"}
	}
	if o.TTL == 0 {
		o.TTL = time.Hour
	}
	template, err := NewTemplate(o)
	if err != nil {
		t.Fatal(err)
	}
	return template
}

func rawClaims(pairs ...string) map[string]json.RawMessage {
	claims := make(map[string]json.RawMessage)
	for i := 0; i < len(pairs); i += 2 {
		claims[pairs[i]] = json.RawMessage(pairs[i+1])
	}
	return claims
}

func TestSplitPermissions(t *testing.T) {
	for _, test := range []struct {
		values []string
		want   []string
	}{
		{[]string{"read"}, []string{"read"}},
		{[]string{"write", "read", "download"}, []string{"download", "read", "write"}},
		{[]string{"write,read"}, []string{"read", "write"}},
		{[]string{"write read", "download"}, []string{"download", "read", "write"}},
		{[]string{" write ,\tread,,download , "}, []string{"download", "read", "write"}},
		{[]string{"read", "read", "read,read"}, []string{"read"}},
		{[]string{"Read", "read"}, []string{"Read", "read"}},
		{[]string{"", "read", ""}, []string{"read"}},
		{[]string{"annotations:view:all"}, []string{"annotations:view:all"}},
		{[]string{""}, nil},
		{[]string{" , ", "\t"}, nil},
		{nil, nil},
	} {
		if got := SplitPermissions(test.values); !slices.Equal(got, test.want) {
			t.Errorf("%q: got %q, want %q", test.values, got, test.want)
		}
	}
}

func TestPermissionsFromPlaceholders(t *testing.T) {
	for _, test := range []struct {
		permissions []string
		values      map[string]any
		want        string // "" for none left
	}{
		{[]string{"{http.vars.p}"}, map[string]any{"http.vars.p": "read"}, "[read]"},
		{[]string{"{http.vars.p}"}, map[string]any{"http.vars.p": "write, read write"}, "[read write]"},
		{[]string{"{http.vars.p}", "read"}, map[string]any{"http.vars.p": "write"}, "[read write]"},
		{[]string{"{http.vars.p}", "read"}, map[string]any{"http.vars.p": ""}, "[read]"},
		{[]string{"{http.vars.p}", "read"}, nil, "[read]"},
		{[]string{"{http.vars.p},{http.vars.q}"}, map[string]any{"http.vars.p": "b", "http.vars.q": "a"}, "[a b]"},
		{[]string{"{http.vars.p}:{http.vars.q}"}, map[string]any{"http.vars.p": "b", "http.vars.q": "a"}, "[b:a]"},
		{[]string{"{http.vars.p}"}, map[string]any{"http.vars.p": ""}, ""},
		{[]string{"{http.vars.p}"}, map[string]any{"http.vars.p": " , \t,"}, ""},
		{[]string{"{http.vars.p}"}, nil, ""},
		{[]string{"{http.vars.p}", "{http.vars.q}"}, map[string]any{"http.vars.p": ""}, ""},
	} {
		a, err := resolve(templateOf(t, Options{Permissions: test.permissions}), replacerWith(test.values), "doc")
		if test.want == "" {
			want := "permissions " + strings.Join(test.permissions, " ") + ": none left for this request"
			if err == nil || err.Error() != want {
				t.Errorf("%q with %v: got %v, %v", test.permissions, test.values, a.Permissions, err)
			}
			continue
		}
		if err != nil || fmt.Sprint(a.Permissions) != test.want {
			t.Errorf("%q with %v: got %q, %v, want %s", test.permissions, test.values, a.Permissions, err, test.want)
		}
	}
}

func TestUserID(t *testing.T) {
	for _, test := range []struct {
		template string
		values   map[string]any
		want     string // "" for a failure
		message  string
	}{
		{"{http.auth.user.id}", map[string]any{"http.auth.user.id": "ann"}, "ann", ""},
		{"{http.auth.user.id}", map[string]any{"http.auth.user.id": 42}, "42", ""},
		{"{http.vars.member}/{http.auth.user.id}", map[string]any{"http.auth.user.id": "ann", "http.vars.member": "t"}, "t/ann", ""},
		{"{http.auth.user.id}", map[string]any{"http.auth.user.id": `a"b\c</script>` + "\n"}, `a"b\c</script>` + "\n", ""},
		{"{http.auth.user.id}", map[string]any{"http.auth.user.id": "ünal 😀"}, "ünal 😀", ""},
		{"{http.auth.user.id}", map[string]any{"http.auth.user.id": ""}, "", "evaluated placeholder {http.auth.user.id} is empty"},
		{"{http.auth.user.id}", map[string]any{"http.auth.user.id": nil}, "", "evaluated placeholder {http.auth.user.id} is empty"},
		{"{http.auth.user.id}", nil, "", "unrecognized placeholder {http.auth.user.id}"},
		{"{http.vars.member}/{http.auth.user.id}", map[string]any{"http.vars.member": "t"}, "", "unrecognized placeholder {http.auth.user.id}"},
		{"{http.vars.member}/{http.auth.user.id}", map[string]any{"http.vars.member": "", "http.auth.user.id": "ann"}, "", "evaluated placeholder {http.vars.member} is empty"},
		{"{http.auth.user.id}", map[string]any{"http.auth.user.id": "a\xffb"}, "", "{http.auth.user.id} is not valid UTF-8"},
		{"{http.auth.user.id}", map[string]any{"http.auth.user.id": "\xed\xa0\x80"}, "", "{http.auth.user.id} is not valid UTF-8"},
	} {
		a, err := resolve(templateOf(t, Options{UserID: test.template}), replacerWith(test.values), "doc")
		if test.want == "" {
			want := "user_id: " + test.message + ""
			if err == nil || err.Error() != want {
				t.Errorf("%s with %v: got %q, %v\nwant %s", test.template, test.values, a.UserID, err, want)
			}
			continue
		}
		if err != nil || a.UserID != test.want {
			t.Errorf("%s with %v: got %q, %v", test.template, test.values, a.UserID, err)
		}
	}
	if a := mustResolve(t, Options{}, "doc", nil); a.UserID != "" {
		t.Errorf("without user_id: got %q", a.UserID)
	}
}

func TestClaims(t *testing.T) {
	values := map[string]any{"http.vars.a": "α", "http.vars.n": 7, "http.vars.q": `","exp":9999999999,"x":"`, "http.vars.empty": ""}
	for _, test := range []struct{ raw, want string }{ // want "" for a failure
		{`"text"`, `"text"`},
		{`5`, `5`},
		{`-0.5e3`, `-0.5e3`},
		{`1.0`, `1.0`},
		{`12345678901234567890123`, `12345678901234567890123`},
		{`1e400`, `1e400`},
		{`true`, `true`},
		{`null`, `null`},
		{`[]`, `[]`},
		{`{}`, `{}`},
		{`""`, `""`},
		{` { "b" : 1 , "a" : [ 1 , "x" ] } `, `{"a":[1,"x"],"b":1}`},
		{`"<&>\u2028"`, `"<&>\u2028"`},
		{`"\u00e9"`, `"é"`},
		{`"{http.vars.a}"`, `"α"`},
		{`"{http.vars.n}"`, `"7"`},
		{`"x{http.vars.a}y{http.vars.n}"`, `"xαy7"`},
		{`["{http.vars.a}", 1, null, {"k": ["{http.vars.n}", true]}]`, `["α",1,null,{"k":["7",true]}]`},
		{`{"{http.vars.a}": "{http.vars.a}"}`, `{"{http.vars.a}":"α"}`},
		{`"{http.vars.q}"`, `"\",\"exp\":9999999999,\"x\":\""`},
		{`"\\{http.vars.a\\}"`, `"{http.vars.a}"`},
		{`"{http.vars.empty}"`, ``},
		{`"x{http.vars.empty}"`, ``},
		{`"{http.vars.unknown}"`, ``},
		{`[[["{http.vars.a}", {"k": "{http.vars.empty}"}]]]`, ``},
	} {
		for _, where := range []string{"claims", "document_claims"} {
			var o Options
			if where == "claims" {
				o.Claims = rawClaims("name", test.raw)
			} else {
				o.DocumentClaims = rawClaims("name", test.raw)
			}
			a, err := resolve(templateOf(t, o), replacerWith(values), "doc")
			if test.want == "" {
				if err == nil || !strings.HasPrefix(err.Error(), `claim "name": `) {
					t.Errorf("%s %s: got %v", where, test.raw, err)
				}
				continue
			}
			got := a.Request.Claims + a.DocumentClaims
			if want := `,"name":` + test.want; err != nil || got != want {
				t.Errorf("%s %s: got %s, %v, want %s", where, test.raw, got, err, want)
			}
		}
	}
}

func TestClaimsAreSortedByName(t *testing.T) {
	o := Options{Claims: rawClaims("b", `"{http.vars.b}"`, "a", "1", `q"uote`, "2"), DocumentClaims: rawClaims("z", "1", "y", "2")}
	for range 20 { // maps are walked in any order
		a := mustResolve(t, o, "doc", map[string]any{"http.vars.b": "x"})
		if a.Request.Claims != `,"a":1,"b":"x","q\"uote":2` || a.DocumentClaims != `,"y":2,"z":1` {
			t.Fatalf("got %s and %s", a.Request.Claims, a.DocumentClaims)
		}
	}
}

func TestClaimOfInvalidUTF8IsRefused(t *testing.T) {
	_, err := resolve(templateOf(t, Options{Claims: rawClaims("who", `"{http.vars.who}"`)}), replacerWith(map[string]any{"http.vars.who": "\xff"}), "doc")
	if err == nil || err.Error() != `claim "who": {http.vars.who} is not valid UTF-8` {
		t.Errorf("got %v", err)
	}
}

// GHSA-j8px-rmrx-76h9: text that came from a request and is replaced once more
// would give the environment and files away.
func TestValuesAreNotReplacedAgain(t *testing.T) {
	t.Setenv("VIEWER_SESSION_TEST_SECRET", "secret")
	file := t.TempDir() + "/secret"
	if err := os.WriteFile(file, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{"{env.VIEWER_SESSION_TEST_SECRET}", "{file." + file + "}", "{http.vars.other}", "{http.vars.value}", `\{x\}`, "{", "}"} {
		values := map[string]any{"http.vars.value": value, "http.vars.other": "secret"}
		quoted, _ := json.Marshal(value)
		a := mustResolve(t, Options{
			Permissions:    []string{"{http.vars.value}"},
			UserID:         "{http.vars.value}",
			VaryBy:         []string{"{http.vars.value}"},
			Claims:         rawClaims("a", `["{http.vars.value}"]`),
			DocumentClaims: rawClaims("b", `"{http.vars.value}"`),
		}, value, values)
		for what, pair := range map[string][2]string{
			"permissions":     {strings.Join(a.Permissions, " "), value},
			"user_id":         {a.UserID, value},
			"document id":     {a.DocumentID, value},
			"vary_by":         {a.VaryBy[1], value},
			"claims":          {a.Request.Claims, `,"a":[` + string(quoted) + `]`},
			"document_claims": {a.DocumentClaims, `,"b":` + string(quoted)},
		} {
			if pair[0] != pair[1] {
				t.Errorf("%s: got %s, want %s", what, pair[0], pair[1])
			}
		}
		if body := a.Body(1, dws.BothNames); bytes.Contains(body, []byte(`"secret"`)) {
			t.Errorf("%s: %s", value, body)
		}
	}
}

func TestPlaceholdersIn(t *testing.T) {
	for text, want := range map[string][]string{
		"":                           nil,
		"text":                       nil,
		"{a.b}":                      {"a.b"},
		"x{a}y{b}z":                  {"a", "b"},
		"{a}{a}":                     {"a", "a"},
		`\{a\}`:                      nil,
		`\{a}`:                       nil,
		"{a":                         nil,
		"a}":                         nil,
		"{{a}}":                      {"{a"},
		"{http.request.header.X}\\{": {"http.request.header.X"},
		"{}":                         {""},
	} {
		if got := PlaceholdersIn(text); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
		if got := HasPlaceholder(text); got != (len(want) > 0) {
			t.Errorf("%q: hasPlaceholder is %v", text, got)
		}
	}
}

func TestClientControlled(t *testing.T) {
	for name, want := range map[string]Use{ // the first use that is refused; 3 for none
		"http.request.header.X": ForDocumentID, "http.request.cookie.session": ForDocumentID, "http.request.body": ForDocumentID, "http.request.body_base64": ForDocumentID,
		"http.request.uri": ForClaim, "http.request.uri_escaped": ForClaim, "http.request.orig_uri": ForClaim,
		"http.request.uri.query": ForClaim, "http.request.uri.query.doc": ForClaim, "http.request.uri.query_escaped": ForClaim, "http.request.uri.prefixed_query": ForClaim,
		"http.request.orig_uri.query": ForClaim, "http.request.orig_uri.prefixed_query": ForClaim,
		"http.request.uri.path": ForIdentity, "http.request.uri.path.1": ForIdentity, "http.request.uri.path.file": ForIdentity, "http.request.orig_uri.path": ForIdentity,
		"http.request.host": ForIdentity, "http.request.hostport": ForIdentity, "http.request.host.labels.2": ForIdentity, "http.request.port": ForIdentity, "http.request.tls.server_name": ForIdentity,
		"http.viewer_session.document_id": ForIdentity, "http.matchers.file.relative": ForIdentity,
		"http.auth.user.id": 3, "http.auth.user.email": 3, "http.reverse_proxy.header.Remote-User": 3, "http.vars.user": 3, "http.regexp.doc.1": 3,
		"http.request.tls.client.subject": 3, "http.request.remote.host": 3, "http.request.method": 3, "env.USER": 3,
	} {
		for use := range Use(3) {
			if got := ClientControlled(name, use); got != (use >= want) {
				t.Errorf("%s for %d: got %v", name, use, got)
			}
		}
	}
}

func TestMisspelledHeaders(t *testing.T) {
	for name, want := range map[string]string{
		"http.reverse_proxy.header.X-authentik-username": "http.reverse_proxy.header.X-Authentik-Username",
		"http.reverse_proxy.header.remote-user":          "http.reverse_proxy.header.Remote-User",
		"http.reverse_proxy.header.Remote-User":          "",
		"http.reverse_proxy.status_code":                 "",
		"http.auth.user.x-y":                             "",
	} {
		if got := Misspelled(name); got != want {
			t.Errorf("%s: got %q", name, got)
		}
	}
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
		template, err := NewTemplate(Options{
			Permissions: []string{"read", "{http.vars.value}"}, UserID: "{http.vars.user}", VaryBy: []string{"{http.vars.value}"},
			Claims: map[string]json.RawMessage{"claim": json.RawMessage(claim)}, TTL: time.Hour,
		})
		if err != nil {
			return
		}
		repl := caddy.NewEmptyReplacer()
		repl.Set("http.vars.user", user)
		repl.Set("http.vars.value", value)
		a, err := resolve(template, repl, "doc")
		if err != nil {
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
		body := a.Body(1_800_003_600, dws.BothNames)
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
		again, err := resolve(template, repl, "doc")
		if err != nil || string(again.AppendKey(nil)) != string(a.AppendKey(nil)) {
			t.Error("the same request has another key")
		}
	})
}
