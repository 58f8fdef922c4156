package viewersession

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
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
func templateOf(t testing.TB, o TokenOptions) *askTemplate {
	t.Helper()
	o = o.over(TokenOptions{})
	template, err := newAskTemplate(o)
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

func mustResolve(t testing.TB, o TokenOptions, documentID string, values map[string]any) ask {
	t.Helper()
	a, err := resolveTest(templateOf(t, o), replacerWith(values), documentID)
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
		if got := splitPermissions(test.values); !slices.Equal(got, test.want) {
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
		a, err := resolveTest(templateOf(t, TokenOptions{Permissions: test.permissions}), replacerWith(test.values), "doc")
		if test.want == "" {
			want := "permissions " + strings.Join(test.permissions, " ") + ": none left for this request"
			if f := asFailure(err); err == nil || f.reason != reasonNoPermission || f.status() != 403 || f.Error() != want {
				t.Errorf("%q with %v: got %v, %v", test.permissions, test.values, a.permissions, err)
			}
			continue
		}
		if err != nil || fmt.Sprint(a.permissions) != test.want {
			t.Errorf("%q with %v: got %q, %v, want %s", test.permissions, test.values, a.permissions, err, test.want)
		}
	}
}

func TestPermissionsAreReadByDefault(t *testing.T) {
	if a := mustResolve(t, TokenOptions{}, "doc", nil); !slices.Equal(a.permissions, []string{"read"}) {
		t.Errorf("got %q", a.permissions)
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
		{"{http.vars.tenant}/{http.auth.user.id}", map[string]any{"http.auth.user.id": "ann", "http.vars.tenant": "t"}, "t/ann", ""},
		{"{http.auth.user.id}", map[string]any{"http.auth.user.id": `a"b\c</script>` + "\n"}, `a"b\c</script>` + "\n", ""},
		{"{http.auth.user.id}", map[string]any{"http.auth.user.id": "ünal 😀"}, "ünal 😀", ""},
		{"{http.auth.user.id}", map[string]any{"http.auth.user.id": ""}, "", "evaluated placeholder {http.auth.user.id} is empty"},
		{"{http.auth.user.id}", map[string]any{"http.auth.user.id": nil}, "", "evaluated placeholder {http.auth.user.id} is empty"},
		{"{http.auth.user.id}", nil, "", "unrecognized placeholder {http.auth.user.id}"},
		{"{http.vars.tenant}/{http.auth.user.id}", map[string]any{"http.vars.tenant": "t"}, "", "unrecognized placeholder {http.auth.user.id}"},
		{"{http.vars.tenant}/{http.auth.user.id}", map[string]any{"http.vars.tenant": "", "http.auth.user.id": "ann"}, "", "evaluated placeholder {http.vars.tenant} is empty"},
		{"{http.auth.user.id}", map[string]any{"http.auth.user.id": "a\xffb"}, "", "{http.auth.user.id} is not valid UTF-8"},
		{"{http.auth.user.id}", map[string]any{"http.auth.user.id": "\xed\xa0\x80"}, "", "{http.auth.user.id} is not valid UTF-8"},
	} {
		a, err := resolveTest(templateOf(t, TokenOptions{UserID: test.template}), replacerWith(test.values), "doc")
		if test.want == "" {
			want := "user_id: " + test.message + ""
			if f := asFailure(err); err == nil || f.reason != reasonNoUser || f.status() != 401 || f.Error() != want {
				t.Errorf("%s with %v: got %q, %v\nwant %s", test.template, test.values, a.userID, err, want)
			}
			continue
		}
		if err != nil || a.userID != test.want {
			t.Errorf("%s with %v: got %q, %v", test.template, test.values, a.userID, err)
		}
	}
	if a := mustResolve(t, TokenOptions{}, "doc", nil); a.userID != "" {
		t.Errorf("without user_id: got %q", a.userID)
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
			var o TokenOptions
			if where == "claims" {
				o.Claims = rawClaims("name", test.raw)
			} else {
				o.DocumentClaims = rawClaims("name", test.raw)
			}
			a, err := resolveTest(templateOf(t, o), replacerWith(values), "doc")
			if test.want == "" {
				if f := asFailure(err); err == nil || f.reason != reasonNoClaim || f.status() != 403 || !strings.HasPrefix(f.Error(), `claim "name": `) {
					t.Errorf("%s %s: got %v", where, test.raw, err)
				}
				continue
			}
			got := a.claims + a.documentClaims
			if want := `,"name":` + test.want; err != nil || got != want {
				t.Errorf("%s %s: got %s, %v, want %s", where, test.raw, got, err, want)
			}
		}
	}
}

func TestClaimsAreSortedByName(t *testing.T) {
	o := TokenOptions{Claims: rawClaims("b", `"{http.vars.b}"`, "a", "1", `q"uote`, "2"), DocumentClaims: rawClaims("z", "1", "y", "2")}
	for range 20 { // maps are walked in any order
		a := mustResolve(t, o, "doc", map[string]any{"http.vars.b": "x"})
		if a.claims != `,"a":1,"b":"x","q\"uote":2` || a.documentClaims != `,"y":2,"z":1` {
			t.Fatalf("got %s and %s", a.claims, a.documentClaims)
		}
	}
}

func TestClaimOfInvalidUTF8IsRefused(t *testing.T) {
	_, err := resolveTest(templateOf(t, TokenOptions{Claims: rawClaims("who", `"{http.vars.who}"`)}), replacerWith(map[string]any{"http.vars.who": "\xff"}), "doc")
	if f := asFailure(err); err == nil || f.reason != reasonNoClaim || f.Error() != `claim "who": {http.vars.who} is not valid UTF-8` {
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
		a := mustResolve(t, TokenOptions{
			Permissions:    []string{"{http.vars.value}"},
			UserID:         "{http.vars.value}",
			VaryBy:         []string{"{http.vars.value}"},
			Claims:         rawClaims("a", `["{http.vars.value}"]`),
			DocumentClaims: rawClaims("b", `"{http.vars.value}"`),
		}, value, values)
		for what, pair := range map[string][2]string{
			"permissions":     {strings.Join(a.permissions, " "), value},
			"user_id":         {a.userID, value},
			"document id":     {a.documentID, value},
			"vary_by":         {a.varyBy[1], value},
			"claims":          {a.claims, `,"a":[` + string(quoted) + `]`},
			"document_claims": {a.documentClaims, `,"b":` + string(quoted)},
		} {
			if pair[0] != pair[1] {
				t.Errorf("%s: got %s, want %s", what, pair[0], pair[1])
			}
		}
		if body := a.body(1, bothNames); bytes.Contains(body, []byte(`"secret"`)) {
			t.Errorf("%s: %s", value, body)
		}
	}
}

func TestNoUserComesBeforeNoPermissionAndNoClaim(t *testing.T) {
	o := TokenOptions{UserID: "{http.auth.user.id}", Permissions: []string{"{http.vars.p}"}, Claims: rawClaims("a", `"{http.vars.c}"`)}
	template := templateOf(t, o)
	values := map[string]any{}
	for _, step := range []struct {
		want reason
		name string
	}{
		{reasonNoUser, "http.auth.user.id"},
		{reasonNoPermission, "http.vars.p"},
		{reasonNoClaim, "http.vars.c"},
	} {
		_, err := resolveTest(template, replacerWith(values), "doc")
		f, ok := errors.AsType[*failure](err)
		if !ok || f.reason != step.want {
			t.Errorf("got %v, want %s", err, step.want)
		}
		values[step.name] = "x"
	}
	if _, err := resolveTest(template, replacerWith(values), "doc"); err != nil {
		t.Error(err)
	}
}

// The body as the vendor's guide shows it.
func TestBody(t *testing.T) {
	for _, test := range []struct {
		ask  ask
		exp  int64
		want string
	}{
		{
			ask{documentID: "7KJXF00VC7M4WSDD7W5TKZ8XRA", permissions: []string{"download", "read", "write"}},
			1793769299,
			`{"allowed_documents":[{"document_id":"7KJXF00VC7M4WSDD7W5TKZ8XRA","document_permissions":["download","read","write"],"permissions":["download","read","write"]}],"exp":1793769299}`,
		},
		{
			ask{documentID: "d", permissions: []string{"read"}, userID: "ann"},
			1,
			`{"allowed_documents":[{"document_id":"d","document_permissions":["read"],"permissions":["read"]}],"exp":1,"user_id":"ann"}`,
		},
		{
			ask{documentID: "d", permissions: []string{"read"}, userID: "ann", claims: `,"team":"blue","floor":3`, documentClaims: `,"collaboration_permissions":["annotations:view:all"]`, varyBy: []string{"{x}", "y"}, ttl: time.Hour, minRemaining: time.Minute},
			1,
			`{"allowed_documents":[{"document_id":"d","document_permissions":["read"],"permissions":["read"],"collaboration_permissions":["annotations:view:all"]}],"exp":1,"user_id":"ann","team":"blue","floor":3}`,
		},
		{
			ask{documentID: "a\"b\\c\nd</e>&\u2028é", permissions: []string{`"`}, userID: "\x00\x7f'"},
			1,
			`{"allowed_documents":[{"document_id":"a\"b\\c\nd</e>&\u2028é","document_permissions":["\""],"permissions":["\""]}],"exp":1,"user_id":"\u0000` + "\x7f" + `'"}`,
		},
	} {
		if got := string(test.ask.body(test.exp, bothNames)); got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
}

// Whatever the values are, the body is the JSON that carries them unchanged.
func TestBodyCarriesEveryValue(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	text := func() string {
		runes := make([]rune, 1+random.IntN(5))
		for i := range runes {
			runes[i] = []rune("a\"\\/{}[],:\n\x00\u2028é😀<>&'")[random.IntN(18)]
		}
		return string(runes)
	}
	for range 2000 {
		documentID, user, permission, claim := text(), text(), text(), text()
		quoted, _ := json.Marshal(claim)
		a := ask{documentID: documentID, userID: user, permissions: []string{permission}, claims: `,"c":` + string(quoted)}
		want := map[string]any{
			"allowed_documents": []any{map[string]any{"document_id": documentID, "document_permissions": []any{permission}, "permissions": []any{permission}}},
			"exp":               float64(5), "user_id": user, "c": claim,
		}
		var got map[string]any
		if err := json.Unmarshal(a.body(5, bothNames), &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("got %v, %v\nwant %v", got, err, want)
		}
	}
}

func keyOf(a ask) string { return string(a.appendKey(nil)) }

// fullAsk has something in every field.
func fullAsk() ask {
	return ask{
		documentID: "doc", permissions: []string{"read", "write"}, userID: "ann",
		claims: `,"a":1`, documentClaims: `,"b":2`, varyBy: []string{"{http.vars.x}", "1"}, ttl: time.Hour, minRemaining: time.Minute,
	}
}

func TestKeysDifferWithAnyField(t *testing.T) {
	asks := map[string]ask{"unchanged": fullAsk()}
	change := func(name string, f func(*ask)) {
		a := fullAsk()
		f(&a)
		asks[name] = a
	}
	change("document id", func(a *ask) { a.documentID = "doc2" })
	change("document id in capitals", func(a *ask) { a.documentID = "DOC" })
	change("user", func(a *ask) { a.userID = "bob" })
	change("no user", func(a *ask) { a.userID = "" })
	change("fewer permissions", func(a *ask) { a.permissions = []string{"read"} })
	change("other permissions", func(a *ask) { a.permissions = []string{"download", "read"} })
	change("permissions in one", func(a *ask) { a.permissions = []string{"read,write"} })
	change("claims", func(a *ask) { a.claims = `,"a":2` })
	change("no claims", func(a *ask) { a.claims = "" })
	change("document claims", func(a *ask) { a.documentClaims = `,"b":3` })
	change("claims the other way round", func(a *ask) { a.claims, a.documentClaims = a.documentClaims, a.claims })
	change("claims in one", func(a *ask) { a.claims, a.documentClaims = a.claims+a.documentClaims, "" })
	change("ttl", func(a *ask) { a.ttl++ })
	change("vary_by", func(a *ask) { a.varyBy = []string{"{http.vars.x}", "2"} })
	change("vary_by of another name", func(a *ask) { a.varyBy = []string{"{http.vars.y}", "1"} })
	change("no vary_by", func(a *ask) { a.varyBy = nil })
	change("more vary_by", func(a *ask) { a.varyBy = append(a.varyBy, "{http.vars.y}", "") })
	seen := make(map[string]string)
	for name, a := range asks {
		key := keyOf(a)
		if other, ok := seen[key]; ok {
			t.Errorf("%s and %s have the same key", name, other)
		}
		seen[key] = name
	}
	// How long a token will be used makes no other token.
	a := fullAsk()
	a.minRemaining = 2 * time.Minute
	if keyOf(a) != keyOf(fullAsk()) {
		t.Error("min_remaining is part of the key")
	}
}

// Every field of ask is in its key, or listed here as no part of it.
func TestKeyForgetsNoField(t *testing.T) {
	covered := []string{"documentID", "permissions", "userID", "claims", "documentClaims", "varyBy", "ttl"}
	notInKey := []string{"minRemaining", "keyPart"}
	var fields []string
	for field := range reflect.TypeFor[ask]().Fields() {
		fields = append(fields, field.Name)
	}
	slices.Sort(fields)
	if want := slices.Sorted(slices.Values(append(covered, notInKey...))); !slices.Equal(fields, want) {
		t.Errorf("ask has the fields %v, and the tests know of %v", fields, want)
	}
}

// Fields that run into each other must not make one key of two.
func TestKeysOfFieldsThatRunIntoEachOther(t *testing.T) {
	for _, pair := range [][2]ask{
		{{documentID: "a:b", userID: "c"}, {documentID: "a", userID: "b:c"}},
		{{documentID: "ab", userID: "c"}, {documentID: "a", userID: "bc"}},
		{{documentID: "ab"}, {documentID: "a", userID: "b"}},
		{{documentID: "a", userID: ""}, {documentID: "", userID: "a"}},
		{{documentID: "a\x00b"}, {documentID: "a", userID: "b"}},
		{{documentID: "a\x01b"}, {documentID: "a", userID: "b"}},
		{{permissions: []string{"a", "b"}}, {permissions: []string{"ab"}}},
		{{permissions: []string{"a,b"}}, {permissions: []string{"a", "b"}}},
		{{permissions: []string{"a"}, documentID: "b"}, {permissions: []string{"a", "b"}}},
		{{claims: "a", documentClaims: "b"}, {claims: "ab"}},
		{{claims: "a"}, {documentClaims: "a"}},
		{{varyBy: []string{"a", "b"}}, {varyBy: []string{"a\x01b", ""}}},
		{{varyBy: []string{"ab", ""}}, {varyBy: []string{"a", "b"}}},
		{{userID: "a", varyBy: []string{"b", "c"}}, {userID: "a\x02\x01b\x01c"}},
		{{documentID: strings.Repeat("a", 127)}, {documentID: strings.Repeat("a", 128)}},
		{{documentID: strings.Repeat("a", 300), userID: "b"}, {documentID: strings.Repeat("a", 300) + "b"}},
		{{ttl: 1}, {ttl: -1}},
	} {
		if keyOf(pair[0]) == keyOf(pair[1]) {
			t.Errorf("%+v and %+v have the same key", pair[0], pair[1])
		}
	}
}

func TestKeysAreEqualOnlyForEqualAsks(t *testing.T) {
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
	asks := make(map[string]string)
	keys := make(map[string]string)
	for range 100_000 {
		var a ask
		// Few fields at a time, so that equal ones come up.
		for range 1 + random.IntN(3) {
			switch random.IntN(7) {
			case 0:
				a.documentID = text()
			case 1:
				a.userID = text()
			case 2:
				a.permissions = list()
			case 3:
				a.claims = text()
			case 4:
				a.documentClaims = text()
			case 5:
				a.varyBy = list()
			case 6:
				a.ttl = time.Duration(random.IntN(3))
			}
		}
		key := keyOf(a)
		what := fmt.Sprintf("%q %q %q %q %q %q %d", a.documentID, a.userID, a.permissions, a.claims, a.documentClaims, a.varyBy, a.ttl)
		if other, ok := asks[key]; ok && other != what {
			t.Fatalf("%s and %s have the same key", other, what)
		}
		if other, ok := keys[what]; ok && other != key {
			t.Fatalf("%s has two keys", what)
		}
		asks[key], keys[what] = what, key
	}
	if len(asks) == 100_000 || len(asks) < 1000 {
		t.Errorf("%d different asks", len(asks))
	}
}

// What is prepared when the config loads must be what would be computed for
// each request: tokens are found again after a reload that makes a claim
// dynamic, and by another route that asks for the same.
func TestPreparedKeyIsTheComputedOne(t *testing.T) {
	static := []TokenOptions{
		{},
		{Permissions: []string{"write", "read,download"}},
		{Permissions: []string{"read"}, Claims: rawClaims("a", `"x"`, "b", "[1]"), DocumentClaims: rawClaims("c", `{"d": "\\{e\\}"}`)},
		{TTL: caddy.Duration(time.Minute), UserID: "{http.auth.user.id}", VaryBy: []string{"{http.vars.v}"}},
	}
	values := map[string]any{"http.auth.user.id": "ann", "http.vars.v": "1", "http.vars.read": "read", "http.vars.x": "x"}
	for _, o := range static {
		a := mustResolve(t, o, "doc", values)
		if a.keyPart == nil {
			t.Fatalf("%+v: nothing is prepared", o)
		}
		computed := a
		computed.keyPart = nil
		if keyOf(a) != keyOf(computed) {
			t.Errorf("%+v: prepared %q, computed %q", o, keyOf(a), keyOf(computed))
		}
	}
	for _, pair := range [][2]TokenOptions{
		{{Permissions: []string{"read"}}, {Permissions: []string{"{http.vars.read}"}}},
		{{Claims: rawClaims("a", `"x"`, "b", "2")}, {Claims: rawClaims("a", `"{http.vars.x}"`, "b", " 2 ")}},
		{{DocumentClaims: rawClaims("a", `["x", {"k": null}]`)}, {DocumentClaims: rawClaims("a", `["{http.vars.x}",{"k":null}]`)}},
	} {
		a, b := mustResolve(t, pair[0], "doc", values), mustResolve(t, pair[1], "doc", values)
		if b.keyPart != nil {
			t.Errorf("%+v: a key is prepared, although a placeholder stands in it", pair[1])
		}
		if keyOf(a) != keyOf(b) {
			t.Errorf("%+v and %+v have different keys", pair[0], pair[1])
		}
	}
}

func TestOneRequestsAskDoesNotChangeAnothers(t *testing.T) {
	template := templateOf(t, TokenOptions{Permissions: []string{"write", "read"}, UserID: "{http.auth.user.id}", VaryBy: []string{"{http.vars.v}"}, Claims: rawClaims("a", `["{http.auth.user.id}"]`)})
	first, err := resolveTest(template, replacerWith(map[string]any{"http.auth.user.id": "ann", "http.vars.v": "1"}), "one")
	if err != nil {
		t.Fatal(err)
	}
	key, body := keyOf(first), string(first.body(1, bothNames))
	second, err := resolveTest(template, replacerWith(map[string]any{"http.auth.user.id": "bob", "http.vars.v": "2"}), "two")
	if err != nil {
		t.Fatal(err)
	}
	if keyOf(first) != key || string(first.body(1, bothNames)) != body {
		t.Error("the first ask has changed")
	}
	if keyOf(second) == key || strings.Contains(string(second.body(1, bothNames)), "ann") {
		t.Errorf("the second ask is %s", second.body(1, bothNames))
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
		if got := placeholdersIn(text); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
		if got := hasPlaceholder(text); got != (len(want) > 0) {
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
		if got := [2]bool{clientWritten(name, true), clientWritten(name, false)}; got != want {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

func TestMergedClaimsLeaveTheHandlersAlone(t *testing.T) {
	base := rawClaims("a", "1", "b", "2")
	merged := mergeClaims(base, rawClaims("b", "3", "c", "4"))
	if want := rawClaims("a", "1", "b", "3", "c", "4"); !reflect.DeepEqual(merged, want) {
		t.Errorf("got %s", merged)
	}
	if want := rawClaims("a", "1", "b", "2"); !reflect.DeepEqual(base, want) {
		t.Errorf("the handler's are %s now", base)
	}
	if got := mergeClaims(nil, nil); len(got) != 0 {
		t.Errorf("got %s", got)
	}
}
