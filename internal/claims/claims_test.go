package claims

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
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

// resolve returns the claims, or the first error of what is missing.
func resolve(template *Template, repl *caddy.Replacer, documentID string) (Claims, error) {
	var c Claims
	missing := template.Resolve(&c, repl, documentID)
	return c, cmp.Or(missing.User, missing.Permissions, missing.Claims)
}

func rawClaims(pairs ...string) map[string]json.RawMessage {
	claims := make(map[string]json.RawMessage)
	for i := 0; i < len(pairs); i += 2 {
		claims[pairs[i]] = json.RawMessage(pairs[i+1])
	}
	return claims
}

func mustResolve(t testing.TB, o Options, documentID string, values map[string]any) Claims {
	t.Helper()
	a, err := resolve(templateOf(t, o), replacerWith(values), documentID)
	if err != nil {
		t.Fatal(err)
	}
	return a
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

func keyOf(a Claims) string { return string(a.AppendKey(nil)) }

// fullClaims has something in every field.
func fullClaims() Claims {
	return Claims{Request: dws.Request{DocumentID: "doc", Permissions: []string{"read", "write"}, UserID: "ann", Claims: `,"a":1`, DocumentClaims: `,"b":2`, TTL: time.Hour}, VaryBy: []string{"{http.vars.x}", "1"}, MinRemaining: time.Minute}
}

func TestKeysDifferWithAnyField(t *testing.T) {
	all := map[string]Claims{"unchanged": fullClaims()}
	change := func(name string, f func(*Claims)) {
		a := fullClaims()
		f(&a)
		all[name] = a
	}
	change("document id", func(a *Claims) { a.DocumentID = "doc2" })
	change("document id in capitals", func(a *Claims) { a.DocumentID = "DOC" })
	change("user", func(a *Claims) { a.UserID = "bob" })
	change("no user", func(a *Claims) { a.UserID = "" })
	change("fewer permissions", func(a *Claims) { a.Permissions = []string{"read"} })
	change("other permissions", func(a *Claims) { a.Permissions = []string{"download", "read"} })
	change("permissions in one", func(a *Claims) { a.Permissions = []string{"read,write"} })
	change("claims", func(a *Claims) { a.Request.Claims = `,"a":2` })
	change("no claims", func(a *Claims) { a.Request.Claims = "" })
	change("document claims", func(a *Claims) { a.DocumentClaims = `,"b":3` })
	change("claims the other way round", func(a *Claims) { a.Request.Claims, a.DocumentClaims = a.DocumentClaims, a.Request.Claims })
	change("claims in one", func(a *Claims) { a.Request.Claims, a.DocumentClaims = a.Request.Claims+a.DocumentClaims, "" })
	change("ttl", func(a *Claims) { a.TTL++ })
	change("vary_by", func(a *Claims) { a.VaryBy = []string{"{http.vars.x}", "2"} })
	change("vary_by of another name", func(a *Claims) { a.VaryBy = []string{"{http.vars.y}", "1"} })
	change("no vary_by", func(a *Claims) { a.VaryBy = nil })
	change("more vary_by", func(a *Claims) { a.VaryBy = append(a.VaryBy, "{http.vars.y}", "") })
	seen := make(map[string]string)
	for name, a := range all {
		key := keyOf(a)
		if other, ok := seen[key]; ok {
			t.Errorf("%s and %s have the same key", name, other)
		}
		seen[key] = name
	}
	// How long a token will be used makes no other token.
	a := fullClaims()
	a.MinRemaining = 2 * time.Minute
	if keyOf(a) != keyOf(fullClaims()) {
		t.Error("min_remaining is part of the key")
	}
}

// Every field is in the key, or listed here as no part of it.
func TestKeyForgetsNoField(t *testing.T) {
	covered := []string{"Request", "VaryBy", "DocumentID", "Permissions", "UserID", "Claims", "DocumentClaims", "TTL"}
	notInKey := []string{"MinRemaining", "staticKey"}
	var fields []string
	for _, typ := range []reflect.Type{reflect.TypeFor[Claims](), reflect.TypeFor[dws.Request]()} {
		for field := range typ.Fields() {
			fields = append(fields, field.Name)
		}
	}
	slices.Sort(fields)
	if want := slices.Sorted(slices.Values(append(covered, notInKey...))); !slices.Equal(fields, want) {
		t.Errorf("there are the fields %v, and the tests know of %v", fields, want)
	}
}

// Fields that run into each other must not make one key of two.
func TestKeysOfFieldsThatRunIntoEachOther(t *testing.T) {
	for _, pair := range [][2]Claims{
		{{Request: dws.Request{DocumentID: "a:b", UserID: "c"}}, {Request: dws.Request{DocumentID: "a", UserID: "b:c"}}},
		{{Request: dws.Request{DocumentID: "ab", UserID: "c"}}, {Request: dws.Request{DocumentID: "a", UserID: "bc"}}},
		{{Request: dws.Request{DocumentID: "ab"}}, {Request: dws.Request{DocumentID: "a", UserID: "b"}}},
		{{Request: dws.Request{DocumentID: "a", UserID: ""}}, {Request: dws.Request{DocumentID: "", UserID: "a"}}},
		{{Request: dws.Request{DocumentID: "a\x00b"}}, {Request: dws.Request{DocumentID: "a", UserID: "b"}}},
		{{Request: dws.Request{DocumentID: "a\x01b"}}, {Request: dws.Request{DocumentID: "a", UserID: "b"}}},
		{{Request: dws.Request{Permissions: []string{"a", "b"}}}, {Request: dws.Request{Permissions: []string{"ab"}}}},
		{{Request: dws.Request{Permissions: []string{"a,b"}}}, {Request: dws.Request{Permissions: []string{"a", "b"}}}},
		{{Request: dws.Request{Permissions: []string{"a"}, DocumentID: "b"}}, {Request: dws.Request{Permissions: []string{"a", "b"}}}},
		{{Request: dws.Request{Claims: "a", DocumentClaims: "b"}}, {Request: dws.Request{Claims: "ab"}}},
		{{Request: dws.Request{Claims: "a"}}, {Request: dws.Request{DocumentClaims: "a"}}},
		{{VaryBy: []string{"a", "b"}}, {VaryBy: []string{"a\x01b", ""}}},
		{{VaryBy: []string{"ab", ""}}, {VaryBy: []string{"a", "b"}}},
		{{Request: dws.Request{UserID: "a"}, VaryBy: []string{"b", "c"}}, {Request: dws.Request{UserID: "a\x02\x01b\x01c"}}},
		{{Request: dws.Request{DocumentID: strings.Repeat("a", 127)}}, {Request: dws.Request{DocumentID: strings.Repeat("a", 128)}}},
		{{Request: dws.Request{DocumentID: strings.Repeat("a", 300), UserID: "b"}}, {Request: dws.Request{DocumentID: strings.Repeat("a", 300) + "b"}}},
		{{Request: dws.Request{TTL: 1}}, {Request: dws.Request{TTL: -1}}},
	} {
		if keyOf(pair[0]) == keyOf(pair[1]) {
			t.Errorf("%+v and %+v have the same key", pair[0], pair[1])
		}
	}
}

func TestKeysAreEqualOnlyForEqualClaims(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	texts := []string{"", "a", "b", "ab", ":", "a:b", "\x00", "\x01", "\x01a", "\x01a\x01", "\x02", "\x02a\x00", "\x00\x00", ",", `,"a":1`}
	text := func() string { return texts[random.IntN(len(texts))] }
	list := func() []string {
		l := make([]string, random.IntN(3))
		for i := range l {
			l[i] = text()
		}
		return l
	}
	all := make(map[string]string)
	keys := make(map[string]string)
	for range 100_000 {
		var a Claims
		// Few fields at a time, so that equal ones come up.
		for range 1 + random.IntN(3) {
			switch random.IntN(7) {
			case 0:
				a.DocumentID = text()
			case 1:
				a.UserID = text()
			case 2:
				a.Permissions = list()
			case 3:
				a.Request.Claims = text()
			case 4:
				a.DocumentClaims = text()
			case 5:
				a.VaryBy = list()
			case 6:
				a.TTL = time.Duration(random.IntN(3))
			}
		}
		key := keyOf(a)
		what := fmt.Sprintf("%q %q %q %q %q %q %d", a.DocumentID, a.UserID, a.Permissions, a.Request.Claims, a.DocumentClaims, a.VaryBy, a.TTL)
		if other, ok := all[key]; ok && other != what {
			t.Fatalf("%s and %s have the same key", other, what)
		}
		if other, ok := keys[what]; ok && other != key {
			t.Fatalf("%s has two keys", what)
		}
		all[key], keys[what] = what, key
	}
	if len(all) == 100_000 || len(all) < 1000 {
		t.Errorf("%d different claims", len(all))
	}
}

// What is prepared when the config loads must be what would be computed for
// each request: tokens are found again after a reload that makes a claim
// dynamic, and by another route that all for the same.
func TestPreparedKeyIsTheComputedOne(t *testing.T) {
	static := []Options{
		{},
		{Permissions: []string{"write", "read,download"}},
		{Permissions: []string{"read"}, Claims: rawClaims("a", `"x"`, "b", "[1]"), DocumentClaims: rawClaims("c", `{"d": "\\{e\\}"}`)},
		{TTL: time.Minute, UserID: "{http.auth.user.id}", VaryBy: []string{"{http.vars.v}"}},
	}
	values := map[string]any{"http.auth.user.id": "ann", "http.vars.v": "1", "http.vars.read": "read", "http.vars.x": "x"}
	for _, o := range static {
		a := mustResolve(t, o, "doc", values)
		if a.staticKey == nil {
			t.Fatalf("%+v: nothing is prepared", o)
		}
		computed := a
		computed.staticKey = nil
		if keyOf(a) != keyOf(computed) {
			t.Errorf("%+v: prepared %q, computed %q", o, keyOf(a), keyOf(computed))
		}
	}
	for _, pair := range [][2]Options{
		{{Permissions: []string{"read"}}, {Permissions: []string{"{http.vars.read}"}}},
		{{Claims: rawClaims("a", `"x"`, "b", "2")}, {Claims: rawClaims("a", `"{http.vars.x}"`, "b", " 2 ")}},
		{{DocumentClaims: rawClaims("a", `["x", {"k": null}]`)}, {DocumentClaims: rawClaims("a", `["{http.vars.x}",{"k":null}]`)}},
	} {
		a, b := mustResolve(t, pair[0], "doc", values), mustResolve(t, pair[1], "doc", values)
		if b.staticKey != nil {
			t.Errorf("%+v: a key is prepared, although a placeholder stands in it", pair[1])
		}
		if keyOf(a) != keyOf(b) {
			t.Errorf("%+v and %+v have different keys", pair[0], pair[1])
		}
	}
}

func TestOneRequestsClaimsDoNotChangeAnothers(t *testing.T) {
	template := templateOf(t, Options{Permissions: []string{"write", "read"}, UserID: "{http.auth.user.id}", VaryBy: []string{"{http.vars.v}"}, Claims: rawClaims("a", `["{http.auth.user.id}"]`)})
	first, err := resolve(template, replacerWith(map[string]any{"http.auth.user.id": "ann", "http.vars.v": "1"}), "one")
	if err != nil {
		t.Fatal(err)
	}
	key, body := keyOf(first), string(first.Body(1, dws.BothNames))
	second, err := resolve(template, replacerWith(map[string]any{"http.auth.user.id": "bob", "http.vars.v": "2"}), "two")
	if err != nil {
		t.Fatal(err)
	}
	if keyOf(first) != key || string(first.Body(1, dws.BothNames)) != body {
		t.Error("the first claims have changed")
	}
	if keyOf(second) == key || strings.Contains(string(second.Body(1, dws.BothNames)), "ann") {
		t.Errorf("the second claims are %s", second.Body(1, dws.BothNames))
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

func TestClientWritten(t *testing.T) {
	for name, want := range map[string][2]bool{ // for a document id, for everything else
		"http.request.header.X":                 {true, true},
		"http.request.cookie.session":           {true, true},
		"http.request.body":                     {true, true},
		"http.request.body_base64":              {true, true},
		"http.request.uri":                      {false, true},
		"http.request.uri_escaped":              {false, true},
		"http.request.orig_uri":                 {false, true},
		"http.request.uri.query":                {false, true},
		"http.request.uri.query.doc":            {false, true},
		"http.request.uri.query_escaped":        {false, true},
		"http.request.uri.prefixed_query":       {false, true},
		"http.request.orig_uri.query":           {false, true},
		"http.request.orig_uri.prefixed_query":  {false, true},
		"http.auth.user.id":                     {false, false},
		"http.auth.user.email":                  {false, false},
		"http.reverse_proxy.header.Remote-User": {false, false},
		"http.vars.user":                        {false, false},
		"http.regexp.doc.1":                     {false, false},
		"http.request.uri.path.1":               {false, false},
		"http.request.orig_uri.path":            {false, false},
		"http.request.tls.client.subject":       {false, false},
		"http.request.remote.host":              {false, false},
		"http.request.method":                   {false, false},
		"env.USER":                              {false, false},
	} {
		if got := [2]bool{ClientControlled(name, true), ClientControlled(name, false)}; got != want {
			t.Errorf("%s: got %v, want %v", name, got, want)
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
